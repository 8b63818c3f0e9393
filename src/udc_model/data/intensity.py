"""Maps values of images deeper than 8 bits to 8 bits, by one range for the complete data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from udc_model.config.data import IntensityRange
from udc_model.data.formats import BadImageError
from udc_model.errors import UdcError

Range = tuple[float, float]

FULL_RANGE: Range = (0.0, 65535.0)  # of 16-bit images if the data set has chosen no other
_DEPTHS = (8, 10, 12, 14, 16)
_BINS = 65536  # of a histogram; exact for integers whose range is not wider
_BLOCK = 2**20  # values that are converted at a time, which bounds the memory for float64


@dataclass(frozen=True, slots=True)
class DeepValues:
    """Smallest and largest value of images deeper than 8 bits; ``is_integer``: none has floating-point values."""

    minimum: float
    maximum: float
    is_integer: bool

    @classmethod
    def of(cls, values: NDArray[Any]) -> DeepValues:
        """Measure the values of one image.

        Raises
        ------
        BadImageError
            A value is infinite or not a number.
        """
        minimum, maximum = float(values.min()), float(values.max())
        if not np.isfinite([minimum, maximum]).all():  # the minimum of values with a NaN is NaN
            raise BadImageError("a pixel is infinite or not a number (NaN)")
        return cls(minimum, maximum, values.dtype.kind in "iu")

    @classmethod
    def union(cls, parts: Sequence[DeepValues]) -> DeepValues:
        """Summarise several images."""
        return cls(
            min(part.minimum for part in parts),
            max(part.maximum for part in parts),
            all(part.is_integer for part in parts),
        )

    @staticmethod
    def empty_histogram() -> NDArray[np.int64]:
        """Return zero counts."""
        return np.zeros(_BINS, dtype=np.int64)

    def histogram(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Count the values of an image in `_BINS` bins from minimum to maximum; of integers, if possible one each."""
        counts = self.empty_histogram()
        scale = self._values_per_bin
        for block in _blocks(values):
            bins = np.minimum((block - self.minimum) / scale, _BINS - 1).astype(np.int64)
            counts += np.bincount(bins, minlength=_BINS)
        return counts

    def percentile(self, counts: NDArray[np.int64], percent: float) -> float:
        """Return the smallest value with at least ``percent`` of all counted values at or below it."""
        cumulative = np.cumsum(counts)
        k = int(np.searchsorted(cumulative, max(1.0, np.ceil(cumulative[-1] * percent / 100))))
        return self.minimum + k * self._values_per_bin

    @property
    def _values_per_bin(self) -> float:
        width = self.maximum - self.minimum
        return 1.0 if self.is_integer and width < _BINS else max(width, np.finfo(np.float64).tiny) / (_BINS - 1)


def fixed_range(intensity: Literal["auto"] | IntensityRange) -> Range | None:
    """Return the range of ``data.intensity`` if it does not depend on the images, else None."""
    if intensity == "auto" or intensity.low is not None:
        return None
    if intensity.bits is not None:
        return 0.0, float(2**intensity.bits - 1)
    assert intensity.min is not None
    assert intensity.max is not None
    return float(intensity.min), float(intensity.max)


def automatic_range(values: DeepValues) -> tuple[Range, str]:
    """Choose the range of ``data.intensity: auto`` and describe it.

    Integers from 0 to 65535 have the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value. Floating-point
    values from 0 to 1 have that range.

    Raises
    ------
    UdcError
        Other values have no range of their own.
    """
    if values.minimum >= 0 and values.is_integer and values.maximum < 2**16:
        bits = next(depth for depth in _DEPTHS if values.maximum < 2**depth)
        return (0.0, float(2**bits - 1)), f"{bits} bits hold the largest value, {values.maximum:g}"
    if values.minimum >= 0 and values.maximum <= 1:
        return (0.0, 1.0), "floating-point values within 0 and 1"
    raise UdcError(
        f"data.intensity: auto has no range for signed, 32-bit or floating-point images with values from "
        f"{values.minimum:g} to {values.maximum:g}; set it to values, as {{min: {values.minimum:g}, "
        f"max: {values.maximum:g}}}, or to percentiles, as {{low: 0.5, high: 99.5}}"
    )


def percentile_range(intensity: IntensityRange, values: DeepValues, counts: NDArray[np.int64]) -> tuple[Range, str]:
    """Compute the range of ``data.intensity: {low: …, high: …}`` from the histogram of all images, and describe it.

    Raises
    ------
    UdcError
        Both percentiles are equal.
    """
    assert intensity.low is not None
    assert intensity.high is not None
    low, high = (values.percentile(counts, percent) for percent in (intensity.low, intensity.high))
    if low >= high:
        raise UdcError(f"data.intensity: both percentiles are {low:g}; set values, as {{min: 0, max: 4095}}")
    return (low, high), f"percentiles {intensity.low:g} and {intensity.high:g}"


def to_8_bits(values: NDArray[Any], limits: Range | None) -> NDArray[np.uint8]:
    """Map values linearly to 0 to 255, rounded to the nearest; values outside of ``limits`` are clipped.

    Parameters
    ----------
    values : integers or floating-point numbers of any shape.
    limits : values that become 0 and 255; None is `FULL_RANGE`.

    Raises
    ------
    BadImageError
        A value is infinite or not a number, or ``limits`` is None and the values are not integers from 0 to 65535.
    """
    if values.dtype == np.uint16:
        return np.asarray(_table(limits or FULL_RANGE)[values])
    measured = DeepValues.of(values)
    if limits is None:
        if not (measured.is_integer and FULL_RANGE[0] <= measured.minimum and measured.maximum <= FULL_RANGE[1]):
            raise BadImageError(
                f"signed, 32-bit or floating-point values ({measured.minimum:g} to {measured.maximum:g}) have no "
                "range; set data.intensity, prepare and train again, or convert the image to 8 or 16 bits"
            )
        limits = FULL_RANGE
    out = np.empty(values.size, dtype=np.uint8)
    start = 0
    for block in _blocks(values):
        out[start : start + len(block)] = _scaled(block, limits)
        start += len(block)
    return out.reshape(values.shape)


@lru_cache(maxsize=4)
def _table(limits: Range) -> NDArray[np.uint8]:
    return _scaled(np.arange(65536, dtype=np.float64), limits)


def _scaled(values: NDArray[np.float64], limits: Range) -> NDArray[np.uint8]:
    low, high = limits
    scaled = ((values - low) * 255 / (high - low)).clip(0, 255)
    return np.asarray(np.rint(scaled), dtype=np.uint8)


def _blocks(values: NDArray[Any]) -> Iterable[NDArray[np.float64]]:
    flat = values.ravel()
    return (flat[start : start + _BLOCK].astype(np.float64) for start in range(0, len(flat), _BLOCK))
