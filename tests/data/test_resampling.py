"""Tests of scaling images against Pillow, bit for bit."""

import numpy as np
import pytest
from PIL import Image

from udc_model.data import resampling
from udc_model.data.resampling import RESAMPLE, resized
from udc_model.native.library import call, load_library

LIBRARY = load_library()
needs_library = pytest.mark.skipif(
    LIBRARY is None or not LIBRARY.udc_scales_images(), reason="no native kernels that scale images on this machine"
)


def _image(rng, width, height, kind="noise"):
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values if kind == "noise" else (values > 127).astype(np.uint8) * 255)


def _is_equal(image, size, resample, box=None):
    expected = image.resize(size, RESAMPLE[resample])
    got = resized(image, size, resample, box)
    assert got.mode == image.mode
    return np.array_equal(np.asarray(got), np.asarray(expected if box is None else expected.crop(box)))


@pytest.fixture
def native_calls(monkeypatch):
    """Names of the kernels that are called."""
    names = []
    monkeypatch.setattr(resampling, "call", lambda name, *rest: names.append(name) or call(name, *rest))
    return names


@pytest.mark.parametrize("resample", list(RESAMPLE))
@pytest.mark.parametrize("kind", ["noise", "black and white"])  # sums below 0 and above 255 are clipped
def test_a_scaled_image_equals_that_of_pillow(resample, kind, rng):
    for _ in range(40):
        image = _image(rng, *rng.integers(1, 300, 2), kind)
        size = tuple(map(int, rng.integers(1, 200, 2)))
        assert _is_equal(image, size, resample), (image.size, size)


@pytest.mark.parametrize("resample", list(RESAMPLE))
def test_a_part_of_a_scaled_image_equals_the_part_of_that_of_pillow(resample, rng):
    for _ in range(40):
        image, size = _image(rng, *rng.integers(16, 300, 2)), tuple(map(int, rng.integers(20, 200, 2)))
        left, top = (int(rng.integers(0, extent - 16)) for extent in size)
        right, bottom = int(rng.integers(left + 1, size[0] + 1)), int(rng.integers(top + 1, size[1] + 1))
        assert _is_equal(image, size, resample, (left, top, right, bottom)), (image.size, size)


@needs_library
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(500, 400, (320, 256)), (400, 500, (256, 320)), (64, 64, (224, 224)), (100, 90, (100, 45)), (1200, 900, (64, 48))],
)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_photographs_are_scaled_by_the_kernels_in_bands(width, height, size, resample, rng, native_calls, monkeypatch):
    monkeypatch.setattr(resampling, "_BAND", 7 * width)
    is_native = width > size[0] or height <= size[1]
    assert _is_equal(_image(rng, width, height), size, resample)
    assert native_calls[-1:] == ["udc_scale_rows"] * is_native
    assert len(native_calls) > 10 or not is_native or height < 70


def test_other_images_are_scaled_by_pillow(rng, native_calls):
    tall, grey = _image(rng, 100, 400), _image(rng, 100, 80).convert("L")
    assert _is_equal(tall, (90, 100), "bicubic")  # Pillow 13 scales the rows first
    assert _is_equal(grey, (50, 40), "bicubic")
    assert _is_equal(_image(rng, 100, 80), (50, 40), "lanczos")
    assert _is_equal(_image(rng, 100, 80), (5, 4), "bicubic")  # fewer values than the kernels add together
    assert _is_equal(_image(rng, 3, 3), (20, 20), "bicubic")  # fewer pixels than weights
    assert not native_calls


@needs_library
def test_an_image_with_millions_of_weights_is_scaled_by_pillow(rng, native_calls):
    assert _is_equal(_image(rng, 60_000, 16), (64, 16), "bicubic")
    assert native_calls
    native_calls.clear()
    assert _is_equal(_image(rng, 600_000, 16), (64, 16), "bicubic")
    assert not native_calls


def test_an_image_of_the_right_size_is_returned_itself(rng):
    image = _image(rng, 30, 20)
    assert resized(image, (30, 20), "bicubic") is image
    assert _is_equal(image, (30, 20), "bicubic", (3, 4, 25, 19))
