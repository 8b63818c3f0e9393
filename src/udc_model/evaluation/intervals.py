"""Intervals of metrics: weights of the groups drawn at random, and one unseen group of the worst or the best kind.

Each resample weights the groups by independent exponential draws, which is a Dirichlet distribution of their shares.
One further draw is the weight of an unseen group, as large as the largest one. For the lower end of an interval the
unseen group has the lowest value that the metric allows, for the upper end the highest. For a mean of bounded values
this is the bound of Gaffke (2005; Learned-Miller and Thomas 2020, arXiv:1905.06208), which is that of Clopper and
Pearson (1934) if there are two values. The bootstrap lacks the unseen group, and its intervals are too short if what
is costly has hardly been seen. `docs/explanation/what-the-numbers-mean.md` states what is proved and what was tested.

The metrics are functions of sums over images (evaluation/metrics.py). The sums of a resample are the product of the
table of what each image adds with the weights, so 2,000 resamples of 100,000 images take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from udc_model.decisions.decision import clopper_pearson_bound
from udc_model.evaluation.metric_bounds import LargestGroup, gap_noise, metric_bounds, proportions
from udc_model.evaluation.metrics import Metrics, Scored, metrics_of_sums
from udc_model.evaluation.resampled_sums import ResampledSums

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], dict[str, Floats]]  # of sums (M, B) and the unseen group's weight (B,): B first
Intervals = dict[str, tuple[float, float]]

_CHUNK = 64  # resamples at a time
_EXACT_IN_FLOAT32 = 10**6  # groups; up to this number sums in float32 are exact to five digits
_DRAWS, _FEWEST_DRAWS = 10_000, 1_000  # of `mean_draws`
_DRAWS_BEYOND = 10  # needed beyond the two ends of an interval together
_MOST_WEIGHTS = 5 * 10**7  # drawn for them, unless that leaves too few draws
_WEIGHTS_AT_A_TIME = 10**6


def resample_weights(n: int, resamples: int, seed: np.random.SeedSequence, dtype: type) -> NDArray[np.floating]:
    """Exponential weights of ``n`` groups and of the unseen one, (n + 1, resamples)."""
    rng = np.random.default_rng(seed)
    return np.ascontiguousarray(rng.standard_exponential((resamples, n + 1), dtype=dtype).T)


def resample(features: sparse.csr_matrix, statistic: Statistic, resamples: int, seed: int) -> dict[str, Floats]:
    """The statistic (B, …) of ``resamples`` resamples of features (G, M); the number of threads has no effect."""
    n = features.shape[0]
    dtype = np.float32 if n <= _EXACT_IN_FLOAT32 else np.float64
    columns = sparse.csc_matrix(features.T).astype(dtype)  # image after image: the sums stay in the processor's cache

    def statistics(size: int, chunk_seed: np.random.SeedSequence) -> dict[str, Floats]:
        weights = resample_weights(n, size, chunk_seed, dtype)
        return statistic(np.asarray(columns @ weights[:n], dtype=np.float64), weights[n].astype(np.float64))

    sizes = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # the products release Python's lock
        chunks = list(pool.map(statistics, sizes, np.random.SeedSequence(seed).spawn(len(sizes))))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def by_group(features: sparse.csr_matrix, groups: NDArray[np.integer] | None) -> sparse.csr_matrix:
    """Sums over the images of each group, (G, M), of features (N, M)."""
    if groups is None:
        return features
    _, index = np.unique(groups, return_inverse=True)
    n = len(index)
    return sparse.csr_matrix((np.ones(n), (index, np.arange(n))), shape=(index.max() + 1, n)) @ features


def sum_by_group(values: Floats, groups: NDArray[np.integer] | None) -> Floats:
    """Sums (G,) of the values (N,) of each group; the values themselves if each image is its own group."""
    if groups is None:
        return values
    return np.asarray(np.bincount(np.unique(groups, return_inverse=True)[1], values), dtype=np.float64)


def needed_draws(level: float) -> int:
    """The draws that an interval, or a p-value, of this level needs, as one of many has by Bonferroni or Holm."""
    return max(_DRAWS, round(_DRAWS_BEYOND / (1 - level)))


def mean_draws(
    sums: Floats, sizes: Floats, lowest: float, highest: float, seed: int = 0, draws: int = _DRAWS
) -> tuple[Floats, Floats]:
    """Draws (B,) of the lower and of the upper end of a mean of bounded values, from independent groups.

    Their quantiles are the ends of intervals; the share of upper draws above 0 is the p-value of a mean of 0 or more.

    Parameters
    ----------
    sums, sizes : (G,) sum of the values of each group, and its number (or weight) of values.
    lowest, highest : bounds of a value.
    draws : see `needed_draws`; of many groups there are fewer, at least 1,000.
    """
    rng = np.random.default_rng(seed)
    total, size = _drawn_totals(np.column_stack([sums, sizes]), rng, draws).T
    unseen = rng.standard_exponential(len(total)) * sizes.max()
    return (total + unseen * lowest) / (size + unseen), (total + unseen * highest) / (size + unseen)


def difference_draws(
    sums: tuple[Floats, Floats], sizes: tuple[Floats, Floats], lowest: float, highest: float, seed: int = 0,
    draws: int = _DRAWS,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Draws (B,) of the ends of the difference of two means of bounded values: the first minus the second.

    As `mean_draws`; a group may have values of both means, and each mean has an unseen group of its own. For values
    that are either bound, of single images, the p-value is that of Fisher's exact test (Altham 1969).

    Parameters
    ----------
    sums, sizes : of each mean, (G,) sum of the values of each group, and its number (or weight) of values.
    draws : as of `mean_draws`.
    """
    rng = np.random.default_rng(seed)
    totals = _drawn_totals(np.column_stack([sums[0], sizes[0], sums[1], sizes[1]]), rng, draws)
    ends = []
    for k in (0, 1):
        total, size = totals[:, 2 * k : 2 * k + 2].T
        unseen = rng.standard_exponential(len(total)) * sizes[k].max()
        ends.append([(total + unseen * bound) / (size + unseen) for bound in (lowest, highest)])
    (first_low, first_high), (second_low, second_high) = ends
    return first_low - second_high, first_high - second_low


