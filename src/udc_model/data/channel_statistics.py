"""Mean and standard deviation of the colour channels, from exact sums."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from udc_model.errors import UdcError

_BLOCK = 2**14  # pixels at a time, which fit into the processor's cache


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
        pixels = images.reshape(-1, images.shape[-1])
        for start in range(0, len(pixels), _BLOCK):
            values = pixels[start : start + _BLOCK].T.astype(np.float64, order="C")  # exact: integers below 2**53
            self.sums[0] += values.shape[1]
            self.sums[1] += values.sum(axis=1).astype(np.int64)
            self.sums[2] += np.einsum("cn,cn->c", values, values).astype(np.int64)

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
