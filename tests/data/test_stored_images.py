"""Damaged bytes of prepared images are found when an image is first read, whoever reads it."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

from udc_model.config import DataParams, Params
from udc_model.data.augmentation import Augmentation
from udc_model.data.batches import TrainingBatches
from udc_model.data.logits import compute_logits
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare

_FLIPS = 100 if os.environ.get("UDC_FAULTS") == "all" else 4
_DAMAGED = r"train\.npy: image (\d+) differs from its checksum: .*`dvc checkout data/prepared`"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, shapes_at):
    root = tmp_path_factory.mktemp("shapes")
    workspace = Workspace(root / "out")
    prepare(Params(data=DataParams(source="folder", path=str(shapes_at(root / "raw")), image_size=16)), workspace)
    return workspace.prepared


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "prepared")


def _flip(path, rng, count=1):
    """Flip ``count`` bits after the header of an array; returns the rows of the changed images."""
    contents = bytearray(path.read_bytes())
    size, rows = 16 * 16 * 3, set()
    for _ in range(count):
        position = int(rng.integers(128, len(contents)))
        contents[position] ^= 1 << int(rng.integers(8))
        rows.add((position - 128) // size)
    path.write_bytes(contents)
    return rows


def _read_all(folder, workers=0):
    dataset = PackedDataset.open(folder)
    batches = TrainingBatches(dataset.split("train"), dataset.preprocessing, Augmentation(), 8, 0, workers=workers)
    for _ in batches.load(0, 0, torch.device("cpu")):
        pass


@pytest.mark.parametrize("number", range(_FLIPS))
def test_a_flipped_bit_is_found_in_the_first_epoch(folder, number):
    rows = _flip(folder / "train.npy", np.random.default_rng(number))
    with pytest.raises(UdcError, match=_DAMAGED) as error:
        _read_all(folder)
    assert {int(re.search(_DAMAGED, str(error.value))[1])} == rows


def test_forty_flipped_bytes_are_found_by_loader_workers(folder, rng):
    rows = _flip(folder / "train.npy", rng, 40)
    with pytest.raises(UdcError, match=_DAMAGED) as error:
        _read_all(folder, workers=2)
    assert "\n" not in str(error.value)
    assert int(re.search(_DAMAGED, str(error.value))[1]) in rows


@pytest.mark.parametrize("read", [
    lambda split, preprocessing: compute_logits(lambda x: x.flatten(1), split.images[:], preprocessing, 8),
    lambda split, preprocessing: np.asarray(split.images),
    lambda split, preprocessing: list(split.images),
])  # fmt: skip
def test_every_way_to_read_finds_it(folder, rng, read):
    _flip(folder / "train.npy", rng)
    dataset = PackedDataset.open(folder)
    with pytest.raises(UdcError, match=_DAMAGED):
        read(dataset.split("train"), dataset.preprocessing)


def test_slices_are_lazy_and_equal_the_array(folder, rng):
    expected = np.load(folder / "train.npy")
    images = PackedDataset.open(folder).split("train").images
    assert images.shape == expected.shape == (36, 16, 16, 3)
    assert (np.array(images[5:9][1:3]) == expected[6:8]).all()
    assert (images[np.array([7, 3, 3])] == expected[[7, 3, 3]]).all()
    assert (images[-1] == expected[-1]).all()
    _flip(folder / "train.npy", rng)
    damaged = PackedDataset.open(folder).split("train").images
    assert len(damaged[2:20]) == 18  # nothing was read


def test_processes_share_what_was_checked(folder):
    dataset = PackedDataset.open(folder)
    split = dataset.split("train")
    batches = TrainingBatches(split, dataset.preprocessing, Augmentation(), 8, 0, workers=1)
    list(batches.load(0, 0, torch.device("cpu")))
    assert split.images._is_checked.all()


@pytest.mark.parametrize("position", [1 / 3, 2 / 3])
@pytest.mark.parametrize("name", ["manifest.csv", "dataset.json", "image_checksums.npy", "checksums.json"])
def test_flipped_bits_of_the_other_files_are_found(folder, name, position):
    path = folder / name
    contents = bytearray(path.read_bytes())
    contents[int(len(contents) * position)] ^= 1
    path.write_bytes(contents)
    with pytest.raises(UdcError, match=r"`dvc checkout data/prepared`"):
        _read_all(folder)


@pytest.mark.parametrize("damage", [
    lambda path: np.save(path, np.zeros((36, 16, 16, 3))),
    lambda path: np.save(path, np.zeros((36, 16, 16, 1), np.uint8)),
    lambda path: np.save(path, np.zeros((35, 16, 16, 3), np.uint8)),
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(b""),
    lambda path: path.unlink(),
    lambda path: np.save(path, np.array([{}]), allow_pickle=True),
])  # fmt: skip
def test_arrays_of_another_type_or_shape_are_refused(folder, damage):
    damage(folder / "train.npy")
    with pytest.raises(UdcError, match=r"train\.npy: (contains|cannot be read).*`dvc checkout data/prepared`"):
        _read_all(folder)


def test_data_of_earlier_versions_are_read(folder, rng):
    for name in ("checksums.json", "image_checksums.npy"):
        (folder / name).unlink()
    _flip(folder / "train.npy", rng)
    _read_all(folder)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("train,0,", "trian,0,", r"manifest\.csv, line 2: split is 'trian'; allowed: train"),
    (",bar,", ",baz,", r"manifest\.csv, line 2: label is 'baz'; allowed: bar, dot"),
    ("sha256", "sha1", r"manifest\.csv: has no column sha256"),
    ("train,0,", "train,x,", r"manifest\.csv: is damaged"),
])  # fmt: skip
def test_a_changed_manifest_is_refused(folder, old, new, message):
    (folder / "checksums.json").unlink()
    path = folder / "manifest.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UdcError, match=message):
        PackedDataset.open(folder)


def test_a_pattern_that_prepare_does_not_propose_is_refused(folder):
    (folder / "checksums.json").unlink()
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"group_proposal": "(a+)+$"}))
    with pytest.raises(UdcError, match=r"group_proposal.*is no pattern that stage prepare proposes"):
        PackedDataset.open(folder)
