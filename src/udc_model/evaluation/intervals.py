"""Bootstrap intervals of every metric, by resampling images, or whole groups of images.

All metrics here are functions of a few sums over images: of the cells of the confusion matrix, of losses, of bins of
scores. A resample is then a product of those sums' table with the counts of how often each image was drawn, and 2,000
resamples of 100,000 images take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import norm

from udc_model.evaluation.metrics import Metrics, Scored, equal_mass_bins

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], dict[str, Floats]]  # sums (M, B) to metrics (B,) by name
Intervals = dict[str, tuple[float, float]]

_CHUNK = 64  # resamples at a time
_EXACT_IN_FLOAT32 = 10**6  # groups up to which counts of images are exact in float32, and other sums to five digits
_JACKKNIFE = 200  # blocks, at most
_SCORE_BINS = 500  # a class, at most; exact up to as many distinct probabilities


def resample_counts(n: int, resamples: int, seed: np.random.SeedSequence, dtype: type) -> NDArray[np.floating]:
    """How often each of ``n`` groups is drawn, (n, resamples): n draws with replacement a resample."""
    rng = np.random.default_rng(seed)
    counts: NDArray[np.floating] = np.empty((resamples, n), dtype=dtype)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
    return np.ascontiguousarray(counts.T)


def resample(features: sparse.csr_matrix, statistic: Statistic, resamples: int, seed: int) -> dict[str, Floats]:
    """The metrics (B,) of ``resamples`` resamples of features (G, M); the same for any number of threads."""
    n = features.shape[0]
    dtype = np.float32 if n <= _EXACT_IN_FLOAT32 else np.float64
    columns = sparse.csr_matrix(features.T).astype(dtype)

    def metrics(size: int, own_seed: np.random.SeedSequence) -> dict[str, Floats]:
        return statistic(np.asarray(columns @ resample_counts(n, size, own_seed, dtype), dtype=np.float64))

    sizes = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # the products run outside Python's lock
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
    """Bias-corrected and accelerated bootstrap intervals (Efron 1987) of metrics of sums.

    Parameters
    ----------
    features : (G, M), what each of G independent groups adds to the M sums.
    statistic : metrics by name, each (B,), of sums (M, B); NaN where a resample does not define one.
    confidence : level of the two-sided interval.

    Returns
    -------
    Low and high of each metric that the data defines.
    """
    drawn = resample(features, statistic, resamples, seed)
    total = np.asarray(features.sum(axis=0)).reshape(-1, 1)
    estimate = statistic(total)
    blocks = np.arange(features.shape[0]) * min(_JACKKNIFE, features.shape[0]) // features.shape[0]
    left_out = statistic(total - by_group(features, blocks).T.toarray())
    found = {}
    for name, point in estimate.items():
        values = drawn[name]
        if np.isfinite(point[0]) and np.isfinite(values).any():
            found[name] = _bca(float(point[0]), values[np.isfinite(values)], left_out[name], confidence)
    return found


def _bca(point: float, values: Floats, left_out: Floats, confidence: float) -> tuple[float, float]:
    below = ((values < point).mean() + (values <= point).mean()) / 2
    bias = norm.ppf(np.clip(below, 0.5 / len(values), 1 - 0.5 / len(values)))
    deviation = np.nanmean(left_out) - left_out[np.isfinite(left_out)]
    spread = (deviation**2).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * spread) if spread > 0 else 0.0
    tails = bias + norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    shares = norm.cdf(bias + tails / np.maximum(1 - acceleration * tails, 1e-9))
    low, high = np.quantile(values, shares)
    return float(low), float(high)


@dataclass(frozen=True)
class Sums:
    """The table of what each image adds to the sums behind `split_metrics`, and how metrics come from sums.

    ``features`` is (N, M); the M columns are, in this order: (true, decided) cells, (true, argmax) cells, weight, log
    loss, Brier score, calibration gap by bin, and for each class (bins, other or own class) of its probability.
    """

    features: sparse.csr_matrix
    scored: Scored
    ece_bins: int
    score_bins: int
    recall_of: Sequence[tuple[int, str]]

    @classmethod
    def of(cls, scored: Scored, ece_bins: int, recall_of: Sequence[tuple[int, str]] = ()) -> Sums:
        """Build the table for one split."""
        n, k, d = len(scored.targets), scored.num_classes, scored.outcome_costs.shape[1]
        p, w = scored.probabilities, scored.counted
        argmax, rows = p.argmax(axis=1), np.arange(n)
        own = np.maximum(p[rows, scored.targets], np.finfo(float).eps)  # as scikit-learn's log_loss does
        confidence = p.max(axis=1)
        ece_bin = np.empty(n, dtype=np.intp)
        parts = equal_mass_bins(confidence, ece_bins)
        for i, part in enumerate(parts):
            ece_bin[part] = i
        scores, score_bins = score_table(scored)
        columns, values, offset = [], [], 0
        for column, value, width in (
            (scored.targets * d + scored.decided, w, k * d),
            (scored.targets * k + argmax, w, k * k),
            (np.zeros(n, dtype=np.intp), w, 1),
            (np.zeros(n, dtype=np.intp), -w * np.log(own), 1),
            (np.zeros(n, dtype=np.intp), w * ((p - np.eye(k)[scored.targets]) ** 2).sum(axis=1), 1),
            (ece_bin, w * (confidence - (argmax == scored.targets)), len(parts)),
        ):
            columns.append(column + offset)
            values.append(value)
            offset += width
        features = sparse.csr_matrix(
            (np.concatenate(values), (np.tile(rows, len(columns)), np.concatenate(columns))), shape=(n, offset)
        )
        features = sparse.csr_matrix(sparse.hstack([features, scores]))
        return cls(features, scored, len(parts), score_bins, recall_of)

    def metrics(self, sums: Floats) -> dict[str, Floats]:
        """The metrics (B,) of sums (M, B), by the names of `split_metrics`."""
        k, d = self.scored.outcome_costs.shape
        widths = np.cumsum([k * d, k * k, 1, 1, 1, self.ece_bins])
        cells, by_argmax, weight, log_loss, brier, gaps, scores = np.split(sums, widths)
        cells, by_argmax = cells.reshape(k, d, -1), by_argmax.reshape(k, k, -1)
        paid = np.einsum("kd,kdb->b", self.scored.outcome_costs, cells) / weight[0]
        paid_argmax = np.einsum("kd,kdb->b", self.scored.outcome_costs[:, :k], by_argmax) / weight[0]
        constant = np.einsum("kd,kb->db", self.scored.outcome_costs, cells.sum(axis=1)).min(axis=0) / weight[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                **_confusion_metrics(cells[:, :k]),
                "mean_cost": paid,
                "normalised_cost": np.where(constant > 0, paid / constant, np.nan),
                "constant_mean_cost": constant,
                "argmax_accuracy": np.einsum("kkb->b", by_argmax) / weight[0],
                "argmax_mean_cost": paid_argmax,
                "cost_saved": paid_argmax - paid,
                "referral_rate": cells[:, k:].sum(axis=(0, 1)) / weight[0],
            }
            for j, name in self.recall_of:
                own = cells[j].sum(axis=0)
                found[f"recall/{name}"] = cells[j, j] / own
                found[f"miss_rate/{name}"] = (cells[j, :k].sum(axis=0) - cells[j, j]) / own
            found |= {"log_loss": log_loss[0] / weight[0], "brier_score": brier[0] / weight[0]}
            auc, average_precision = areas(scores.reshape(k, self.score_bins, 2, -1))
            found |= {"roc_auc": auc.mean(axis=0), "average_precision": average_precision.mean(axis=0)}
            return found | {"expected_calibration_error": np.abs(gaps).sum(axis=0) / weight[0]}


def score_table(scored: Scored) -> tuple[sparse.csr_matrix, int]:
    """For each image and class, the bin of the probability, of the class's own images and others apart.

    Returns
    -------
    (N, K * bins * 2), weights where an image lies, and the number of bins.
    """
    n, k = scored.probabilities.shape
    bins = np.column_stack([_score_bins(scored.probabilities[:, j]) for j in range(k)])
    width = int(bins.max()) + 1
    own = scored.targets[:, None] == np.arange(k)
    columns = np.arange(k) * 2 * width + bins * 2 + own
    values = np.repeat(scored.counted, k)
    rows = np.repeat(np.arange(n), k)
    return sparse.csr_matrix((values, (rows, columns.ravel())), shape=(n, 2 * k * width)), width


def _score_bins(scores: Floats) -> NDArray[np.intp]:
    """The bin of each score, rising: one a distinct score if they are few, else bins of equal mass."""
    distinct, index = np.unique(scores, return_inverse=True)
    if len(distinct) <= _SCORE_BINS:
        return np.asarray(index)
    edges = np.quantile(scores, np.linspace(0, 1, _SCORE_BINS + 1)[1:-1])
    return np.searchsorted(edges, scores, side="right")


def _confusion_metrics(cells: Floats) -> dict[str, Floats]:
    """Metrics of confusion matrices (K, K, B), rows true."""
    true, decided, right = cells.sum(axis=1), cells.sum(axis=0), np.einsum("kkb->kb", cells)
    total, correct = true.sum(axis=0), right.sum(axis=0)
    by_chance = (true * decided).sum(axis=0)
    both = true + decided
    f1 = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    spread = np.sqrt((total**2 - (true**2).sum(axis=0)) * (total**2 - (decided**2).sum(axis=0)))
    covariance = correct * total - by_chance
    return {
        "accuracy": correct / total,
        "balanced_accuracy": np.divide(right, true, out=np.zeros_like(right), where=true > 0).sum(axis=0)
        / (true > 0).sum(axis=0),
        "macro_f1": f1.mean(axis=0),
        "cohen_kappa": covariance / (total**2 - by_chance),
        "matthews_correlation": np.where(spread > 0, covariance / spread, 0.0),
    }


def areas(scores: Floats) -> tuple[Floats, Floats]:
    """ROC AUC and average precision, (K, B) each, of (K, bins, other or own class, B)."""
    falling = scores[:, ::-1]
    other, own = falling[:, :, 0], falling[:, :, 1]
    found, false = own.cumsum(axis=1), other.cumsum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (other * (found - own / 2)).sum(axis=1) / (found[:, -1] * false[:, -1])
        precision = np.divide(found, found + false, out=np.zeros_like(found), where=found + false > 0)
        return auc, (own * precision).sum(axis=1) / found[:, -1]


def metric_intervals(
    scored: Scored,
    point: Metrics,
    ece_bins: int,
    recall_of: Sequence[tuple[int, str]],
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> Intervals:
    """The interval of each of the metrics ``point`` that `split_metrics` found, by resampling images or their groups.

    Where scores are binned (more than 500 distinct ones a class) the intervals of ``roc_auc`` and
    ``average_precision`` are moved by what the bins change in the estimate.
    """
    sums = Sums.of(scored, ece_bins, recall_of)
    features = by_group(sums.features, scored.groups)
    found = bca_intervals(features, sums.metrics, resamples, confidence, seed)
    binned = sums.metrics(np.asarray(features.sum(axis=0)).reshape(-1, 1))
    intervals = {}
    for name, value in point.items():
        if value is not None and name in found:
            moved = value - float(binned[name][0])
            intervals[name] = (found[name][0] + moved, found[name][1] + moved)
    return intervals
