"""Scales 8-bit images with the bits of Pillow, whose ``Image.resize`` takes longer than decoding a photograph.

The native kernels scale an image in RGB four times as fast, if the processor has AVX2. Pillow scales all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udc_model.native.library import call, load_library

RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Box = tuple[int, int, int, int]  # left, top, right, bottom, pixels

_BAND = 2**16  # pixels of the image that are scaled together, so that they stay in the processor's cache
_ONE = 2**22  # a weight of 1, as an integer
_MOST_WEIGHTS = 2**21  # 16 MB in float64; a photograph of 10,000 pixels has some 40,000
_LEAST = 16  # values in a row of the result: the kernels add as many together


def resized(image: Image.Image, size: tuple[int, int], resample: str, box: Box | None = None) -> Image.Image:
    """Scale an image to ``size`` (width, height): ``image.resize(size).crop(box)``, bit for bit.

    Parameters
    ----------
    image : of mode ``RGB`` or ``L``; it is returned itself if it has this size and no box is given.
    resample : ``bilinear``, ``bicubic`` or ``lanczos``.
    box : the part of the scaled image that is returned, inside it; None: all of it.
    """
    left, top, right, bottom = box or (0, 0, *size)
    if image.mode == "RGB" and 3 * (right - left) >= _LEAST and _kernels_scale(image.size, size):
        columns = _weights(image.width, size[0], left, right, resample)
        rows = _weights(image.height, size[1], top, bottom, resample)
        if columns is not None and rows is not None:
            return Image.fromarray(_scaled(image, columns, rows))
    scaled = image if image.size == size else image.resize(size, RESAMPLE[resample])
    return scaled if box is None else scaled.crop(box)


def _kernels_scale(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether the kernels are there, and all versions of Pillow scale the columns before the rows, as they do.

    From version 13 on, Pillow begins with the rows where the height shrinks far more than the width.
    """
    library = load_library()
    (width, height), (new_width, new_height) = old, new
    is_order_fixed = new_height >= height or height - new_height <= 2 * (width - new_width)
    return library is not None and bool(library.udc_scales_images()) and old != new and is_order_fixed


@dataclass(frozen=True)
class _Weights:
    """The weights of one side of an image: ``first`` (n,) neighbours and ``values`` (n, taps) of n results, int32."""

    first: NDArray[np.int32]
    values: NDArray[np.int32]

    @property
    def taps(self) -> int:
        """Number of neighbours that are added for a result, a multiple of 4."""
        return int(self.values.shape[1])

    @property
    def span(self) -> tuple[int, int]:
        """The first neighbour of all, and the one after the last."""
        return int(self.first.min()), int(self.first.max()) + self.taps

    def since(self, start: int) -> _Weights:
        """The weights with neighbours counted from ``start``."""
        return _Weights(self.first - np.int32(start), self.values)


def _scaled(image: Image.Image, columns: _Weights, rows: _Weights) -> NDArray[np.uint8]:
    """Scale the columns of the rows that are needed, in bands, and then the rows: (H, W, 3)."""
    (left, right), (top, bottom) = columns.span, rows.span
    columns, rows = columns.since(left), rows.since(top)
    width, lines = len(columns.first), max(1, _BAND // (right - left))
    repeated = np.repeat(columns.values, 4, axis=1)  # for each byte of a pixel
    between = np.empty((bottom - top, width, 3), np.uint8)
    for start in range(top, bottom, lines):
        band = image.crop((left, start, right, min(start + lines, bottom)))
        call("udc_scale_columns", band.tobytes("raw", "RGBX"), band.height, band.width, columns.first.ctypes.data,
             repeated.ctypes.data, width, columns.taps, between[start - top :].ctypes.data)  # fmt: skip
    scaled = np.empty((len(rows.first), width, 3), np.uint8)
    call("udc_scale_rows", between.ctypes.data, 3 * width, rows.first.ctypes.data, rows.values.ctypes.data,
         len(rows.first), rows.taps, scaled.ctypes.data)  # fmt: skip
    return scaled


@lru_cache(maxsize=64)
def _weights(old: int, new: int, begin: int, end: int, resample: str) -> _Weights | None:
    """The weights of the results ``begin`` to ``end`` - 1 when Pillow scales a side from ``old`` to ``new`` pixels.

    The order of the operations is that of Pillow's ``Resample.c``. None if Pillow has to scale the side: it has too few
    pixels for the kernels or far too many, or the weights are those of another filter.
    """
    if resample not in _FILTERS:
        return None
    scale = old / new
    stretch = max(scale, 1.0)
    function, support = _FILTERS[resample]
    centre = (np.arange(begin, end) + 0.5) * scale
    first = np.maximum((centre - support * stretch + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support * stretch + 0.5).astype(np.int64), old) - first
    taps = -(-int(count.max()) // 4) * 4
    if taps > old or taps * len(first) > _MOST_WEIGHTS:
        return None
    each = np.arange(taps)
    values = function(np.abs((each + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch)))
    values[each >= count[:, None]] = 0
    values /= np.cumsum(values, axis=1)[:, -1:]  # added one after the other
    fixed = (values * _ONE + np.where(values < 0, -0.5, 0.5)).astype(np.int32)
    # Where `taps` neighbours would exceed the image, those before them have the weight 0.
    start = np.minimum(first, old - taps)
    moved = each - (first - start)[:, None]
    fixed = np.where(moved >= 0, np.take_along_axis(fixed, np.maximum(moved, 0), axis=1), np.int32(0))
    return _Weights(start.astype(np.int32), np.ascontiguousarray(fixed, np.int32))


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bicubic convolution with a = -0.5 (Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711)."""
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# Lanczos is not among them: numpy's sine may differ from that of the C library in the last bit.
_FILTERS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}
