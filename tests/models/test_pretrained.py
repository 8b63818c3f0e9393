"""Tests of published weights: found in caches, rejected if damaged, with instructions if they cannot be downloaded."""

import hashlib
import sys
import types
from urllib.error import URLError

import pytest
import torch
import torchvision

from udc_model.config import ModelParams
from udc_model.config.presets import PRESETS
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.models.pretrained import find_weights
from udc_model.training.setup import load_initial_weights

RESNET_18 = ModelParams(preset="resnet-18", weights="imagenet", download=True)
PREPROCESSING = Preprocessing(32)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def hub_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "hub"


def _put_resnet18(folder, monkeypatch):
    """Put a random resnet18 where torchvision stores its ImageNet weights, with the matching hash in its name."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    path = folder / f"resnet18-{digest[:8]}.pth"
    (folder / "weights.pth").rename(path)
    weights = types.SimpleNamespace(
        url=f"https://example.org/models/{path.name}",
        transforms=torchvision.models.ResNet18_Weights.DEFAULT.transforms,
    )
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda name: types.SimpleNamespace(DEFAULT=weights))
    return path


def test_imagenet_weights_load_from_the_torch_cache(torch_home, monkeypatch):
    path = _put_resnet18(torch_home, monkeypatch)
    model = build_model(RESNET_18, ["a", "b", "c"], 1)
    report, preprocessing = load_initial_weights(model, RESNET_18, PREPROCESSING)
    assert report.missing == ["classifier.1.bias", "classifier.1.weight"]
    assert report.path == str(path)
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert preprocessing.std == (0.229, 0.224, 0.225)
    assert preprocessing.size == 32


def test_damaged_file_in_the_cache_raises(torch_home, monkeypatch):
    path = _put_resnet18(torch_home, monkeypatch)
    with path.open("ab") as handle:
        handle.write(b"x")
    with pytest.raises(UdcError, match=rf"{path.name} is damaged"):
        find_weights(RESNET_18)


@pytest.mark.parametrize("preset", [name for name, each in PRESETS.items() if each.published and "xlarge" not in name])
def test_error_without_network_names_url_and_cache_path(preset, torch_home, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    params = ModelParams(model_type=PRESETS[preset].model_type, preset=preset, weights="imagenet", download=True)
    name = preset.replace("resnet-", "resnet").replace("-", "_")
    with pytest.raises(UdcError) as error:
        find_weights(params)
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    assert f"{url} cannot be downloaded" in str(error.value)
    assert f"copy it to {torch_home / url.rsplit('/', 1)[-1]}" in str(error.value)


@pytest.mark.parametrize("preset", ["resnet-mini", "resnet-small", "convnext-mini", "convnext-xlarge"])
def test_size_without_imagenet_weights_raises(preset):
    params = ModelParams(model_type=PRESETS[preset].model_type, preset=preset, weights="imagenet")
    with pytest.raises(UdcError, match=f"no ImageNet weights for a {preset}"):
        find_weights(params)


def _put_in_hub_cache(hub, name):
    """Create a repository in the layout of the Hugging Face cache."""
    params = ModelParams(model_type="convnext", preset="convnext-mini")
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    build_model(params, ["x", "y"], 7).save_pretrained(snapshot)
    Preprocessing(64, crop_pct=0.875, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).save(snapshot)
    return snapshot


def test_hub_name_loads_from_the_cache(hub_home, caplog):
    snapshot = _put_in_hub_cache(hub_home, "someone/convnext-beetles")
    params = ModelParams(model_type="convnext", preset="convnext-mini", weights="someone/convnext-beetles")
    report, preprocessing = load_initial_weights(build_model(params, ["x", "y"], 1), params, PREPROCESSING)
    assert (report.path, report.missing, report.skipped) == (str(snapshot), [], {})
    assert (preprocessing.mean, preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert "trained on images of 64 px" in caplog.text


def test_hub_names_determine_the_architecture():
    assert ModelParams(weights="microsoft/resnet-18").architecture.hidden_sizes == [64, 128, 256, 512]
    convnext = ModelParams(model_type="convnext", weights="facebook/convnext-base-224-22k")
    assert convnext.architecture.hidden_sizes == [128, 256, 512, 1024]
    assert convnext.architecture.depths == [3, 3, 27, 3]
    with pytest.raises(ValueError, match="is a convnext, but model_type is resnet"):
        ModelParams(weights="facebook/convnext-tiny-224")
    with pytest.raises(ValueError, match="no architecture is called"):
        ModelParams(preset="resnet-51")


def test_imagenet_weights_are_not_downloaded_unless_asked(torch_home):
    with pytest.raises(UdcError) as error:
        find_weights(RESNET_18.model_copy(update={"download": False}))
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    assert str(error.value) == (
        f"model.weights: imagenet: {url} is not in torch's cache, and model.download is false; set model.download: "
        f"true, or download it on another machine and copy it to {torch_home / url.rsplit('/', 1)[-1]}; "
        "model.weights: null trains from random weights"
    )


def test_missing_path_is_not_looked_up_on_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    params = ModelParams(preset="resnet-mini", weights="weights/resnet.pth")
    with pytest.raises(UdcError, match=r"weights/resnet.pth: no such file"):
        load_initial_weights(build_model(params, ["a", "b"], 1), params, PREPROCESSING)


def test_include_and_exclude_select_weights(tmp_path):
    params = ModelParams(preset="resnet-mini", weights=str(tmp_path))
    build_model(params, ["a", "b"], 7).save_pretrained(tmp_path)

    def load(**patterns):
        model = build_model(params, ["a", "b"], 1)
        return load_initial_weights(model, params.model_copy(update=patterns), PREPROCESSING)[0]

    report = load(weights_include=["resnet.embedder.*", "resnet.encoder.stages.0.*"], weights_exclude=["*.layer.1.*"])
    assert report.loaded
    assert all(key.startswith(("resnet.embedder", "resnet.encoder.stages.0")) for key in report.loaded)
    assert not any(".layer.1." in key for key in report.loaded)
    assert "resnet.encoder.stages.0.layers.0.layer.1.convolution.weight" in report.missing
    assert "matches no pattern of model.weights_include" in report.skipped["classifier.1.weight"]
    excluded = report.skipped["resnet.encoder.stages.0.layers.0.layer.1.convolution.weight"]
    assert "excluded by model.weights_exclude" in excluded
    with pytest.raises(UdcError, match="exclude all weights"):
        load(weights_include=["nothing.*"])
    with pytest.raises(ValueError, match="but weights is null"):
        ModelParams(weights_exclude=["classifier.*"])
