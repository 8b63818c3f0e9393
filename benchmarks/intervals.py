"""Coverage of intervals, level of tests, and time of resampling.

    python benchmarks/intervals.py

Draws synthetic test sets with skewed costs, with and without groups, and counts how often the 95% interval of the mean
cost contains the true value, how often the paired test and the paired interval find a difference between equals, and
how often a recall floor is missed. Then times 2,000 resamples of 100,000 predictions.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import binom
from tqdm import tqdm

from udc_model.decisions.decision import decide, recall_surcharge, with_surcharge
from udc_model.evaluation.comparison import compare_predictions
from udc_model.evaluation.intervals import bca_intervals, by_group, metric_intervals
from udc_model.evaluation.metrics import Scored, split_metrics

COSTS = np.array([0.0, 1.0, 10.0])
SHARES = np.array([0.88, 0.10, 0.02])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    rows = []
    for n in (500, 1000, 2000):
        rows.append(
            (f"interval of the mean cost contains the true value, {n} images", coverage(draws, n), "0.93 to 0.97")
        )
    rows.append(("the same, 300 groups of 1 to 7 equal images", coverage(draws, 300, grouped=True), "0.93 to 0.97"))
    test, interval = false_positives(draws)
    allowed = f"{binom.ppf(0.001, draws, 0.05) / draws:.3f} to {binom.ppf(0.999, draws, 0.05) / draws:.3f}"
    rows += [("paired test at 0.05, no true difference", test, allowed),
             ("paired 95% interval excludes 0, no true difference", interval, "about 0.05")]  # fmt: skip
    rows.append(("recall floor of 0.95 at confidence 0.9 is missed", missed_floors(draws), "at most 0.1"))
    print(pd.DataFrame(rows, columns=["what", "share", "expected"]).to_string(index=False))  # noqa: T201
    for classes in (3, 10):
        print(f"2,000 resamples of 100,000 predictions, {classes} classes: {seconds(classes):.1f} s")  # noqa: T201


def coverage(draws: int, n: int, grouped: bool = False) -> float:
    """Share of draws whose interval of the mean cost contains the true value."""
    rng = np.random.default_rng(n)
    true_mean, hits = float(COSTS @ SHARES), 0
    for i in tqdm(range(draws), desc=f"coverage, {n}", disable=None, leave=False):
        costs = rng.choice(COSTS, n, p=SHARES)
        groups = None
        if grouped:  # images of a group have the same cost
            groups = np.repeat(np.arange(n), rng.integers(1, 8, n))
            costs = costs[groups]
        features = by_group(sparse.csr_matrix(np.column_stack([costs, np.ones(len(costs))])), groups)
        low, high = bca_intervals(features, lambda sums: {"cost": sums[0] / sums[1]}, 2000, 0.95, i)["cost"]
        hits += low <= true_mean <= high
    return hits / draws


def false_positives(draws: int, n: int = 400) -> tuple[float, float]:
    """Shares of draws in which the paired test and the paired interval find a difference between equals."""
    rng = np.random.default_rng(1)
    by_test = by_interval = 0
    for i in tqdm(range(draws), desc="paired test", disable=None, leave=False):
        a, b = (_table(rng.choice(3, n, p=SHARES)) for _ in range(2))
        cost = compare_predictions(a, b, resamples=1000, seed=i).differences[0]
        by_test += cost.p_value is not None and cost.p_value <= 0.05
        by_interval += cost.low > 0 or cost.high < 0
    return by_test / draws, by_interval / draws


def _table(decided: NDArray[np.integer]) -> pd.DataFrame:
    n = len(decided)
    names = np.array(["a", "b", "c"], dtype=object)
    return pd.DataFrame({"path": np.arange(n).astype(str), "sha256": "", "group": "", "true": "a",
                         "predicted": names[decided], "cost_paid": COSTS[decided], "weight": 1.0})  # fmt: skip


def missed_floors(draws: int) -> float:
    """Share of draws in which a recall floor of 0.95 at confidence 0.9 is missed."""
    rng = np.random.default_rng(2)
    costs = np.array([[0.0, 1.0, 4.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]])

    def sample(n: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        p = rng.dirichlet([0.6, 0.6, 0.6], n)
        return p, (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)

    p, y = sample(100_000)
    p_of_class, missed = p[y == 1], 0
    for _ in tqdm(range(draws), desc="recall floor", disable=None, leave=False):
        surcharge = recall_surcharge(*sample(400), costs, 1, 0.95, 0.9, "b")
        missed += (decide(p_of_class, with_surcharge(costs, 1, surcharge), "min_expected_cost") == 1).mean() < 0.95
    return missed / draws


def seconds(classes: int, n: int = 100_000) -> float:
    """Wall time of the intervals of all metrics."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, n)
    p = rng.dirichlet(np.ones(classes), n) + np.eye(classes)[targets] * rng.random((n, 1))
    p /= p.sum(axis=1, keepdims=True)
    costs = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes))).astype(float)
    scored = Scored(targets, (p @ costs).argmin(axis=1), p, costs)
    point = split_metrics(scored, 15)
    started = time.perf_counter()
    metric_intervals(scored, point, 15, (), 2000, 0.95)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
