"""Mean and standard deviation of the colour channels, from exact sums."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from udc_model.errors import UdcError


class ChannelStatistics:
    """Running mean and standard deviation of each channel of (N, H, W, C) uint8 images.

    The sums are exact, so the result does not depend on the order of the images.

    Attributes
    ----------
    sums : (3, C) int64: number of pixels, sum of their values, and sum of the squares of their values.
    """

    def __init__(self, channels: int = 3) -> None:
        self.sums = np.zeros((3, channels), dtype=np.int64)

    def add(self, images: NDArray[np.uint8]) -> None:
        """Count the pixels of a block of images (…, H, W, C)."""
        values = np.arange(256)
        for channel in range(self.sums.shape[1]):
            histogram = np.bincount(images[..., channel].ravel(), minlength=256)
            self.sums[:, channel] += histogram.sum(), histogram @ values, histogram @ values**2

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of the C channels, for pixel values scaled to [0, 1].

        Raises
        ------
        UdcError
            All pixels of a channel have the same value.
        """
        pixels, total, squares = self.sums
        mean = total / pixels
        variance = squares / pixels - mean**2
        if (variance <= 0).any():
            raise UdcError("a colour channel has the same value in all pixels of all training images; check the images")
        return [float(x) / 255 for x in mean], [float(x) / 255 for x in np.sqrt(variance)]
