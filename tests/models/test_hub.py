"""Published weights: from a cache that the tests fill, and from a hub on the loopback device; each state of a file."""

import hashlib
import http.server
import json
import re
import runpy
import sys
import threading
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from huggingface_hub import constants

from udc_model.cli import main
from udc_model.config import ModelParams, Params, validate_params
from udc_model.config.presets import PRESETS, Preset
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.files import Workspace, sha256_of
from udc_model.models import build_model
from udc_model.models.hub import _cache
from udc_model.models.pretrained import find_weights, published_bytes, resolve_weights
from udc_model.stages.resolve import load_training_params, reduce, write_resolved
from udc_model.training.setup import load_initial_weights

NAME, COMMIT = "microsoft/resnet-18", "0123456789abcdef0123456789abcdef01234567"
SMALL = {"layer_type": "basic", "embedding_size": 8, "depths": [1, 1], "hidden_sizes": [8, 16]}
AUTO = ModelParams(preset="resnet-18", weights="auto")
PREPROCESSOR = {"size": {"shortest_edge": 224}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(autouse=True)
def small_resnet18(monkeypatch):
    """The preset resnet-18 with few weights, so that its files are read and written fast."""
    monkeypatch.setitem(PRESETS, "resnet-18", Preset("resnet", SMALL, published=NAME))


@pytest.fixture
def repository(tmp_path):
    """Contents of the files of a repository with (random) weights of a ResNet-18."""
    folder = tmp_path / "repository"
    folder.mkdir()
    build_model(AUTO, ["x", "y"], 7).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {"preprocessor_config.json": json.dumps(PREPROCESSOR).encode(), "pytorch_model.bin": b"not needed"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "home" / "hub"


@pytest.mark.parametrize("variables", [
    {}, {"XDG_CACHE_HOME": "/xdg"}, {"HF_HOME": "~/hf"}, {"HF_HOME": "/hf", "HF_HUB_CACHE": "~/$PART/hub"},
    {"HUGGINGFACE_HUB_CACHE": "/former"},
], ids=str)  # fmt: skip
def test_the_cache_is_where_the_library_writes(variables, monkeypatch):
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/x", "PART": "part", **variables}.items():
        monkeypatch.setenv(name, value)
    library = runpy.run_path(constants.__file__, {"__package__": "huggingface_hub"})
    assert str(_cache()) == library["HF_HUB_CACHE"]


@pytest.fixture
def cached(cache, repository):
    """The snapshot of the repository in the cache, in which large files are links to their SHA-256."""
    snapshot = cache / "models--microsoft--resnet-18" / "snapshots" / COMMIT
    blobs = snapshot.parents[1] / "blobs"
    for folder in (snapshot, blobs, snapshot.parents[1] / "refs"):
        folder.mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    for name, contents in repository.items():
        blob = blobs / hashlib.sha256(contents).hexdigest()
        blob.write_bytes(contents)
        (snapshot / name).symlink_to(blob)
    return snapshot


@pytest.fixture
def hub(cache, repository, monkeypatch):
    """The hub on the loopback device; returns the requests that it gets, and the contents that it sends."""
    requests, content = [], dict(repository)
    stated = {name: hashlib.sha256(body).hexdigest() for name, body in content.items()}

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def _answer(self, body, headers=(), status=200):
            self.send_response(status)
            for key, value in (("Content-Length", len(body)), *headers):
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = urlsplit(self.path).path
            requests.append((self.command, path))
            entries = [{"type": "file", "path": name, "rfilename": name, "size": len(body), "oid": "1" * 40,
                        "blobId": "1" * 40, "lfs": {"size": len(body), "sha256": stated[name], "oid": stated[name],
                                                    "pointerSize": 130}} for name, body in content.items()]  # fmt: skip
            name = path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
            is_json = [("Content-Type", "application/json")]
            if path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
                info = {"id": NAME, "sha": COMMIT, "siblings": entries, "cardData": {"license": "apache-2.0"}}
                self._answer(json.dumps(info).encode(), is_json)
            elif path.startswith(f"/api/models/{NAME}/tree/"):
                self._answer(json.dumps(entries).encode(), is_json)
            elif name in content:
                self._answer(content[name], [("ETag", f'"{stated[name]}"'), ("X-Repo-Commit", COMMIT)])
            else:
                self._answer(b"{}", [("X-Error-Code", "RepoNotFound")], 404)

        def do_HEAD(self):
            self.do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        template = f"{constants.ENDPOINT}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield requests, content
        running.shutdown()


def test_auto_uses_the_cached_weights_of_the_preset(cached, repository):
    params = resolve_weights(AUTO)
    digest = hashlib.sha256(repository["model.safetensors"]).hexdigest()
    assert (params.weights, params.weights_sha256) == (NAME, digest)
    model = build_model(params, ["a", "b", "c"], 1)
    report, preprocessing = load_initial_weights(model, params, Preprocessing(224))
    assert (report.path, report.sha256) == (str(cached), digest)
    assert report.missing == ["classifier.1.bias", "classifier.1.weight"]
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    expected = build_model(AUTO, ["x", "y"], 7).state_dict()
    assert all(
        torch.equal(value, expected[key]) for key, value in model.state_dict().items() if "classifier" not in key
    )


def test_nothing_cached_is_one_line_that_says_what_to_do(cache):
    with pytest.raises(UdcError) as failed:
        resolve_weights(ModelParams(preset="resnet-50", weights="auto"))
    assert str(failed.value) == (
        "model.weights: microsoft/resnet-50 (model.safetensors, 102 MB) is neither a path nor in the Hugging Face "
        "cache, and model.download is false; set model.download: true to download it, or run `udc weights fetch "
        "microsoft/resnet-50 --to resnet-50.safetensors` on a machine with a network, copy resnet-50.safetensors and "
        "resnet-50.safetensors.preprocessor_config.json here and set model.weights: resnet-50.safetensors; "
        "model.weights: null trains from random weights"
    )


def test_stated_size_is_that_of_the_published_file():
    """ResNet-50 has 25,557,032 parameters and 53 BatchNorms, each with two statistics of its channels and a counter."""
    assert published_bytes(ModelParams(preset="resnet-50")) == 4 * (25_557_032 + 53_120 + 53)


def test_an_interrupted_download_is_not_cached(cached):
    """huggingface_hub writes NAME.incomplete, and links it into the snapshot when it is complete."""
    blob = (cached / "model.safetensors").resolve()
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))
    for name in ("model.safetensors", "pytorch_model.bin"):
        (cached / name).unlink()
    with pytest.raises(UdcError, match="neither a path nor in the Hugging Face cache"):
        resolve_weights(AUTO)


