"""Tests of the statistics of channels: the exact sums of NumPy's integers, however the images are divided."""

import numpy as np
import pytest

from udc_model.data.channel_statistics import ChannelStatistics


@pytest.mark.parametrize("channels", [1, 3])
def test_sums_are_exact_and_do_not_depend_on_blocks(rng, channels):
    images = rng.integers(0, 256, (3, 130, 50, channels), dtype=np.uint8)  # more pixels than a block
    at_once, one_by_one = ChannelStatistics(channels), ChannelStatistics(channels)
    at_once.add(images)
    for image in images:
        one_by_one.add(image)
    pixels = images.reshape(-1, channels).astype(np.int64)
    expected = [[len(pixels)] * channels, pixels.sum(axis=0), (pixels**2).sum(axis=0)]
    assert (at_once.sums == expected).all()
    assert (one_by_one.sums == expected).all()
    mean, std = at_once.mean_and_std()
    assert mean == pytest.approx(pixels.mean(axis=0) / 255)
    assert std == pytest.approx(pixels.std(axis=0) / 255)
