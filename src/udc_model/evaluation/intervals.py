"""Bootstrap intervals of metrics, by resampling images or groups of images.

The metrics are functions of sums over images (evaluation/metrics.py). The sums of a resample are the product of the
table of what each image adds with the counts of how often each image is drawn, so 2,000 resamples of 100,000 images
take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtr, ndtri

from udc_model.evaluation.metrics import Metrics, Scored, metric_terms, metrics_of_sums

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], dict[str, Floats]]  # from sums (M, B) to metrics (B,) by name
Intervals = dict[str, tuple[float, float]]

SCORE_BINS = 500  # per class at most; areas are exact up to this number of distinct probabilities
_CHUNK = 64  # resamples at a time
_EXACT_IN_FLOAT32 = 10**6  # groups; up to this number float32 holds counts exactly, and other sums to five digits
_JACKKNIFE = 200  # blocks at most


def resample_counts(n: int, resamples: int, seed: np.random.SeedSequence, dtype: type) -> NDArray[np.floating]:
    """How often each of ``n`` groups is drawn, (n, resamples): n draws with replacement per resample."""
    rng = np.random.default_rng(seed)
    counts: NDArray[np.floating] = np.empty((resamples, n), dtype=dtype)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return np.ascontiguousarray(counts.T)


def resample(features: sparse.csr_matrix, statistic: Statistic, resamples: int, seed: int) -> dict[str, Floats]:
    """The metrics (B,) of ``resamples`` resamples of features (G, M); they don't depend on the number of threads."""
    n = features.shape[0]
    dtype = np.float32 if n <= _EXACT_IN_FLOAT32 else np.float64
    columns = sparse.csr_matrix(features.T).astype(dtype)

    def metrics(size: int, chunk_seed: np.random.SeedSequence) -> dict[str, Floats]:
        return statistic(np.asarray(columns @ resample_counts(n, size, chunk_seed, dtype), dtype=np.float64))

    sizes = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # the products release Python's lock
        chunks = list(pool.map(metrics, sizes, np.random.SeedSequence(seed).spawn(len(sizes))))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def by_group(features: sparse.csr_matrix, groups: NDArray[np.integer] | None) -> sparse.csr_matrix:
    """Sums over the images of each group, (G, M), of features (N, M)."""
    if groups is None:
        return features
    _, index = np.unique(groups, return_inverse=True)
    n = len(index)
    return sparse.csr_matrix((np.ones(n), (index, np.arange(n))), shape=(index.max() + 1, n)) @ features


def bca_intervals(
    features: sparse.csr_matrix, statistic: Statistic, resamples: int, confidence: float, seed: int
) -> Intervals:
    """Bias-corrected and accelerated bootstrap intervals (Efron 1987) of metrics that are functions of sums.

    `scipy.stats.bootstrap` does not resample sparse tables or groups of several metrics at once.

    Parameters
    ----------
    features : (G, M), what each of G independent groups adds to the M sums.
    statistic : metrics by name, each (B,), of sums (M, B); NaN where a resample leaves one undefined.
    confidence : level of the two-sided interval.

    Returns
    -------
    Low and high of each metric that is defined on the data.
    """
    resampled = resample(features, statistic, resamples, seed)
    total = np.asarray(features.sum(axis=0)).reshape(-1, 1)
    estimate = statistic(total)
    blocks = np.arange(features.shape[0]) * min(_JACKKNIFE, features.shape[0]) // features.shape[0]
    left_out = statistic(total - by_group(features, blocks).T.toarray())
    intervals = {}
    for name, point in estimate.items():
        values = resampled[name]
        if np.isfinite(point[0]) and np.isfinite(values).any():
            intervals[name] = _bca(float(point[0]), values[np.isfinite(values)], left_out[name], confidence)
    return intervals


def _bca(point: float, values: Floats, left_out: Floats, confidence: float) -> tuple[float, float]:
    below = ((values < point).mean() + (values <= point).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / len(values), 1 - 0.5 / len(values)))
    deviation = np.nanmean(left_out) - left_out[np.isfinite(left_out)]
    spread = (deviation**2).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * spread) if spread > 0 else 0.0
    tails = bias + ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    shares = ndtr(bias + tails / np.maximum(1 - acceleration * tails, 1e-9))
    low, high = np.quantile(values, shares)
    return float(low), float(high)


def metric_intervals(
    scored: Scored,
    point: Metrics,
    ece_bins: int,
    recall_of: Sequence[tuple[int, str]],
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> Intervals:
    """The interval of each metric in ``point``, the values of `split_metrics`, by resampling images or their groups.

    If a class has more than ``SCORE_BINS`` distinct probabilities, resamples use bins of them. The intervals of
    ``roc_auc`` and ``average_precision`` are then shifted by the difference of the exact and the binned estimate.
    """
    terms = metric_terms(scored, ece_bins, SCORE_BINS)
    features = sparse.csr_matrix(sparse.hstack([part.table(len(scored.targets)) for part in terms.values()]))
    features = by_group(features, scored.groups)
    ends = np.cumsum([part.width for part in terms.values()])[:-1]

    def metrics(sums: Floats) -> dict[str, Floats]:
        by_name = dict(zip(terms, np.split(sums, ends), strict=True))
        return metrics_of_sums(by_name, scored.outcome_costs, recall_of)

    binned = metrics(np.asarray(features.sum(axis=0)).reshape(-1, 1))
    intervals = {}
    for name, (low, high) in bca_intervals(features, metrics, resamples, confidence, seed).items():
        value = point[name]
        if value is not None:
            shift = value - float(binned[name][0])
            intervals[name] = (low + shift, high + shift)
    return intervals
