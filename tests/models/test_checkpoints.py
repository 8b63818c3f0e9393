"""Tests of loading checkpoints: all layouts give equal logits, skipped keys are reported, pickled code is rejected."""

import os
import pickle
import zipfile

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from udc_model.config.presets import PRESETS
from udc_model.errors import UdcError
from udc_model.models import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)
from udc_model.models.checkpoints import load_weights

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _resnet(name="resnet-18", num_labels=1000):
    return ResNetForImageClassification(ResNetConfig(num_labels=num_labels, **PRESETS[name].settings)).eval()


def _small():
    return ResNetForImageClassification(ResNetConfig(num_labels=2, hidden_sizes=[8], depths=[1]))


def _convnext(num_labels=1000):
    return ConvNextForImageClassification(ConvNextConfig(num_labels=num_labels)).eval()


def _randomised(model):
    """Randomise norms and statistics too, so that a wrong key mapping changes the logits."""
    generator = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_((noise - 0.5) * 0.1 if value.ndim > 1 else noise + 0.5)
    return model.eval()


LIBRARIES = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(), lambda: _resnet("resnet-18")),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(), lambda: _resnet("resnet-50")),
    "torchvision convnext_tiny": (lambda: torchvision.models.convnext_tiny(), _convnext),
    "timm resnet18": (lambda: timm.create_model("resnet18"), lambda: _resnet("resnet-18")),
    "timm convnext_tiny": (lambda: timm.create_model("convnext_tiny"), _convnext),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_state_dicts_of_other_libraries_give_equal_logits(name, tmp_path):
    theirs, ours = (build() for build in LIBRARIES[name])
    _randomised(theirs)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    report = load_weights(ours, tmp_path / "weights.pth")
    assert not report.missing
    assert not report.skipped
    assert set(report.converted) == set(theirs.state_dict())
    assert set(report.converted.values()) == set(ours.state_dict()) == set(report.loaded)
    with torch.inference_mode():
        torch.testing.assert_close(ours(IMAGES).logits, theirs(IMAGES), rtol=1e-4, atol=1e-4)


def test_facebookresearch_checkpoint_gives_equal_logits(tmp_path):
    """The keys follow models/convnext.py of facebookresearch/ConvNeXt."""
    source = _randomised(_convnext(num_labels=7))
    renamed = {}
    for key, value in source.state_dict().items():
        for old, new in (
            ("convnext.embeddings.patch_embeddings", "downsample_layers.0.0"),
            ("convnext.embeddings.layernorm", "downsample_layers.0.1"),
            ("convnext.encoder.stages", "stages"), (".layers.", "."), ("layer_scale_parameter", "gamma"),
            (".layernorm.", ".norm."), ("convnext.norm", "norm"), ("classifier", "head"),
        ):  # fmt: skip
            key = key.replace(old, new)
        parts = key.split(".")
        if "downsampling_layer" in parts:
            key = f"downsample_layers.{parts[1]}.{parts[3]}.{parts[4]}"
        renamed[key] = value
    torch.save({"model": renamed}, tmp_path / "convnext_tiny.pth")
    model = _convnext(num_labels=7)
    report = load_weights(model, tmp_path / "convnext_tiny.pth")
    assert (report.layout, report.missing, report.skipped) == ("facebookresearch", [], {})
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES).logits, source(IMAGES).logits)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(prefix, tmp_path):
    source = _randomised(_resnet(num_labels=3))
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    report = load_weights(_resnet(num_labels=3), tmp_path / "last.ckpt")
    assert not report.missing
    assert not report.skipped


@pytest.mark.parametrize(("key", "others"), [
    ("model_state_dict", {"epoch": 3, "loss": torch.tensor(0.3)}), ("state_dict", {"epoch": torch.tensor(3)}),
])  # fmt: skip
def test_a_state_dict_beside_tensors_is_read(key, others, tmp_path):
    """The first is the checkpoint of PyTorch's tutorial."""
    source = _small()
    torch.save({**others, key: source.state_dict()}, tmp_path / "last.pt")
    report = load_weights(_small(), tmp_path / "last.pt")
    assert (set(report.loaded), report.skipped) == (set(source.state_dict()), {})