def two_sided_p_value(draws: tuple[Floats, Floats]) -> float:
    """The p-value of a value of 0, from the draws of the lower and of the upper end of its interval."""
    excess = min(int((draws[0] <= 0).sum()), int((draws[1] >= 0).sum()))
    return min(1.0, 2 * (excess + 1) / (len(draws[0]) + 1))


def least_p_value(draws: tuple[Floats, Floats]) -> float:
    """The smallest value that `two_sided_p_value` can have with this number of draws."""
    return 2 / (len(draws[0]) + 1)


def _drawn_totals(rows: Floats, rng: np.random.Generator, needed: int) -> Floats:
    """Sums (B, M) over the rows (G, M) of groups with random exponential weights."""
    groups, counts = np.unique(rows, axis=0, return_counts=True)
    draws = int(np.clip(_MOST_WEIGHTS // len(groups), _FEWEST_DRAWS, needed))
    totals = np.empty((draws, rows.shape[1]))
    chunk = max(1, _WEIGHTS_AT_A_TIME // len(groups))
    for start in range(0, draws, chunk):  # equal groups have one weight, the sum of theirs
        shape = (min(chunk, draws - start), len(groups))
        weights = rng.standard_exponential(shape) if counts.max() == 1 else rng.standard_gamma(counts, shape)
        totals[start : start + chunk] = weights @ groups
    return totals


def interval_of(draws: tuple[Floats, Floats], confidence: float) -> tuple[float, float]:
    """The two-sided interval from the draws of its lower and of its upper end."""
    low, high = draws
    return float(np.quantile(low, (1 - confidence) / 2)), float(np.quantile(high, (1 + confidence) / 2))


def proportion_interval(hits: int, size: int, confidence: float) -> tuple[float, float]:
    """The interval of Clopper and Pearson (1934) of a proportion, of which ``hits`` of ``size`` were observed."""
    low, high = (float(clopper_pearson_bound(count, size, (1 + confidence) / 2)) for count in (hits, size - hits))
    return low, 1 - high


def share_interval(
    is_hit: NDArray[np.bool_], groups: NDArray[np.integer] | None, confidence: float, weights: Floats | None = None
) -> tuple[float, float]:
    """The interval of the share of hits (N,); the unit is the group if there are groups.

    Parameters
    ----------
    weights : (N,) of the images; None if all are 1.
    """
    if groups is None and weights is None:
        return proportion_interval(int(is_hit.sum()), len(is_hit), confidence)
    weights = np.ones(len(is_hit)) if weights is None else weights
    sums, sizes = sum_by_group(weights * is_hit, groups), sum_by_group(weights, groups)
    return interval_of(mean_draws(sums, sizes, 0.0, 1.0), confidence)


def metric_intervals(
    scored: Scored,
    point: Metrics,
    ece_bins: int,
    recall_of: Sequence[tuple[int, str]],
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> Intervals:
    """The interval of each metric in ``point``, the values of `split_metrics`; groups of images are independent.

    If a class has more than ``SCORE_BINS`` distinct probabilities, resamples use bins of them. The intervals of
    ``roc_auc`` and ``average_precision`` are then shifted by the difference of the exact and the binned estimate.
    """
    sums = ResampledSums.of(scored, ece_bins)
    features = by_group(sums.features, scored.groups)
    observed = sums.split_sums(np.asarray(features.sum(axis=0)).reshape(-1, 1))
    largest = LargestGroup.of(scored)

    def statistic(values: Floats, unseen: Floats) -> dict[str, Floats]:
        of_resamples = sums.split_sums(values)
        metrics = metrics_of_sums(of_resamples, recall_of, scored.action_names)
        bounds = metric_bounds(of_resamples, metrics, unseen, observed, scored, largest, recall_of)
        noise = gap_noise(of_resamples, observed, unseen * largest.images)
        return {name: np.column_stack(ends) for name, ends in bounds.items()} | {"gap_noise": noise}

    draws = resample(features, statistic, resamples, seed)
    noise = float(np.quantile(draws.pop("gap_noise"), confidence))
    binned = metrics_of_sums(observed)
    intervals = {}
    for name, value in point.items():
        if value is None:
            continue
        if name == "expected_calibration_error":
            intervals[name] = max(0.0, value - noise), min(1.0, value + noise)
            continue
        low, high = interval_of((draws[name][:, 0], draws[name][:, 1]), confidence)
        shift = value - float(binned[name][0]) if name in ("roc_auc", "average_precision") else 0.0
        intervals[name] = (low + shift, high + shift) if shift == 0 else (max(0.0, low + shift), min(1.0, high + shift))
    if scored.groups is None and scored.weights is None:
        hits_by_name = proportions(observed, len(scored.targets), recall_of, scored.action_names)
        for name, (hits, size) in hits_by_name.items():
            if name in intervals:
                intervals[name] = proportion_interval(hits, size, confidence)
    return intervals
