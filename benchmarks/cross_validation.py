"""Coverage of the interval of a cross-validated cost, beside that of other intervals.

    python benchmarks/cross_validation.py [--draws 500] [--output benchmarks/cross_validation.csv]

Draws data sets of two classes, one of them rare and costly, and cross-validates a small procedure on each: a linear
discriminant, whose temperature is fitted on a quarter of the learning images, with decisions of least expected cost.
Its expected cost is known for each fitted model, as both classes are Gaussian. What an interval should contain is the
expected cost of the procedure with the number of learning images of a fold, the mean over all data sets. Each setting
is a row of the output as soon as it is measured; rows that exist are not measured again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from results_table import ResultsTable
from scipy.special import ndtr
from tqdm import tqdm

from udc_model.data.splits import assign_folds
from udc_model.evaluation.cross_validation import (
    CrossValidation,
    FoldDecisions,
    corrected_t_interval,
    cross_validation,
)

Floats = NDArray[np.float64]
COSTS = np.array([[0.0, 1.0], [20.0, 0.0]])
RARE = 0.25  # share of the costly class
FEATURES, FOLDS, LEVEL = 4, 5, 0.95
SETTINGS = (  # images, images of a group, repeats, distance of the classes
    (60, 1, 1, 2.0), (60, 1, 3, 2.0), (60, 1, 3, 4.0), (150, 1, 1, 2.0), (150, 1, 3, 2.0), (150, 1, 3, 4.0),
    (150, 5, 3, 2.0), (400, 1, 3, 2.0), (400, 1, 3, 4.0), (150, 1, 3, 0.0), (400, 1, 3, 0.0),
)  # fmt: skip
COLUMNS = ("images", "group", "repeats", "distance", "draws", "cost", "constant", "uncorrected", "corrected",
           "by_units", "interval", "corrected_width", "interval_width", "cheaper", "costlier")  # fmt: skip


@dataclass(frozen=True)
class Model:
    """Decides the costly class where ``direction @ x`` is above ``threshold``."""

    direction: Floats
    threshold: float

    @classmethod
    def fit(cls, x: Floats, y: NDArray[np.integer]) -> Model:
        """Fit the discriminant on three quarters of the images, and the temperature of its odds on the rest."""
        is_calibration = np.arange(len(y)) % 4 == 0
        learned, labels = x[~is_calibration], y[~is_calibration]
        means = np.array([learned[labels == k].mean(axis=0) for k in (0, 1)])
        centred = learned - means[labels]
        covariance = centred.T @ centred / len(labels) + 0.05 * np.eye(x.shape[1])
        direction = np.linalg.solve(covariance, means[1] - means[0])
        bias = np.log(labels.mean() / (1 - labels.mean())) - direction @ means.mean(axis=0)
        temperature = _temperature(x[is_calibration] @ direction + bias, y[is_calibration])
        # the costly class is decided if p C[1, 0] > (1 - p) C[0, 1], with log odds (direction @ x + bias) / T
        return cls(direction, float(temperature * np.log(COSTS[0, 1] / COSTS[1, 0]) - bias))

    def decide(self, x: Floats) -> NDArray[np.intp]:
        """The decision for each row."""
        return (x @ self.direction > self.threshold).astype(np.intp)

    def cost(self, distance: float) -> float:
        """Expected cost on new images: ``direction @ x`` of a class is normal."""
        spread = max(float(np.linalg.norm(self.direction)), 1e-12)
        shift = distance * float(self.direction[0])
        called_costly = [1 - ndtr((self.threshold - mean) / spread) for mean in (0.0, shift)]
        return float((1 - RARE) * called_costly[0] * COSTS[0, 1] + RARE * (1 - called_costly[1]) * COSTS[1, 0])


def _temperature(log_odds: Floats, y: NDArray[np.integer]) -> float:
    grid = np.geomspace(0.2, 20, 41)
    losses = np.logaddexp(0, -np.where(y == 1, 1, -1) * log_odds / grid[:, None]).mean(axis=1)
    return float(grid[losses.argmin()])


def draw(rng: np.random.Generator, n: int, size: int, distance: float) -> tuple[Floats, NDArray[np.intp]]:
    """Images (n, FEATURES) and classes (n,); the images of a group have one class and share half of their variance."""
    while True:
        y = (rng.random(n // size) < RARE).astype(np.intp)
        if y.sum() >= 6:
            break
    y = y.repeat(size)
    x = rng.normal(size=(n, FEATURES))
    if size > 1:
        x = (x + rng.normal(size=(n // size, FEATURES)).repeat(size, axis=0)) / np.sqrt(2)
    x[:, 0] += distance * y
    return x, y


def cross_validated(
    rng: np.random.Generator, x: Floats, y: NDArray[np.intp], size: int, repeats: int, distance: float
) -> tuple[CrossValidation, list[float]]:
    """The result, and the expected cost of each model on new images."""
    n, units, folds, costs = len(y), np.arange(len(y)) // size, [], []
    for repeat in range(repeats):
        fold_of_image = assign_folds(y, units, FOLDS, int(rng.integers(2**31)))
        for k in range(FOLDS):
            is_test = fold_of_image == k
            order = rng.permutation(np.flatnonzero(~is_test))
            order = order[np.argsort(y[order], kind="stable")]  # both classes in the calibration quarter
            model = Model.fit(x[order], y[order])
            costs.append(model.cost(distance))
            folds.append(FoldDecisions(repeat + 1, k + 1, n - int(is_test.sum()), units[is_test], y[is_test],
                                       model.decide(x[is_test]), np.ones(int(is_test.sum())), None))  # fmt: skip
    return cross_validation(folds, COSTS, ["safe", "costly"], LEVEL), costs


def measure(table: ResultsTable, draws: int, n: int, size: int, repeats: int, distance: float) -> None:
    """Add the row of a setting, unless it exists."""
    key = {"images": n, "group": size, "repeats": repeats, "distance": distance, "draws": draws}
    if table.has(**{name: f"{value:.4g}" if isinstance(value, float) else value for name, value in key.items()}):
        return
    rng = np.random.default_rng([n, size, repeats, int(10 * distance)])
    results, expected = [], []
    for _ in tqdm(range(draws), desc=f"{n} images, {repeats} repeats", disable=None, leave=False):
        result, costs = cross_validated(rng, *draw(rng, n, size, distance), size, repeats, distance)
        results.append(result)
        expected += costs
    truth = float(np.mean(expected))
    intervals: dict[str, list[tuple[float, float]]] = {
        "uncorrected": [],
        "corrected": [],
        "by_units": [],
        "interval": [],
    }
    for result in results:
        cost = result.cost
        intervals["uncorrected"].append(corrected_t_interval(result.table["cost"].to_numpy(), 0.0, LEVEL))
        intervals["corrected"].append(cost.by_folds)
        intervals["by_units"].append(cost.by_units)
        intervals["interval"].append((cost.low, cost.high))
    covered = [float(np.mean([low <= truth <= high for low, high in each])) for each in intervals.values()]
    widths = [float(np.mean([high - low for low, high in intervals[name]])) for name in ("corrected", "interval")]
    verdicts = [result.is_cheaper for result in results]
    shown = [verdicts.count(verdict) / draws for verdict in (True, False)]
    constant = float(min((1 - RARE) * COSTS[0, 1], RARE * COSTS[1, 0]))
    table.append(*key.values(), truth, constant, *covered, *widths, *shown)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    table = ResultsTable(options.output, COLUMNS)
    for setting in SETTINGS:
        measure(table, options.draws, *setting)
    print(pd.DataFrame(table.rows).to_string(index=False))  # noqa: T201


if __name__ == "__main__":
    main()