def test_a_checkpoint_that_contains_itself_has_no_weights(tmp_path):
    checkpoint = {}
    checkpoint["model"] = checkpoint
    torch.save(checkpoint, tmp_path / "last.pt")
    with pytest.raises(UdcError, match=r"no weight in .* matches the resnet"):
        load_weights(_small(), tmp_path / "last.pt")


def test_keys_without_the_prefix_of_the_model_are_skipped(tmp_path):
    """A module of Lightning has weights beside its model; one has the name of a weight of the model."""
    source = _small()
    wrapped = {f"model._orig_mod.{key}": value for key, value in source.state_dict().items()}
    beside = {"criterion.weight": torch.ones(2), "classifier.1.bias": torch.ones(2)}
    torch.save({"state_dict": wrapped | beside}, tmp_path / "last.ckpt")
    model = _small()
    report = load_weights(model, tmp_path / "last.ckpt")
    assert report.skipped == dict.fromkeys(beside, "the model has no such weight")
    assert report.converted["model._orig_mod.classifier.1.bias"] == "classifier.1.bias"
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


STEM = "resnet.embedder.embedder.convolution.weight"
COUNTER = "resnet.embedder.embedder.normalization.num_batches_tracked"


@pytest.mark.parametrize(("convert", "message"), [
    (lambda tensor: torch.full_like(tensor, torch.nan), "has values that are NaN, infinite or too large"),
    (lambda tensor: tensor.double() + 1e300, "has values that are NaN, infinite or too large"),
    (lambda tensor: tensor.to(torch.complex64), "has the type torch.complex64, the model has torch.float32"),
    (lambda tensor: tensor.to(torch.int8), "has the type torch.int8, the model has torch.float32"),
    (lambda tensor: tensor.to_sparse(), "is not a dense tensor with values"),
    (lambda tensor: tensor.to("meta"), "is not a dense tensor with values"),
])  # fmt: skip
def test_weights_that_are_no_finite_dense_floats_are_refused(convert, message, tmp_path):
    model, path = _small(), tmp_path / "weights.pt"
    state = model.state_dict()
    torch.save(state | {STEM: convert(state[STEM])}, path)
    with pytest.raises(UdcError, match=rf"weights\.pt: {STEM}: {message}"):
        load_weights(model, path)
    report = load_weights(model, path, exclude=[STEM])
    assert report.missing == [STEM]


def test_weights_and_counters_of_half_precision_are_loaded(tmp_path):
    state = {key: value.half() for key, value in _small().state_dict().items()} | {COUNTER: torch.tensor(7.0).half()}
    torch.save(state, tmp_path / "weights.pt")
    model = _small()
    assert not load_weights(model, tmp_path / "weights.pt").skipped
    assert torch.equal(model.state_dict()[COUNTER], torch.tensor(7))


def test_a_layer_scale_of_few_bytes_does_not_fill_the_memory(tmp_path):
    model = ConvNextForImageClassification(ConvNextConfig(num_stages=1, hidden_sizes=[8], depths=[1], num_labels=2))
    stem = model.state_dict()["convnext.embeddings.patch_embeddings.weight"]
    huge = torch.zeros(2, 1).expand(2, 10**13)  # 8 bytes in the file
    torch.save({"features.0.0.weight": stem, "features.1.0.layer_scale": huge}, tmp_path / "weights.pt")
    report = load_weights(model, tmp_path / "weights.pt")
    assert "shape (2, 10000000000000), the model has (8,)" in report.skipped["features.1.0.layer_scale"]


