"""Images in shards are read at random, and damaged or hostile shards are one error."""

import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udc_model.checksums import CHECKSUMS, write_checksums
from udc_model.data import packed
from udc_model.data.augmentation import Augmentation
from udc_model.data.batches import TrainingBatches
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError


@pytest.fixture
def folder(as_shards, tmp_path):
    return shutil.copytree(as_shards, tmp_path / "prepared")


def test_images_are_read_in_any_order(as_shards, as_pixels):
    expected = np.load(as_pixels / "train.npy")
    images = PackedDataset.open(as_shards).split("train").images
    assert images.shape == expected.shape
    assert len(images) == len(expected)
    rows = np.random.default_rng(0).integers(0, len(expected), 40)
    assert (images[rows] == expected[rows]).all()
    assert (images[-1] == expected[-1]).all()
    assert (images[5:9][1:3][np.array([1, 0])] == expected[[7, 6]]).all()
    assert (np.array(images) == expected).all()
    assert all((a == b).all() for a, b in zip(images, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_raw_arrays(as_shards, as_pixels, workers):
    def load(folder):
        dataset = PackedDataset.open(folder)
        augmentation = Augmentation(0.35, 4 / 3, True)
        batches = TrainingBatches(dataset.split("train"), dataset.preprocessing, augmentation, 16, 7, workers=workers)
        return [batch.images for epoch in (0, 1) for _, batch in batches.load(epoch, 1, torch.device("cpu"))]

    assert all(torch.equal(a, b) for a, b in zip(load(as_shards), load(as_pixels), strict=True))


def _read_all(folder: Path, workers: int) -> None:
    dataset = PackedDataset.open(folder)
    batches = TrainingBatches(dataset.split("train"), dataset.preprocessing, Augmentation(), 8, 0, workers=workers)
    list(batches.load(0, 0, torch.device("cpu")))


def _error_of(folder: Path, workers: int = 0) -> str:
    """The one-line error of reading all training images."""
    with pytest.raises(UdcError, match=r"dvc checkout data/prepared") as error:
        _read_all(folder, workers)
    assert "\n" not in str(error.value)
    return str(error.value)


def _first_place(folder: Path) -> tuple[Path, int, int]:
    """Shard, offset and length of the first training image."""
    place = np.load(folder / "train.npy")[0]
    shard = json.loads((folder / "shards.json").read_text())["shardlist"][place["shard"]]["url"]
    return folder / shard, int(place["offset"]), int(place["length"])


def _overwrite(folder: Path, content: bytes) -> None:
    """Put other bytes in the place of the first training image; the place gets their length."""
    path, offset, _ = _first_place(folder)
    shard = bytearray(path.read_bytes())
    shard[offset : offset + len(content)] = content
    path.write_bytes(shard)
    places = np.load(folder / "train.npy")
    places["length"][0] = len(content)
    np.save(folder / "train.npy", places)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_bit_of_an_image_is_found(folder, workers):
    path, offset, length = _first_place(folder)
    contents = bytearray(path.read_bytes())
    contents[offset + length - 10] ^= 4  # of the pixels; one of the header may have no effect
    path.write_bytes(contents)
    assert "shards" in _error_of(folder, workers)


def test_an_image_that_declares_a_huge_size_is_not_decoded(folder):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    position = content.index(b"\xff\xc0") + 5
    content[position : position + 4] = struct.pack(">HH", 60_000, 60_000)
    _overwrite(folder, bytes(content))
    assert "60000 x 60000 pixels" in _error_of(folder)


def test_another_image_in_the_place_of_one_is_found(folder):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 24)).save(buffer, "PNG")
    _overwrite(folder, buffer.getvalue())
    assert "image 0 differs from its checksum" in _error_of(folder)


@pytest.mark.parametrize(("field", "value"), [
    ("shard", 10_000),
    ("offset", 2**63),
    ("offset", 2**64 - 4),
    ("length", 2**31),
    ("length", 2**32 - 1),
    ("length", 0),
])  # fmt: skip
def test_a_place_outside_the_shards_is_refused_before_anything_is_read(folder, field, value):
    places = np.load(folder / "train.npy")
    places[field][3] = value
    np.save(folder / "train.npy", places)
    assert "train.npy: " in _error_of(folder)


def _shards_file(folder: Path, **values: object) -> None:
    """Change the entry of the first shard, with valid checksums."""
    content = json.loads((folder / "shards.json").read_text())
    content["shardlist"][0] |= values
    (folder / "shards.json").write_text(json.dumps(content))
    write_checksums(folder, list(json.loads((folder / CHECKSUMS).read_text())["sha256"]))


@pytest.mark.parametrize("url", ["../../secret.tar", "/etc/passwd", "shards/a.tar", "shards/" + "0" * 32 + ".tar\n"])
def test_only_shards_in_the_folder_are_read(folder, url):
    _shards_file(folder, url=url)
    assert "shards.json" in _error_of(folder)


@pytest.mark.parametrize("damage", [
    lambda folder: _first_place(folder)[0].unlink(),
    lambda folder: _first_place(folder)[0].write_bytes(b""),
    lambda folder: _shards_file(folder, filesize=2**40),
    lambda folder: (folder / "shards.json").write_text("{}"),
    lambda folder: (folder / "shards.json").unlink(),
    lambda folder: np.save(folder / "train.npy", np.zeros((36, 16, 16, 3), np.uint8)),
    lambda folder: np.save(folder / "train.npy", np.load(folder / "train.npy")[1:]),
])  # fmt: skip
def test_missing_and_incomplete_files_are_one_error(folder, damage):
    damage(folder)
    assert _error_of(folder)


def test_other_decoders_are_named_if_they_give_other_pixels(folder, monkeypatch):
    _overwrite(folder, Path(_first_place(folder)[0]).read_bytes()[512:1024])
    versions = packed.decoder_versions()
    monkeypatch.setattr(packed, "decoder_versions", lambda: versions | {"libwebp": "0.1"})
    assert f"the images were prepared with libwebp {versions['libwebp']} instead of 0.1" in _error_of(folder)
