"""Reproduction: reading the parameters of old runs, and the report."""

import json
from types import SimpleNamespace

import pytest
import torch
from dvc.repo import Repo

from udc_model.config import ModelParams, TrainParams
from udc_model.errors import UdcError
from udc_model.experiments import reproduction
from udc_model.experiments.reproduction import Reproduction, _check_data, _check_weights, _metric_differences, _raw_data
from udc_model.files import sha256_of
from udc_model.models import build_model
from udc_model.tracking.provenance import dvc_hash
from udc_model.training.hardware import pick_hardware


def test_raw_data_ignores_parameters_that_do_not_exist_any_more(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("data: {source: folder, path: data/raw, gone: 1}\nloss: {reads: loss}\n")
    source, folder = _raw_data(path)
    assert (source, str(folder)) == ("folder", "data/raw")


@pytest.mark.parametrize("text", ["", "data: {source: folder}", "data: 1", "data: ["])
def test_raw_data_raises_for_files_without_source_and_path(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UdcError, match=r"data\.source and data\.path cannot be read"):
        _raw_data(path)


def _run(**tags):
    return SimpleNamespace(info=SimpleNamespace(run_id="1"), data=SimpleNamespace(tags=tags))


@pytest.fixture
def clone(tmp_path):
    """A clone without data, whose repository has images."""
    for name in ("root", "clone"):
        (tmp_path / name).mkdir(exist_ok=True)
        Repo.init(str(tmp_path / name), no_scm=True).close()
    (tmp_path / "clone/dvc.yaml").write_text(
        "stages: {prepare: {cmd: prepare, deps: ['${data.path}/a'], outs: [prepared]}}\n")  # fmt: skip
    (tmp_path / "clone/params.yaml").write_text("data: {source: folder, path: data/raw}\n")
    (tmp_path / "root/data/raw/a").mkdir(parents=True)
    (tmp_path / "root/data/raw/a/1.png").write_bytes(b"image")
    return tmp_path / "clone"


def test_the_hash_of_the_data_is_compared(clone):
    root = clone.parent / "root"
    (clone / "data").mkdir()
    (clone / "data/raw").symlink_to(root / "data/raw")
    recorded = dvc_hash(root / "data/raw")
    run = _run(**{"dvc.data": json.dumps({"data/raw": recorded})})
    assert _check_data(run, root, clone) == f"data/raw, in {root}/data/raw, DVC hash {recorded} as recorded"
    (root / "data/raw/a/1.png").write_bytes(b"other")
    with pytest.raises(UdcError) as error:
        _check_data(run, root, clone)
    changed = dvc_hash(root / "data/raw")
    assert str(error.value) == (
        f"data/raw: the images differ from those of run 1: DVC hash {changed} (in {root}/data/raw), "
        f"was {recorded}; restore them, or run the experiment again"
    )
    assert _check_data(_run(), root, clone).endswith("its hash was not recorded, so it is not compared")
    (root / "data/raw/a/2.png").write_bytes(b"more")
    with pytest.raises(UdcError, match="the images differ"):
        _check_data(run, root, clone)


def test_the_weights_of_the_run_are_demanded(clone):
    """By a relative path, of a file that git and DVC do not track: the one in the repository is used."""
    root, params = clone.parent / "root", ModelParams(preset="resnet-mini")
    (root / "weights").mkdir()
    build_model(params, ["a", "b"], 1).save_pretrained(root / "weights")
    (clone / "params.yaml").write_text("model: {preset: resnet-mini, weights: weights}\n")
    recorded = sha256_of(root / "weights/model.safetensors")
    run = _run()
    run.data.params = {"model.weights": "weights", "model.weights_sha256": recorded}
    _check_weights(run, root, clone)
    assert (clone / "weights").resolve() == root / "weights"
    build_model(params, ["a", "b"], 2).save_pretrained(root / "weights")
    other = sha256_of(root / "weights/model.safetensors")
    with pytest.raises(UdcError, match=rf"^run 1 cannot be reproduced: model.weights: .*is {other}, .* is {recorded};"):
        _check_weights(run, root, clone)
    run.data.params = {"model.weights": "null", "model.weights_sha256": "null"}
    _check_weights(run, root, clone)
    run.data.params = {"model.weights": "weights"}  # of a version that recorded no digest
    _check_weights(run, root, clone)


def test_digits_need_no_data(clone):
    (clone / "params.yaml").write_text("data: {source: digits, path: data/raw}\n")
    assert _check_data(_run(), clone, clone) == "scikit-learn's digits"


def test_data_that_dvc_cannot_find_is_named_with_hash_and_places(clone, monkeypatch):
    (clone / "data").mkdir()
    (clone / "data/raw.dvc").write_text("outs:\n- md5: abc.dir\n  path: raw\n")

    def dvc(folder, *arguments):
        raise UdcError("dvc pull failed in clone:\nERROR: No remote provided")

    monkeypatch.setattr(reproduction, "_dvc", dvc)
    with pytest.raises(UdcError) as error:
        reproduction._fetch_data(clone.parent / "root", clone, None)
    assert str(error.value).splitlines() == [
        f"data of the run is neither in DVC's cache {clone.parent}/root/.dvc/cache nor in a remote:",
        "  data/raw, DVC hash abc.dir",
        "run `dvc push` where the data is, then `dvc pull` here (ERROR: No remote provided)",
    ]


def test_only_data_that_a_stage_reads_and_weights_are_pulled(clone, monkeypatch):
    for name in ("data/raw", "weights/resnet", "others/photographs"):
        (clone / name).parent.mkdir(exist_ok=True)
        out = clone / f"{name}.dvc"
        out.write_text(f"outs:\n- md5: {'0' * 32}.dir\n  path: {out.stem}\n")
    pulled = []
    monkeypatch.setattr(reproduction, "_dvc", lambda folder, *arguments: pulled.append(arguments))
    both = {"data/raw.dvc", "weights/resnet.dvc"}
    for weights, expected in {
        None: {"data/raw.dvc"},
        "weights/resnet": both,
        "weights/resnet/x.safetensors": both,
    }.items():
        reproduction._fetch_data(clone.parent / "root", clone, weights)
        assert set(pulled.pop()[2:]) == expected


def test_cache_and_remotes_of_the_repository_are_those_of_the_clone(clone):
    """Also those in the user's own file, and relative paths."""
    root = clone.parent / "root"
    (root / ".dvc/config").write_text(
        "[core]\n    no_scm = true\n    remote = team\n['remote \"team\"']\n    url = ../../storage\n"
    )
    (root / ".dvc/config.local").write_text(
        "[cache]\n    dir = ../../shared\n    type = symlink\n['remote \"team\"']\n    verify = true\n"
        "['remote \"mine\"']\n    url = s3://bucket/data\n")  # fmt: skip
    (clone / ".dvc/config").write_text((root / ".dvc/config").read_text())
    reproduction._fetch_data(root, clone, None)
    with Repo(str(clone)) as repository:
        assert repository.cache.local_cache_dir == str(clone.parent / "shared")
        assert repository.config["cache"]["type"] == ["symlink"]
        assert repository.config["remote"]["team"]["url"] == str(clone.parent / "storage")
        assert repository.config["remote"]["team"]["verify"] is True
        assert repository.config["remote"]["mine"]["url"] == "s3://bucket/data"


def test_a_pipeline_that_dvc_cannot_read_is_named(clone, monkeypatch):
    (clone / "dvc.yaml").write_text("stages: 1\n")
    with pytest.raises(UdcError, match=r"^the pipeline of the run cannot be read: .*dvc\.yaml"):
        reproduction._fetch_data(clone.parent / "root", clone, None)


def test_data_that_is_nowhere_is_named_with_the_place(clone, monkeypatch):
    root = clone.parent / "root"
    reproduction._fetch_data(root, clone, None)
    assert (clone / "data/raw").resolve() == root / "data/raw"
    (clone / "data/raw").unlink()
    (root / "data/raw/a/1.png").unlink()
    with pytest.raises(UdcError, match=f"^data/raw: .* neither in git or DVC at its commit nor in {root}/data/raw$"):
        reproduction._fetch_data(root, clone, None)
    (clone / "params.yaml").write_text("data: {source: csv, path: /nowhere/images}\n")
    with pytest.raises(UdcError, match=r"^/nowhere/images: .* nor in /nowhere/images$"):
        reproduction._fetch_data(root, clone, None)


def test_the_pipeline_runs_with_the_recorded_number_of_threads(clone, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(reproduction, "_checked", lambda command, folder, env: env["OMP_NUM_THREADS"])
    assert reproduction._dvc(clone, "repro", threads="7") == "7"
    assert reproduction._dvc(clone, "repro") == "3"  # of a GPU run, which records none


def test_metric_differences_lists_changed_and_missing_metrics():
    recorded = {"test/accuracy": 0.5, "test/mean_cost": 1.0, "validation/accuracy": 0.5}
    metrics = {"test/accuracy": 0.75, "test/mean_cost": 1.0}
    assert list(_metric_differences(recorded, metrics)) == [
        "test/accuracy: 0.75, was 0.5 (+0.25)",
        "validation/accuracy: None, was 0.5",
    ]


def test_report_begins_with_the_result():
    assert Reproduction("1").to_text().startswith("identical: run 1 ")
    different = Reproduction("1", ["weights: a, was b"]).to_text()
    assert different.startswith("different: run 1 ")
    assert different.endswith("changed since the run:\n  nothing that is recorded\n")
    unrecorded = Reproduction("1", ["weights: a, was b"], [], ["instructions: AVX2; …"]).to_text()
    assert unrecorded.endswith("  nothing that is recorded\n  instructions: AVX2; …\n")


@pytest.mark.parametrize(("recorded", "is_named"), [
    ({"device": "cpu"}, True), ({"device": "cpu", "instructions": "AVX512"}, False), ({"device": "NVIDIA H200"}, False),
])  # fmt: skip
def test_a_processor_that_an_earlier_version_did_not_record_is_named(recorded, is_named):
    assert [line.partition(":")[0] for line in reproduction._unrecorded(recorded)] == ["instructions"] * is_named


def test_another_instruction_set_is_a_change(monkeypatch):
    now = pick_hardware(TrainParams(device="cpu")).describe()
    assert now["instructions"] == torch.backends.cpu.get_cpu_capability()
    names = reproduction._HARDWARE
    assert list(reproduction._differences(now | {"instructions": "AVX0"}, now, names)) == [
        f"instructions: {now['instructions']}, was AVX0"]  # fmt: skip


@pytest.mark.parametrize("command", [reproduction.reproduce, reproduction.check])
def test_a_fold_of_a_cross_validation_is_no_run_of_the_pipeline(monkeypatch, command):
    monkeypatch.setattr(reproduction, "resolve_run", lambda name: _run(fold="2 of repeat 1"))
    with pytest.raises(
        UdcError, match=r"^run 1 is fold 2 of repeat 1 of a cross-validation, which no pipeline makes; "
    ):
        command("1")
