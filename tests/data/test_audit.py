"""Tests of the stage prepare with deep, multi-frame and grey images: pixels, ranges, records and messages."""

import csv
import json
import logging

import numpy as np
import pytest
from PIL import Image

from udc_model.config import SPLITS, DataParams, ModelParams, Params, ResNetParams
from udc_model.config.data import IntensityRange
from udc_model.data import workers
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare

N = 8  # images per class


def _prepare(tmp_path, channels=3, **data):
    workspace = Workspace(tmp_path / "out")
    params = Params(
        data=DataParams(
            **{"source": "folder", "path": str(tmp_path / "raw"), "image_size": 8, "resize": "squash"} | data
        ),
        model=ModelParams(resnet=ResNetParams(num_channels=channels)),
    )
    prepare(params, workspace)
    return PackedDataset.open(workspace.prepared)


def _stored(dataset):
    """Prepared images by path."""
    images = {}
    for name in SPLITS:
        split = dataset.split(name)
        images |= dict(zip(split.paths, split.images, strict=True))
    return images


@pytest.fixture
def write(tmp_path):
    """Write N images for each of two classes: ``write(image_of_number, suffix)``; returns the arrays by path."""

    def write_all(make, suffix=".png", save=None):
        arrays = {}
        for label in ("a", "b"):
            (tmp_path / "raw" / label).mkdir(parents=True, exist_ok=True)
            for k in range(N):
                path = f"{label}/{k}{suffix}"
                arrays[path] = make(k + N * (label == "b"))
                if save is None:
                    Image.fromarray(arrays[path]).save(tmp_path / "raw" / path)
                else:
                    (tmp_path / "raw" / path).write_bytes(save(arrays[path]))
        return arrays

    return write_all


def _noise(k, low=0, high=4096, kind=np.uint16, shape=(8, 8)):
    return np.random.default_rng(k).integers(low, high, shape).astype(kind)