def test_a_damaged_file_in_the_cache_is_refused(cached):
    blob = (cached / "model.safetensors").resolve()
    with blob.open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"x")
    with pytest.raises(UdcError, match=f"is damaged or incomplete .* not {blob.name}"):
        resolve_weights(AUTO)


def test_another_file_of_the_same_name_is_an_error_with_both_digests(cached, tmp_path):
    """What stage resolve wrote demands this file: a file that was exchanged since is refused by stage train."""
    params = Params(model=AUTO)
    params = params.model_copy(update={"model": resolve_weights(params.model)})
    workspace = Workspace(tmp_path / "project")
    write_resolved(reduce(params), workspace)
    resolved = yaml.safe_load((workspace.resolved / "train.yaml").read_text())["model"]
    digest = sha256_of(cached / "model.safetensors")
    assert (resolved["weights"], resolved["weights_sha256"]) == (NAME, digest)
    assert "download" not in resolved  # it changes no result
    (workspace.root / "params.yaml").write_text("model: {preset: resnet-18, weights: auto, download: true}\n")
    trained = load_training_params(workspace, workspace.root / "params.yaml").model
    assert (trained.weights_sha256, trained.download) == (digest, True)
    (cached / "model.safetensors").unlink()
    build_model(AUTO, ["x", "y"], 8).save_pretrained(cached)
    other = sha256_of(cached / "model.safetensors")
    with pytest.raises(UdcError, match=f"its SHA-256 is {other}, but model.weights_sha256 is {digest}"):
        load_initial_weights(build_model(trained, ["a", "b"], 1), trained, Preprocessing(224))


def test_a_digest_in_the_parameters_is_demanded(cached):
    with pytest.raises(UdcError, match=f"but model.weights_sha256 is {'0' * 64}"):
        resolve_weights(AUTO.model_copy(update={"weights_sha256": "0" * 64}))
    with pytest.raises(UdcError, match="weights_sha256 is of the file of the weights, but weights is null"):
        validate_params({"model": {"weights_sha256": "0" * 64}}, "test")


@pytest.mark.parametrize(
    "model", [{"preset": "resnet-mini"}, {"resnet": {"hidden_act": "gelu"}}, {"resnet": {"depths": [3, 4, 6, 4]}}]
)
def test_auto_without_published_weights_names_the_presets(model):
    with pytest.raises(UdcError, match=r"no published weights fit this resnet; set preset to resnet-18, .*resnet-152"):
        validate_params({"model": {"weights": "auto", **model}}, "test")


def test_auto_without_preset_takes_what_fits_the_sizes_exactly(cached):
    assert resolve_weights(ModelParams(weights="auto", resnet=SMALL | {"num_channels": 1})).weights == NAME
    convnext = ModelParams(model_type="convnext", preset="convnext-xlarge", weights="auto")
    with pytest.raises(UdcError, match=r"facebook/convnext-xlarge-224-22k-1k \(model.safetensors, 1,4\d\d MB\)"):
        find_weights(convnext)


