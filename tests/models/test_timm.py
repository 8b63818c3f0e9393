"""Networks of timm: their outputs, folders, foreign checkpoints, groups of layers, and names that must be refused."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from udc_model.config import ModelParams, validate_params
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.inference.exports.decision_graph import Network
from udc_model.inference.exports.onnx_file import network_onnx, save_onnx
from udc_model.model_files.settings import check_settings
from udc_model.model_files.shapes import expected_shapes
from udc_model.models import Ensemble, build_model, load_model
from udc_model.models.checkpoints import load_weights
from udc_model.models.pretrained import find_weights, resolve_weights, weights_name
from udc_model.training.setup import load_initial_weights

timm = pytest.importorskip("timm")
CLASSES = ["a", "b", "c"]
NAMES = ["test_efficientnet", "test_convnext", "resnet10t", "test_vit"]
IMAGES = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def _params(name="test_efficientnet", weights=None, **settings):
    return ModelParams(model_type="timm", timm={"name": name, **settings}, weights=weights)


def _timm_model(name, num_classes=3):
    torch.manual_seed(3)
    return timm.create_model(name, num_classes=num_classes).eval()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_timm_gives_the_logits_of_timm(name, suffix, tmp_path):
    theirs, path = _timm_model(name), tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, path)
    else:
        save_file(theirs.state_dict(), path)
    ours = build_model(_params(name), CLASSES, 1).eval()
    report = load_weights(ours, path)
    assert (report.layout, report.missing, report.skipped) == ("timm", [], {})
    assert torch.equal(ours(IMAGES).logits, theirs(IMAGES))


def test_a_head_of_other_classes_is_left_out(tmp_path):
    save_file(_timm_model("test_efficientnet", 1000).state_dict(), tmp_path / "w.safetensors")
    report = load_weights(build_model(_params(), CLASSES, 1), tmp_path / "w.safetensors")
    assert report.missing == ["classifier.bias", "classifier.weight"]
    assert report.skipped["classifier.weight"] == "head for 1000 classes, the model has 3"


@pytest.mark.parametrize("name", [*NAMES, "test_vit2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_and_shapes_are_those_of_the_network(name, channels, tmp_path):
    model = build_model(_params(name, num_channels=channels), CLASSES, 1).eval()
    shapes = expected_shapes(check_settings(json.loads(json.dumps(model.config.to_dict())), "config.json", ""))
    assert dict(shapes) == {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    images = IMAGES[:, :channels]
    assert torch.equal(load_model(tmp_path)(images).logits, model(images).logits)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.slow
def test_a_network_with_constants_that_are_not_stored_is_loaded(tmp_path):
    """Swin computes its attention masks when it is built."""
    model = build_model(_params("swin_tiny_patch4_window7_224"), CLASSES, 1).eval()
    model.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(load_model(tmp_path)(images).logits, model(images).logits)


def test_the_seed_determines_the_weights():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = [build_model(_params(), CLASSES, seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert not torch.equal(models[0]["classifier.weight"], models[2]["classifier.weight"])
    assert not torch.equal(models[0]["timm.network.conv_stem.weight"], models[2]["timm.network.conv_stem.weight"])


def test_an_ensemble_averages_its_members(tmp_path):
    members = [build_model(_params(), CLASSES, seed).eval() for seed in (1, 2)]
    model = Ensemble.of_members(members[0].config, [0.5, 2.0], [member.state_dict() for member in members])
    expected = sum((m(IMAGES).logits / t).softmax(dim=1) for m, t in zip(members, (0.5, 2.0), strict=True)) / 2
    model.save_pretrained(tmp_path)
    assert torch.allclose(load_model(tmp_path)(IMAGES).logits.exp(), expected, atol=1e-6)


@pytest.mark.slow
def test_onnx_gives_equal_logits(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build_model(_params(), CLASSES, 1).eval()
    save_onnx(network_onnx(Network(model), IMAGES[:, :, :32, :32]), tmp_path / "model.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = IMAGES[:, :, :32, :32]
    (logits,) = session.run(None, {"pixel_values": images.numpy()})
    assert np.allclose(logits, model(images).logits.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stages", "layers"), [("test_efficientnet", 5, 7), ("test_convnext", 5, 12), ("resnet10t", 4, 6)]
)
def test_each_weight_is_in_one_group(name, stages, layers):
    model = build_model(_params(name), CLASSES, 1)
    for groups, count, module in ((model.stages(), stages, model.timm), (model.layers(), layers, model)):
        weights = [id(weight) for group in groups for each in group for weight in each.parameters()]
        assert (len(groups), len(weights)) == (count, len(set(weights)))
        assert set(weights) == {id(weight) for weight in module.parameters()}


def test_what_timm_does_not_support_is_one_error():
    vit = build_model(_params("test_vit"), CLASSES, 1)
    for groups in (vit.stages, vit.layers):
        with pytest.raises(UdcError, match=r"^model.timm.name: .* use train.num_frozen_stages 0 or all, "):
            groups()
    with pytest.raises(UdcError, match=r"^train.gradient_checkpointing: is not available for model_type timm"):
        vit.gradient_checkpointing_enable()
    vit.gradient_checkpointing_enable(False)
    with pytest.raises(UdcError, match=r"^model.timm: vgg11 cannot be used with num_channels 3 and drop_path"):
        build_model(_params("vgg11", drop_path_rate=0.1), CLASSES, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lite9", r"model.timm.name: timm .* has no network 'efficientnet_lite9'; did you mean .*lite"),
        ("resnet50.b9_in1k", r"model.timm.name: no weights 'b9_in1k' are published for resnet50; there are: .*a1_in1k"),
    ],
)
def test_unknown_names_are_refused_before_training(name, message):
    with pytest.raises(UdcError, match=message):
        build_model(_params(name), CLASSES, 1)
    with pytest.raises(UdcError, match=message):
        resolve_weights(_params(name))


@pytest.mark.parametrize("name", ["hf-hub:someone/evil", "local-dir:/tmp/evil", "../x", "", "a" * 200, 5, None])
def test_names_that_are_no_names_are_refused(name, tmp_path):
    with pytest.raises(UdcError, match=r"model\.timm\.name"):
        validate_params({"model": {"timm": {"name": name}}}, "test")
    build_model(_params(), CLASSES, 1).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"name": name}))
    with pytest.raises(UdcError, match=r"config\.json: name: "):
        load_model(tmp_path)


def test_weights_of_another_network_are_refused_by_their_header(tmp_path, monkeypatch):
    build_model(_params(), CLASSES, 1).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"name": "vit_giant_patch14_224"}))
    with pytest.raises(UdcError, match=r"has no weight timm.network.cls_token \(1, 1, 1408\), which config.json"):
        load_model(tmp_path)


def test_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UdcError, match=r"timm: needs the extra timm: pip install 'udc-model\[timm\]'$"):
        build_model(_params(), CLASSES, 1)


def test_normalisation_is_that_of_the_published_weights(tmp_path, caplog):
    """timm's test_convnext was trained on images of 160 px with the mean 0.5, most others with ImageNet's mean."""
    path = tmp_path / "w.safetensors"
    for name, mean, std in (
        ("test_convnext", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("test_efficientnet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        save_file(_timm_model(name).state_dict(), path)
        params = _params(name, weights=str(path))
        _, preprocessing = load_initial_weights(build_model(params, CLASSES, 1), params, Preprocessing(32))
        assert (preprocessing.mean, preprocessing.std) == (mean, std)
    assert "trained on images of 160 px, but data.image_size is 32" in caplog.text


def test_auto_is_the_repository_of_timm(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert weights_name(_params("efficientnet_lite0", "auto")) == "timm/efficientnet_lite0.ra_in1k"
    assert weights_name(_params("resnet50.a2_in1k", "auto")) == "timm/resnet50.a2_in1k"
    with pytest.raises(UdcError, match=r"timm/test_efficientnet.r160_in1k \(model.safetensors, \d+ MB\) is"):
        find_weights(_params(weights="auto"))
    snapshot = tmp_path / "hub/models--timm--test_efficientnet.r160_in1k/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    save_file(_timm_model("test_efficientnet", 1000).state_dict(), snapshot / "model.safetensors")
    params = _params(weights="auto")
    model = build_model(params, CLASSES, 1)
    report, _ = load_initial_weights(model, params, Preprocessing(160))
    assert report.missing == ["classifier.bias", "classifier.weight"]
    stem = load_file(snapshot / "model.safetensors")["conv_stem.weight"]
    assert torch.equal(model.state_dict()["timm.network.conv_stem.weight"], stem)