@pytest.mark.parametrize(("largest", "bits"), [(200, 8), (900, 10), (4000, 12), (16000, 14), (60000, 16)])
def test_range_of_deep_images_is_chosen_by_the_data_set(tmp_path, write, largest, bits, caplog):
    caplog.set_level(logging.INFO)
    arrays = write(lambda k: _noise(k, 0, largest + 1 if k == 3 else largest // 3))
    arrays["a/3.png"][0, 0] = largest
    Image.fromarray(arrays["a/3.png"]).save(tmp_path / "raw/a/3.png")
    dataset = _prepare(tmp_path)
    white = 2**bits - 1
    for path, image in _stored(dataset).items():
        assert (image == np.rint(arrays[path] / white * 255)[..., None]).all(), path
    assert dataset.preprocessing.decoding.intensity == (0, white)
    assert f"16 file(s) with more than 8 bits, 0 becomes black and {white} white ({bits} bits" in caplog.text


def test_shallow_images_beside_deep_ones_are_unchanged(tmp_path, write):
    arrays = write(lambda k: _noise(k) if k % 2 else _noise(k, 0, 256, np.uint8))
    for path, image in _stored(_prepare(tmp_path)).items():
        array = arrays[path]
        expected = array if array.dtype == np.uint8 else np.rint(array / 4095 * 255)
        assert (image == expected[..., None]).all()


def test_explicit_bits_values_and_percentiles(tmp_path, write):
    arrays = write(lambda k: _noise(k, 100, 900))
    everything = np.concatenate([array.ravel() for array in arrays.values()])
    low, high = (np.percentile(everything, percent, method="inverted_cdf") for percent in (2, 98))
    for setting, limits in (
        (IntensityRange(bits=9), (0, 511)),
        (IntensityRange(min=200.0, max=300.0), (200, 300)),
        (IntensityRange(low=2.0, high=98.0), (low, high)),
    ):
        dataset = _prepare(tmp_path, intensity=setting)
        assert dataset.preprocessing.decoding.intensity == limits
        for path, image in _stored(dataset).items():
            expected = np.rint(
                (np.clip(arrays[path].astype(float), *limits) - limits[0]) * 255 / (limits[1] - limits[0])
            )
            assert (image == expected[..., None]).all()


def test_float_images(tmp_path, write, tiff):
    arrays = write(lambda k: np.random.default_rng(k).random((8, 8)).astype(np.float32), ".tif", tiff)
    dataset = _prepare(tmp_path)
    assert dataset.preprocessing.decoding.intensity == (0, 1)
    for path, image in _stored(dataset).items():
        assert (image == np.rint(arrays[path].astype(float) * 255)[..., None]).all()
    write(lambda k: np.random.default_rng(k).normal(0, 50, (8, 8)).astype(np.float32), ".tif", tiff)
    with pytest.raises(UdcError, match=r"^data\.intensity: auto has no range for signed, 32-bit or floating-point"):
        _prepare(tmp_path)
    assert _prepare(tmp_path, intensity=IntensityRange(low=1.0, high=99.0)).preprocessing.decoding.intensity[0] < -50


def test_images_with_nan_are_rejected_by_name(tmp_path, write, tiff):
    def make(k):
        values = np.random.default_rng(k).random((8, 8)).astype(np.float32)
        values[0, 0] = np.nan if k == 2 else values[0, 0]
        return values

    write(make, ".tif", tiff)
    with pytest.raises(UdcError, match=r"1 of 16 image\(s\) cannot be used:\n  a/2\.tif: a pixel is infinite or not a"):
        _prepare(tmp_path)
    assert _prepare(tmp_path, on_bad_image="skip").info["images"] == 15


@pytest.mark.parametrize("frames", ["each", "first"])
def test_frames_of_a_file(tmp_path, write, tiff, frames):
    """Deep and shallow pages; every frame is an image, and the frames of a file are one group in one split."""
    pages = {}

    def save(array):
        return tiff(*array)

    pages = write(
        lambda k: _noise(k, 0, 4096 if k % 2 else 256, np.uint16 if k % 2 else np.uint8, (3, 8, 8)), ".tif", save
    )
    dataset = _prepare(tmp_path, frames=frames)
    stored = _stored(dataset)
    if frames == "first":
        assert sorted(stored) == sorted(pages)
        return
    assert sorted(stored) == sorted(f"{path}#{k}" for path in pages for k in (1, 2, 3))
    for path, image in stored.items():
        file, _, number = path.partition("#")
        page = pages[file][int(number) - 1]
        expected = page if page.dtype == np.uint8 else np.rint(page / 4095 * 255)
        assert (image == expected[..., None]).all()
    assert dataset.manifest.groupby("group")["split"].nunique().max() == 1
    assert set(dataset.manifest["group"]) == set(pages)
    assert dataset.preprocessing.decoding.frames == "each"


def test_several_frames_are_an_error_by_default(tmp_path, write, tiff):
    write(lambda k: _noise(k, shape=(2 if k == 5 else 1, 8, 8)), ".tif", lambda array: tiff(*array))
    with pytest.raises(UdcError, match=r"a/5\.tif: the image has 2 frames; it must have one, or set data\.frames"):
        _prepare(tmp_path)


def test_damaged_frame_is_named(tmp_path, write, tiff):
    def save(array):
        content = bytearray(tiff(*array))
        return bytes(content[:-8]) if array[0, 0, 0] == 77 else bytes(content)

    def make(k):
        array = _noise(k, 0, 256, np.uint8, (2, 8, 8))
        array[0, 0, 0] = 77 if k == 4 else 0
        return array

    write(make, ".tif", save)
    with pytest.raises(UdcError, match=r"1 of 32 image\(s\) cannot be used:\n  a/4\.tif#2: damaged"):
        _prepare(tmp_path, frames="each")


def test_thumbnails_of_a_tiff_are_no_frames(tmp_path, write, tiff):
    """A reduced copy (NewSubfileType 1) after the image, as pyramids have it."""
    import struct

    def save(array):
        content = tiff(array, array[:4, :4])
        second = struct.unpack("<I", content[8 + 2 + 12 * 11 : 8 + 2 + 12 * 11 + 4])[0]
        tag = content.index(struct.pack("<HHI", 256, 4, 1), second)
        # the second page's SampleFormat entry (default 1) becomes NewSubfileType; entries need no order for Pillow
        last = tag + 12 * 10
        return content[:last] + struct.pack("<HHII", 254, 4, 1, 1) + content[last + 12 :]

    write(lambda k: _noise(k, 0, 256, np.uint8), ".tif", save)
    assert _prepare(tmp_path).info["images"] == 16


def test_grey_model_gets_grey_images(tmp_path, write, caplog):
    caplog.set_level(logging.INFO)
    arrays = write(lambda k: _noise(k, 0, 256, np.uint8, (8, 8, 3) if k < 3 else (8, 8)))
    dataset = _prepare(tmp_path, channels=1)
    assert "converted 3 colour image(s) to grey" in caplog.text
    stored = _stored(dataset)
    for path, image in stored.items():
        assert image.shape == (8, 8, 1)
        expected = np.asarray(Image.fromarray(arrays[path]).convert("L"))
        assert (image[..., 0] == expected).all()
    train = np.asarray(dataset.split("train").images) / 255
    assert dataset.preprocessing.mean == pytest.approx([train.mean()])
    assert dataset.preprocessing.std == pytest.approx([train.std()])
    assert dataset.preprocessing.channels == 1


def test_grey_digits(tmp_path):
    colour = _prepare(tmp_path, source="digits")
    grey = _prepare(tmp_path / "grey", channels=1, source="digits")
    assert (np.asarray(grey.split("train").images) == np.asarray(colour.split("train").images)[..., :1]).all()
    assert grey.preprocessing.mean == pytest.approx(colour.preprocessing.mean[:1])


@pytest.mark.slow
def test_result_does_not_depend_on_processes(tmp_path, write, tiff, monkeypatch):
    write(lambda k: _noise(k, 0, 4096, shape=(1 + k % 3, 8, 8)), ".tif", lambda array: tiff(*array))
    setting = {"frames": "each", "intensity": IntensityRange(low=1.0, high=99.0)}
    first = _prepare(tmp_path, **setting).info
    monkeypatch.setattr(workers, "_MIN_ITEMS", 1)
    assert _prepare(tmp_path, **setting).info == first


def test_shallow_images_are_decoded_once(tmp_path, write, monkeypatch):
    from udc_model.data import audit

    calls = []
    original = audit.decode_frames
    monkeypatch.setattr(audit, "decode_frames", lambda path, *rest: calls.append(path) or original(path, *rest))
    write(lambda k: _noise(k, 0, 4096 if k == 1 else 256, np.uint16 if k == 1 else np.uint8))
    _prepare(tmp_path)
    assert len(calls) == 17  # the deep image twice


def test_settings_are_in_the_data_set(tmp_path, write):
    write(lambda k: _noise(k))
    _prepare(tmp_path, frames="first", max_pixels=1000)
    info = json.loads((tmp_path / "out/data/prepared/dataset.json").read_text())
    assert info["preprocessing"]["decoding"] == {
        "channels": 3, "frames": "first", "intensity": [0.0, 4095.0], "dicom_windows": True, "max_pixels": 1000,
    }  # fmt: skip


def test_rejections_are_listed(tmp_path, write):
    write(lambda k: _noise(k, 0, 256, np.uint8))
    (tmp_path / "raw/a/0.png").write_bytes(b"\xff\x0a")
    (tmp_path / "raw/b/x.heic").write_bytes(b"text")
    _prepare(tmp_path, on_bad_image="skip")
    with (tmp_path / "out/data/prepared/left_out.csv").open() as handle:
        rows = dict(list(csv.reader(handle))[1:])
    assert set(rows) == {"a/0.png", "b/x.heic"}
    assert "djxl" in rows["a/0.png"]
    assert rows["b/x.heic"].startswith("not an image in a known format")


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"Input should be 1 or 3"):
        ResNetParams(num_channels=4)
