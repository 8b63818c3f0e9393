"""Saliency maps over images."""

import numpy as np
import pytest

from udc_model.evaluation.overlay import network_view, overlay


@pytest.mark.parametrize("channels", [1, 3])
def test_without_evidence_the_image_is_grey_and_with_evidence_orange(rng, channels):
    image = rng.integers(0, 256, (12, 16, channels), dtype=np.uint8)
    plain = overlay(image, np.zeros((3, 4), np.float32))
    assert (plain.shape, plain.dtype) == ((12, 16, 3), np.uint8)
    assert (plain == plain[..., :1]).all()
    grey = image[..., 0] if channels == 1 else image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(plain[..., 0] - grey).max() <= 0.5
    tinted = overlay(image, np.ones((3, 4), np.float32))
    np.testing.assert_array_equal(tinted, overlay(image, np.full((3, 4), 255, np.uint8)))
    assert (tinted[..., 0].astype(int) > tinted[..., 2].astype(int) + 100).all()


def test_the_tint_is_where_the_map_is_large():
    cells = np.zeros((4, 4), np.float32)
    cells[0, 3] = 1
    tinted = overlay(np.full((32, 32, 3), 128, np.uint8), cells).astype(int)
    redness = tinted[..., 0] - tinted[..., 2]
    assert np.unravel_index(redness.argmax(), redness.shape)[0] < 8
    assert np.unravel_index(redness.argmax(), redness.shape)[1] >= 24
    assert redness[:, :16].max() == 0
    assert redness[16:].max() == 0


def test_the_view_of_the_network_is_the_centre(rng):
    images = rng.integers(0, 256, (2, 10, 10, 3), dtype=np.uint8)
    np.testing.assert_array_equal(network_view(images, 6), images[:, 2:8, 2:8])
    np.testing.assert_array_equal(network_view(images[0], 7), images[0, 1:8, 1:8])
    np.testing.assert_array_equal(network_view(images, 10), images)
