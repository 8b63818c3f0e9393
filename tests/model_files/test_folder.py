"""A damaged byte of a model folder is found, and model folders of earlier versions are read."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from udc_model.checksums import write_checksums
from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.files import sha256_of
from udc_model.model_files.folder import CONFIG, PREPROCESSOR, WEIGHTS, ModelFolder
from udc_model.models import build_model, load_model
from udc_model.models.factory import model_of_folder

_FLIPS = 100 if os.environ.get("UDC_FAULTS") == "all" else 4


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    build_model(ModelParams(resnet=resnet), ["a", "b"], 0).save_pretrained(folder)
    Preprocessing(8).save(folder)
    write_checksums(folder, [CONFIG, PREPROCESSOR, WEIGHTS])
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "model")


def _flip(path, rng):
    contents = bytearray(path.read_bytes())
    contents[int(rng.integers(len(contents)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(contents)


@pytest.mark.parametrize("number", range(_FLIPS))
def test_a_flipped_bit_of_the_weights_is_found(folder, number):
    _flip(folder / WEIGHTS, np.random.default_rng(number))
    with pytest.raises(UdcError, match=r"model\.safetensors: .*`dvc checkout model`"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(("name", "read"), [(CONFIG, ModelFolder.open), (PREPROCESSOR, Preprocessing.load)])
def test_a_changed_setting_is_found(folder, name, read):
    path = folder / name
    path.write_text(path.read_text().replace('"relu"', '"gelu"').replace("0.5", "0.6"))
    with pytest.raises(UdcError, match=rf"{name}: differs from its checksum in checksums\.json"):
        read(folder)


def test_folders_of_earlier_versions_are_read(folder):
    (folder / "checksums.json").unlink()
    _flip_last_weight(folder / WEIGHTS)
    assert ModelFolder.open(folder).classes == ["a", "b"]


def test_without_a_crc32_the_sha256_is_compared(folder):
    path = folder / "checksums.json"
    path.write_text(json.dumps({"sha256": json.loads(path.read_text())["sha256"]}))
    assert ModelFolder.open(folder).weights_sha256 == sha256_of(folder / WEIGHTS)
    _flip_last_weight(folder / WEIGHTS)
    with pytest.raises(UdcError, match=r"model\.safetensors: differs from its checksum"):
        ModelFolder.open(folder)


def _flip_last_weight(path):
    contents = bytearray(path.read_bytes())
    contents[-4] ^= 1
    path.write_bytes(contents)


def test_loading_changes_neither_weights_nor_the_random_generator(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = load_model(folder)
    assert torch.equal(torch.rand(1), expected)
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    built = build_model(ModelParams(resnet=resnet), ["a", "b"], 0).eval()
    assert not model.training
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), built.state_dict().items(), strict=True):
        assert name == other
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
    model.save_pretrained(folder)
    assert (folder / WEIGHTS).read_bytes() == ModelFolder.open(folder).weights


def test_weights_in_half_precision_are_loaded_in_single_precision(folder):
    from safetensors.torch import load_file, save_file

    halves = {name: x.half() if x.is_floating_point() else x for name, x in load_file(folder / WEIGHTS).items()}
    save_file(halves, folder / WEIGHTS)
    (folder / "checksums.json").unlink()
    model = model_of_folder(ModelFolder.open(folder))
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32, torch.int64}


def test_another_number_of_classes_is_one_line_with_both_shapes(folder):
    (folder / "checksums.json").unlink()
    path = folder / CONFIG
    settings = json.loads(path.read_text()) | {"id2label": {"0": "a", "1": "b", "2": "c"}}
    settings["label2id"] = {name: int(i) for i, name in settings["id2label"].items()}
    path.write_text(json.dumps(settings))
    message = r"classifier\.1\.weight has the shape \(2, 16\), but config\.json describes \(3, 16\); restore the model"
    with pytest.raises(UdcError, match=message):
        load_model(folder)
