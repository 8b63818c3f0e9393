"""Tests of the range of images deeper than 8 bits: by bits, percentiles and values."""

import numpy as np
import pytest

from udc_model.config.data import IntensityRange
from udc_model.data.formats import BadImageError
from udc_model.data.intensity import DeepValues, automatic_range, fixed_range, percentile_range, to_8_bits
from udc_model.errors import UdcError


@pytest.mark.parametrize(
    ("largest", "white"),
    [(0, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383), (16384, 65535)],
)
def test_auto_takes_the_smallest_depth_that_holds_the_largest_value(largest, white):
    assert automatic_range(DeepValues(0, largest, True))[0] == (0, white)


def test_auto_accepts_floats_within_0_and_1():
    assert automatic_range(DeepValues(0.25, 1.0, False))[0] == (0, 1)


@pytest.mark.parametrize(
    "values",
    [DeepValues(-1, 10, True), DeepValues(0, 65536, True), DeepValues(0, 1.5, False), DeepValues(-0.1, 1, False)],
)
def test_auto_refuses_values_without_a_range(values):
    with pytest.raises(UdcError, match=r"data\.intensity: auto has no range .* \{min: .*\n?.*percentiles"):
        automatic_range(values)


def test_values_are_rounded_to_the_nearest_level(rng):
    values = rng.integers(0, 4096, 10_000).astype(np.uint16)
    expected = [round(int(v) * 255 / 4095) for v in values]
    assert to_8_bits(values, (0, 4095)).tolist() == expected
    assert to_8_bits(values.astype(np.int32), (0, 4095)).tolist() == expected
    assert to_8_bits(values.astype(np.float32), (0, 4095)).tolist() == expected
    full = np.arange(65536, dtype=np.uint16)
    assert (to_8_bits(full, None) == (full.astype(np.uint32) * 255 + 32767) // 65535).all()


def test_values_outside_of_the_range_are_clipped():
    assert to_8_bits(np.array([-2000, -1000, -300, 400, 3000], np.int32), (-1000, 400)).tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]
    assert to_8_bits(np.array([4095, 5000, 65535], np.uint16), (0, 4095)).tolist() == [255, 255, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(BadImageError, match="infinite or not a number"):
        to_8_bits(np.array([0.5, bad], np.float32), (0, 1))
    with pytest.raises(BadImageError, match="infinite or not a number"):
        DeepValues.of(np.array([0.5, bad], np.float32))


def test_values_without_a_range_are_refused():
    with pytest.raises(BadImageError, match=r"-1 to 5\) have no range; set data\.intensity"):
        to_8_bits(np.array([-1, 5], np.int32), None)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_percentiles_are_those_of_all_pixels(rng, kind):
    images = [rng.normal(3000, 500, (20, 30)).astype(kind), rng.normal(900, 50, (10, 10)).astype(kind)]
    values = DeepValues.union([DeepValues.of(image) for image in images])
    counts = sum(values.histogram(image) for image in images)
    assert counts.sum() == 700
    (low, high), reason = percentile_range(IntensityRange(low=0.5, high=99.5), values, counts)
    pixels = np.concatenate([image.ravel() for image in images])
    tolerance = 0 if kind != np.float32 else 0.1
    assert low == pytest.approx(np.percentile(pixels, 0.5, method="inverted_cdf"), abs=tolerance)
    assert high == pytest.approx(np.percentile(pixels, 99.5, method="inverted_cdf"), abs=tolerance)
    assert reason == "percentiles 0.5 and 99.5"


def test_equal_percentiles_are_refused():
    image = np.full((5, 5), 7, np.uint16)
    values = DeepValues.of(image)
    with pytest.raises(UdcError, match="both percentiles are 7"):
        percentile_range(IntensityRange(low=1.0, high=99.0), values, values.histogram(image))


def test_fixed_ranges():
    assert fixed_range("auto") is None
    assert fixed_range(IntensityRange(low=0.0, high=99.0)) is None
    assert fixed_range(IntensityRange(bits=12)) == (0, 4095)
    assert fixed_range(IntensityRange(min=-1000.0, max=400.0)) == (-1000, 400)


@pytest.mark.parametrize(
    "fields", [{}, {"bits": 7}, {"bits": 17}, {"low": 1.0}, {"bits": 12, "min": 0.0, "max": 1.0},
               {"min": 2.0, "max": 2.0},
               {"low": 50.0, "high": 40.0}, {"low": -1.0, "high": 50.0}, {"low": 0.0, "high": 101.0}]
)  # fmt: skip
def test_contradictory_ranges_are_refused(fields):
    with pytest.raises(ValueError, match=r"intensity|IntensityRange"):
        IntensityRange(**fields)
