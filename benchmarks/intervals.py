"""Coverage and width of the intervals, beside those of BCa bootstrap intervals, and the time that they take.

    python benchmarks/intervals.py [--draws 2000] [--output benchmarks/intervals.csv]

Draws synthetic test sets, single images and groups of six, and counts how often a nominal 95% interval contains the
true value. First the mean cost alone, of rare mistakes of cost 20 (probability p) and more frequent ones of cost 1
(probability q), in the settings in which BCa intervals fail. Then all metrics of a classifier of three classes. Each
setting is a row of the output as soon as it is measured; rows that exist are not measured again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from results_table import ResultsTable
from scipy import sparse
from scipy.special import ndtr, ndtri
from scipy.stats import binom
from tqdm import tqdm

from udc_model.evaluation.intervals import by_group, interval_of, mean_draws, metric_intervals
from udc_model.evaluation.metrics import (
    Metrics,
    Scored,
    SplitSums,
    metric_terms,
    metrics_of_sums,
    score_terms,
    split_metrics,
)
from udc_model.evaluation.score_sums import SCORE_BINS

Floats = NDArray[np.float64]
LEVEL = 0.95
COLUMNS = (
    "metric",
    "setting",
    "images",
    "group",
    "draws",
    "coverage",
    "width",
    "bca_draws",
    "bca_coverage",
    "bca_width",
)
MEAN_COST = ((300, 0.002, 0.02), (300, 0.005, 0.02), (1000, 0.002, 0.05), (150, 0.02, 0.05), (300, 0.02, 0.05),
             (300, 0.08, 0.10))  # fmt: skip
MORE_IMAGES = ((30, 0.02, 0.05), (100, 0.005, 0.02), (1000, 0.02, 0.05), (3000, 0.002, 0.02), (3000, 0.02, 0.05))
GROUPS = (
    (15, 0.02, 0.05),
    (30, 0.02, 0.05),
    (100, 0.02, 0.05),
    (100, 0.002, 0.02),
    (500, 0.005, 0.02),
)  # of six images
CLASSIFIERS = ((30, 1, "balanced"), (100, 1, "balanced"), (300, 1, "rare"), (1000, 1, "rare"), (3000, 1, "rare"),
               (90, 6, "balanced"), (180, 6, "balanced"), (600, 6, "rare"), (300, 1, "prior"), (300, 1, "refer"),
               )  # fmt: skip
MATRIX = np.array([[0.0, 1.0, 1.0], [2.0, 0.0, 1.0], [20.0, 20.0, 0.0]])
BCA_EVERY = 8  # draws of a classifier that get BCa intervals too
RECALL_OF = [(2, "c")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    table = ResultsTable(options.output, COLUMNS)
    for n, p, q in (*MEAN_COST, *MORE_IMAGES):
        mean_cost(table, options.draws, n, 1, p, q)
    for groups, p, q in GROUPS:
        mean_cost(table, options.draws, 6 * groups, 6, p, q)
    for n, size, kind in CLASSIFIERS:
        classifier(table, options.draws, n, size, kind)
    lowest = binom.ppf(0.005, options.draws, 0.94) / options.draws
    shown = pd.DataFrame(table.rows).assign(low=lambda t: np.where(t["coverage"].astype(float) < lowest, "LOW", ""))
    print(shown.to_string(index=False))  # noqa: T201
    for classes in (3, 10):
        print(f"intervals of 100,000 predictions of {classes} classes: {seconds(classes):.1f} CPU-seconds")  # noqa: T201


def mean_cost(table: ResultsTable, draws: int, n: int, size: int, p: float, q: float) -> None:
    """Coverage and width of both intervals of a mean cost; of a group, half the images share their outcome."""
    setting = f"{p} at 20; {q} at 1"
    if table.has(metric="mean_cost", setting=setting, images=n, group=size, draws=draws):
        return
    rng, truth = np.random.default_rng(n), 20 * p + q
    ours, bca = [], []
    for i in tqdm(range(draws), desc=f"mean cost, {n} images", disable=None, leave=False):
        costs = rng.choice([20.0, 1.0, 0.0], (n // size, size), p=[p, q, 1 - p - q])
        shared = rng.random((n // size, size)) < 0.5
        shared[:, 0] = True  # with the first image
        costs = np.where(shared, costs[:, :1], costs)
        sums, sizes = costs.sum(axis=1), np.full(n // size, float(size))
        ours.append(interval_of(mean_draws(sums, sizes, 0.0, 20.0, i), LEVEL))
        bca.append(bca_of_mean(sums / size, i))
    table.append("mean_cost", setting, n, size, draws, *quality(ours, truth), draws, *quality(bca, truth))


def quality(intervals: list[tuple[float, float]], truth: float) -> tuple[float, float]:
    """Coverage and mean width."""
    low, high = np.array(intervals).T
    return float(((low - 1e-12 <= truth) & (truth <= high + 1e-12)).mean()), float((high - low).mean())


def bca_of_mean(values: Floats, seed: int, resamples: int = 2000) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987) of the mean of independent values."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = (
        np.random.default_rng(seed).multinomial(len(values), counts / len(values), resamples) @ distinct / len(values)
    )
    deviation = values - values.mean()
    return bca(float(values.mean()), drawn, deviation)


def bca(point: float, drawn: Floats, deviation: Floats) -> tuple[float, float]:
    """The BCa interval of a value, from its resamples and the deviations of the jackknife."""
    below = ((drawn < point).mean() + (drawn <= point).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    spread = (deviation**2).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * spread) if spread > 0 else 0.0
    tails = bias + ndtri([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.quantile(drawn, ndtr(bias + tails / np.maximum(1 - acceleration * tails, 1e-9)))
    return float(low), float(high)


def test_sets(rng: np.random.Generator, n: int, size: int, kind: str) -> Iterator[Scored]:
    """Test sets of n images in groups of ``size`` with an overconfident classifier of three classes."""
    shares, distance = (np.array([0.6, 0.3, 0.1]), 1.5) if kind == "balanced" else (np.array([0.8, 0.17, 0.03]), 2.5)
    costs = np.column_stack([MATRIX, np.full(3, 0.5)]) if kind == "refer" else MATRIX
    while True:
        y = rng.choice(3, n // size, p=shares).repeat(size)
        common, single = rng.normal(size=(n // size, 3)).repeat(size, axis=0), rng.normal(size=(n, 3))
        logits = single if size == 1 else (common + single) / np.sqrt(2)
        logits = 1.3 * distance * (logits + distance * np.eye(3)[y]) + np.log(shares)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        counts = np.bincount(y, minlength=3)
        if counts.min():
            weights = (np.array([0.5, 0.3, 0.2]) / (counts / n))[y] if kind == "prior" else None
            groups = None if size == 1 else np.arange(n) // size
            yield Scored(y, (probabilities @ costs).argmin(axis=1), probabilities, costs, weights, groups)


def classifier(table: ResultsTable, draws: int, n: int, size: int, kind: str) -> None:
    """Coverage and width of the intervals of all metrics, and of BCa intervals in some of the draws."""
    if table.has(metric="mean_cost", setting=kind, images=n, group=size, draws=draws):
        return
    truth = split_metrics(next(test_sets(np.random.default_rng(0), 1_200_000, size, kind)), 15, RECALL_OF)
    sets = test_sets(np.random.default_rng(n), n, size, kind)
    ours: dict[str, list[tuple[float, float]]] = {}
    theirs: dict[str, list[tuple[float, float]]] = {}
    for i in tqdm(range(draws), desc=f"classifier, {kind}, {n} images", disable=None, leave=False):
        scored = next(sets)
        point = split_metrics(scored, 15, RECALL_OF)
        for name, interval in metric_intervals(scored, point, 15, RECALL_OF, 400, LEVEL, i).items():
            ours.setdefault(name, []).append(interval)
        if i % BCA_EVERY == 0:
            for name, interval in bca_of_metrics(scored, point, i).items():
                theirs.setdefault(name, []).append(interval)
    for name in sorted(ours, key=lambda name: name != "mean_cost"):
        value = truth[name]
        if value is not None:
            bca_quality = quality(theirs[name], value) if name in theirs else (float("nan"), float("nan"))
            table.append(name, kind, n, size, draws, *quality(ours[name], value), -(-draws // BCA_EVERY), *bca_quality)


def bca_of_metrics(scored: Scored, point: Metrics, seed: int, resamples: int = 400) -> dict[str, tuple[float, float]]:
    """BCa intervals of all metrics, from resamples of images or groups with replacement."""
    terms = metric_terms(scored, 15) | {"scores": score_terms(scored, SCORE_BINS)}
    features = sparse.csr_matrix(sparse.hstack([part.table(len(scored.targets)) for part in terms.values()]))
    features = by_group(features, scored.groups)
    ends = np.cumsum([part.width for part in terms.values()])[:-1]

    def metrics(sums: Floats) -> dict[str, Floats]:
        by_name = dict(zip(terms, np.split(sums, ends), strict=True))
        return metrics_of_sums(SplitSums.of(by_name, scored.outcome_costs), RECALL_OF, scored.action_names)

    n = features.shape[0]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).T
    drawn, blocks = metrics(features.T @ counts), np.arange(n) * min(100, n) // n
    total = np.asarray(features.sum(axis=0)).reshape(-1, 1)
    left_out = metrics(total - by_group(features, blocks).T.toarray())
    intervals = {}
    for name, value in point.items():
        values, without = drawn[name], left_out[name][np.isfinite(left_out[name])]
        if value is not None and np.isfinite(values).any():
            intervals[name] = bca(value, values[np.isfinite(values)], without.mean() - without)
    return intervals


def seconds(classes: int, n: int = 100_000) -> float:
    """CPU time of the intervals of all metrics."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n) + np.eye(classes)[targets] * rng.random((n, 1))
    p /= p.sum(axis=1, keepdims=True)
    costs = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes))).astype(float)
    scored = Scored(targets, (p @ costs).argmin(axis=1), p, costs)
    point = split_metrics(scored, 15)
    return cpu_seconds(lambda: metric_intervals(scored, point, 15, (), 2000, LEVEL))


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of a call, of all threads."""
    started = time.process_time()
    call()
    return time.process_time() - started


if __name__ == "__main__":
    main()
