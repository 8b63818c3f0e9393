"""Tests that images are resized to the same bytes as by Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from udc_model.data.transforms import RESAMPLE, Decoding, Preprocessing
from udc_model.inference.exports.resampling import ToStored, pillow_may_resize_rows_first

SHAPES = [(31, 47), (47, 31), (120, 9), (9, 120), (1, 1), (1, 90), (90, 1), (16, 16), (100, 60), (131, 117)]


def _preprocessing(channels=3, **settings):
    values = (0.5,) * channels
    return Preprocessing(mean=values, std=values, decoding=Decoding(channels=channels), **settings)


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize(("resize", "crop_pct"), [("crop", 0.875), ("crop", 1.0), ("squash", 1.0)])
def test_every_byte_is_pillows(rng, resample, resize, crop_pct):
    for channels in (1, 3):
        preprocessing = _preprocessing(channels, size=16, resize=resize, crop_pct=crop_pct, resample=resample)
        to_stored = ToStored(preprocessing, pillow_may_resize_rows_first())
        for number, shape in enumerate(SHAPES):
            pixels = rng.integers(0, 256, (*shape, channels), dtype=np.uint8)
            if number % 2:  # full contrast, for which filters overshoot
                pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
            expected = preprocessing.to_stored(Image.fromarray(pixels if channels == 3 else pixels[..., 0]))
            np.testing.assert_array_equal(to_stored(torch.from_numpy(pixels)[None])[0], expected, str(shape))


def test_a_prepared_image_is_not_changed(rng):
    preprocessing = _preprocessing(size=14, crop_pct=0.875)
    stored = torch.from_numpy(rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    assert torch.equal(ToStored(preprocessing, pillow_may_resize_rows_first())(stored), stored)


def test_the_order_of_axes_is_measured(monkeypatch):
    """Pillow 13 and later may begin with the rows; with the other order, tall images get other bytes."""
    import PIL

    assert pillow_may_resize_rows_first() == (int(PIL.__version__.split(".")[0]) >= 13)

    def twice(preprocessing, image):
        side = preprocessing.stored_size
        narrow = image.resize((side, image.height), RESAMPLE[preprocessing.resample])
        return np.asarray(narrow.resize((side, side), RESAMPLE[preprocessing.resample])).reshape(side, side, -1)

    monkeypatch.setattr(Preprocessing, "to_stored", twice)
    assert not pillow_may_resize_rows_first()