def test_head_for_other_classes_is_skipped_and_reported(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    report = load_weights(_resnet(num_labels=3), tmp_path / "resnet18.pth")
    assert report.skipped == dict.fromkeys(
        ("fc.weight", "fc.bias"), "head for 1000 classes, the model has 3"
    )  # fmt: skip
    assert report.missing == ["classifier.1.bias", "classifier.1.weight"]


def test_sharded_folder_loads_and_must_not_list_files_outside(tmp_path):
    source = _randomised(_resnet(num_labels=3))
    items = list(source.state_dict().items())
    shards = {"a.safetensors": dict(items[:40]), "b.safetensors": dict(items[40:])}
    for name, part in shards.items():
        save_file(part, tmp_path / name)
    weight_map = {key: name for name, part in shards.items() for key in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(__import__("json").dumps({"weight_map": weight_map}))
    model = _resnet(num_labels=3)
    assert not load_weights(model, tmp_path).missing
    index.write_text(__import__("json").dumps({"weight_map": {"x": "../a.safetensors"}}))
    with pytest.raises(UdcError, match="outside its folder"):
        load_weights(model, tmp_path)


def test_weights_of_another_architecture_raise(tmp_path):
    torch.save(torchvision.models.convnext_tiny().state_dict(), tmp_path / "convnext.pth")
    with pytest.raises(UdcError, match=r"no weight in .* matches the resnet"):
        load_weights(_resnet(), tmp_path / "convnext.pth")


class _Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_runs_code_raises_and_does_not_run(legacy, tmp_path):
    victim = tmp_path / "victim"
    torch.save(
        {"model": _Bomb(victim)}, tmp_path / "evil.bin", _use_new_zipfile_serialization=not legacy
    )  # fmt: skip
    with pytest.raises(UdcError, match="can execute code"):
        load_weights(_resnet(), tmp_path / "evil.bin")
    assert not victim.exists()
    # the test can fail: unpickling without protection runs the code
    pickle.loads(pickle.dumps(_Bomb(victim)))
    assert victim.exists()


@pytest.mark.parametrize(("name", "content"), [("a.pth", b"hello"), ("b.safetensors", b"hello"), ("c.bin", b"")])
def test_damaged_file_raises(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UdcError, match=name):
        load_weights(_resnet(), tmp_path / name)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_rgb_weights_start_a_grey_model(kind, tmp_path):
    """On grey images the logits are those of the RGB model on three equal channels, normalised alike."""
    if kind == "resnet":
        build, config, shape = ResNetForImageClassification, ResNetConfig, {"hidden_sizes": [16, 32], "depths": [1, 1]}
    else:
        build, config = ConvNextForImageClassification, ConvNextConfig
        shape = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
    colour = _randomised(build(config(num_labels=3, **shape)))
    grey = build(config(num_labels=3, num_channels=1, **shape)).eval()
    colour.save_pretrained(tmp_path)
    report = load_weights(grey, tmp_path)
    assert not report.skipped
    assert not report.missing
    assert f"{report.summed_channels} summed over its input channels for grey images" in report.summary()
    images = IMAGES[:, :1]
    expected = colour(images.expand(-1, 3, -1, -1)).logits
    torch.testing.assert_close(grey(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_grey_weights_do_not_start_an_rgb_model(tmp_path):
    shape = {"hidden_sizes": [16], "depths": [1], "num_labels": 2}
    ResNetForImageClassification(ResNetConfig(num_channels=1, **shape)).save_pretrained(tmp_path)
    report = load_weights(ResNetForImageClassification(ResNetConfig(**shape)), tmp_path)
    assert "shape (64, 1, 7, 7), the model has (64, 3, 7, 7)" in report.summary()


def _archive(path, compression=zipfile.ZIP_STORED, **entries):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, contents in entries.items():
            archive.writestr(f"archive/{name.replace('_', '.', 1)}", contents)


@pytest.mark.parametrize(("write", "message"), [
    (lambda path: _archive(path, zipfile.ZIP_DEFLATED, data_pkl=bytes(10**8)), "larger in memory than on disk"),
    (lambda path: _archive(path, data_pkl=bytes(2**24 + 1)), "more than 16,777,216 bytes of pickles"),
    (lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)), r"model\.weights: "),
    (lambda path: os.mkfifo(path), "no such file or folder"),
    (lambda path: path.symlink_to("/dev/zero"), "no such file or folder"),
    (lambda path: path.write_bytes(b"\x80\x02" + b"(" * 1000), r"model\.weights: "),
    (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**42), "but this machine has .* GiB"),
])  # fmt: skip
def test_files_that_would_fill_the_memory_are_refused(write, message, tmp_path):
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(UdcError, match=message) as error:
        load_weights(_resnet(num_labels=2), path)
    assert "\n" not in str(error.value)


def test_headers_of_safetensors_are_bounded(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(UdcError, match=r"is not a safetensors file: 10 bytes with a header of 1,099,511,627,776"):
        load_weights(_resnet(num_labels=2), path)


def test_a_damaged_index_of_shards_is_one_line(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}')
    with pytest.raises(UdcError, match=r"index\.json: weight_map\.a: got 5; allowed: text"):
        load_weights(_resnet(num_labels=2), tmp_path)