def test_download_is_logged_checked_and_cached(hub, repository, caplog, monkeypatch):
    caplog.set_level("INFO", "udc_model")
    params = resolve_weights(AUTO.model_copy(update={"download": True}))
    contents = repository["model.safetensors"]
    digest = hashlib.sha256(contents).hexdigest()
    assert params.weights_sha256 == digest
    expected = (
        f"weights {NAME}: model.safetensors, {len(contents) / 1e6:,.1f} MB, SHA-256 {digest}; licence: apache-2.0"
    )
    assert [record.getMessage() for record in caplog.records if "SHA-256" in record.getMessage()] == [expected]
    assert not any("pytorch_model.bin" in path for _, path in hub[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_weights(AUTO).weights_sha256 == digest


def test_without_model_download_nothing_is_requested(hub):
    with pytest.raises(UdcError, match=r"model\.download is false"):
        resolve_weights(AUTO)
    assert hub[0] == []


def test_a_download_with_another_digest_is_removed(hub, repository, cache):
    contents = bytearray(repository["model.safetensors"])
    contents[-1] ^= 1
    hub[1]["model.safetensors"] = bytes(contents)
    stated, sent = (hashlib.sha256(each).hexdigest() for each in (repository["model.safetensors"], contents))
    download = AUTO.model_copy(update={"download": True})
    with pytest.raises(UdcError, match=f"was downloaded with the SHA-256 {sent}, but the hub states {stated}"):
        resolve_weights(download)
    assert not [path for path in cache.rglob("*") if path.name == "model.safetensors" or path.name == stated]
    hub[1]["model.safetensors"] = repository["model.safetensors"]
    assert resolve_weights(download).weights_sha256 == stated


def test_a_download_that_fails_never_becomes_random_weights(cache):
    """The network is off."""
    with pytest.raises(
        UdcError, match=r"cannot be downloaded \(OfflineModeIsEnabled.*udc weights fetch .*: null trains"
    ):
        resolve_weights(AUTO.model_copy(update={"download": True}))


def test_missing_extra_is_one_line(cache, monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["weights", "fetch", NAME, "--to", str(tmp_path / "w.safetensors")]) == 1
    assert caplog.messages == [f"error: {NAME}: needs the extra hub: pip install 'udc-model[hub]'"]
    with pytest.raises(UdcError, match=r"pip install 'udc-model\[hub\]'"):
        resolve_weights(AUTO.model_copy(update={"download": True}))


@pytest.mark.parametrize("name", [NAME, "resnet-18"])
def test_weights_fetch_writes_a_file_that_training_accepts(hub, repository, name, tmp_path, capsys, caplog):
    target = tmp_path / "weights" / "resnet.safetensors"
    assert main(["weights", "fetch", name, "--to", str(target)]) == 0
    output = capsys.readouterr().out
    digest = hashlib.sha256(repository["model.safetensors"]).hexdigest()
    size = f"{len(repository['model.safetensors']) / 1e6:.1f} MB"
    assert f"weights {NAME}: model.safetensors, {size}, SHA-256 {digest}; licence: apache-2.0" in output
    assert f"udc run -S model.weights={target}" in output
    assert target.read_bytes() == repository["model.safetensors"]
    params = ModelParams(preset="resnet-18", weights=str(target))
    assert resolve_weights(params).weights_sha256 == digest
    report, preprocessing = load_initial_weights(build_model(params, ["a", "b", "c"], 1), params, Preprocessing(224))
    assert report.missing == ["classifier.1.bias", "classifier.1.weight"]
    assert (preprocessing.mean, preprocessing.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert main(["weights", "fetch", name, "--to", str(target)]) == 0  # it is there already
    target.write_bytes(b"other")
    assert main(["weights", "fetch", name, "--to", str(target)]) == 1
    assert "exists and is another file; remove it" in caplog.text
    assert target.read_bytes() == b"other"


def test_weights_fetch_writes_a_folder_from_the_cache_without_a_network(cached, repository, tmp_path, capsys):
    assert main(["weights", "fetch", NAME, "--to", str(tmp_path / "resnet")]) == 0
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "resnet").iterdir()} == {
        n: repository[n] for n in names
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/nothing", r"nobody/nothing: cannot be downloaded \(RepositoryNotFoundError"),
        ("resnet-mini", "resnet-mini: no weights are published; presets with weights: resnet-18, resnet-34"),
        ("a/b/c", "a/b/c: is no repository of the Hugging Face hub"),
    ],
)
def test_absent_weights_are_one_line(hub, name, message, tmp_path, caplog):
    assert main(["weights", "fetch", name, "--to", str(tmp_path / "w.safetensors")]) == 1
    (error,) = caplog.messages
    assert re.search(message, error)
    assert "\n" not in error


def test_a_file_without_recorded_preprocessing_is_a_warning(tmp_path, caplog):
    build_model(ModelParams(preset="resnet-mini"), ["a", "b"], 1).save_pretrained(tmp_path)
    find_weights(ModelParams(preset="resnet-mini", weights=str(tmp_path / "model.safetensors")))
    assert "are not recorded, so images are normalised as for random weights; they belong into" in caplog.text
    assert f"{tmp_path}/model.safetensors.preprocessor_config.json" in caplog.text
