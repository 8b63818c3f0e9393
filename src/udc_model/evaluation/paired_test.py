"""The paired sign-flip test, exact where the differences are multiples of one unit, as costs almost always are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_FEW = 16  # pairs whose 2 ** n sign patterns are all counted
_FLIPS, _FLIPS_OF_MANY, _MANY = 9999, 999, 10_000  # random sign patterns where no exact way exists; level is exact
_UNITS = 10**7  # of the largest difference at most
_DEVIATIONS = 9  # the sum lies beyond with a probability below 1e-17 (Hoeffding 1963)
_CELLS = 2**23  # of the exact distribution at most
_BATCH = 10**7  # signs in memory at a time


def paired_test(differences: Floats, seed: int = 0) -> float:
    """Two-sided p-value of the hypothesis that (G,) paired differences are symmetric about 0, by sign flips.

    Fisher 1935: each sign of a difference is equally likely, and the p-value is the share of the sign patterns whose
    sum is at least as far from 0. It is counted exactly for few pairs and for differences that are multiples of one
    unit; otherwise 9,999 random patterns (999 beyond 10,000 pairs) and the observed one are counted, whose level is
    exact too.
    """
    sizes = np.abs(differences[differences != 0])
    if len(sizes) < 2:
        return 1.0
    total = abs(float(differences.sum()))
    values, counts = np.unique(sizes, return_counts=True)
    unit = common_unit(values)
    if unit is not None:
        p_value = _exact(np.round(values / unit).astype(np.int64), counts, round(total / unit))
        if p_value is not None:
            return p_value
    if len(sizes) <= _FEW:
        signs = 1 - 2 * ((np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes))) & 1)
        return float((np.abs(signs @ sizes) >= total * (1 - 1e-12)).mean())
    return _by_random_signs(sizes, total, seed)


def common_unit(values: Floats) -> float | None:
    """The largest number of which all values (above 0) are integer multiples, to a relative 1e-9, or None."""
    unit = float(values[0])
    for value in values[1:]:
        rest, divisor = float(value), unit  # Euclid's algorithm with a tolerance
        while divisor > 1e-9 * values[-1]:
            rest, divisor = divisor, abs(rest - round(rest / divisor) * divisor)
        unit = rest
    multiples = values / unit
    if multiples[-1] > _UNITS or np.abs(multiples - np.round(multiples)).max() > 1e-6:
        return None
    return unit


def _exact(values: NDArray[np.int64], counts: NDArray[np.integer], total: int) -> float | None:
    """Share of sign patterns with a sum of at least ``total`` from 0, from the characteristic function of the sum.

    The sum of independent signs times ``values`` has the characteristic function ``prod cos(v t) ** count``, whose
    discrete Fourier transform is the distribution. Sums further out than nine standard deviations are left out.

    Returns
    -------
    None if the distribution has too many cells.
    """
    reach = min(int(values @ counts), int(_DEVIATIONS * np.sqrt(float(values.astype(float) ** 2 @ counts))) + 1)
    if total > reach:
        return 1e-16
    cells = 2 * reach + 2
    if cells > _CELLS:
        return None
    phases = np.arange(cells // 2 + 1) * (2 * np.pi / cells)
    characteristic = np.ones(len(phases))
    for value, count in zip(values, counts, strict=True):
        characteristic *= np.cos(np.remainder(value * phases, 2 * np.pi)) ** int(count)
    distribution = np.fft.irfft(characteristic, cells)  # sum s at index s modulo cells
    inner = distribution[:total].sum() + distribution[cells - total + 1 :].sum() if total else 0.0
    return float(np.clip(1 - inner, 1e-16, 1.0))


def _by_random_signs(sizes: Floats, total: float, seed: int) -> float:
    n, rng = len(sizes), np.random.default_rng(seed)
    flips = _FLIPS if n <= _MANY else _FLIPS_OF_MANY
    reached, width = 1, -(-n // 8)
    padded = np.zeros(8 * width)
    padded[:n] = sizes
    batch = max(1, _BATCH // n)
    for start in range(0, flips, batch):
        drawn = rng.integers(0, 256, (min(batch, flips - start), width), dtype=np.uint8)
        positive = np.unpackbits(drawn, axis=1) @ padded
        reached += int((np.abs(2 * positive - padded.sum()) >= total * (1 - 1e-12)).sum())
    return reached / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for several tests by Holm (1979): rejecting p <= level has the family-wise level ``level``."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1))
    result = np.empty(len(p_values))
    result[order] = np.minimum(adjusted, 1.0)
    return [float(p) for p in result]
