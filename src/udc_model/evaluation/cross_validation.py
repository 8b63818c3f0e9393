"""The cost of a procedure from its decisions on held-out folds, with an interval that allows for their dependence.

The models of two folds share most of their training images, so the mean costs of folds are not independent, and no
unbiased estimator of the variance of their mean exists (Bengio and Grandvalet 2004). The corrected resampled t interval
(Nadeau and Bengio 2003) replaces the factor ``1 / J`` of the variance by ``1 / J + n_test / n_learn``. It knows only
what the folds show: without a costly mistake in any of them, its width says nothing about such mistakes. So each end is
the outer one of two intervals: this one, and that of the mean over the groups of images with an unseen group, as for a
test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student_t

from udc_model.evaluation.intervals import interval_of, mean_draws, sum_by_group
from udc_model.evaluation.verdict import UNIT, cost_text

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class FoldDecisions:
    """The decisions of a fold's model on its test split of n images.

    Attributes
    ----------
    repeat, number : from 1.
    learning_images : number of the other images: training, validation and calibration.
    units : (n,) unit of each image, the same in all folds: a group, or a set of copies.
    true, decided : (n,) class index, and column of the cost matrix.
    weights : (n,) weight of each image.
    is_cheaper : whether this test split alone shows that the decisions cost less than the best constant decision; False
        if it shows that they cost more, None if it shows neither.
    """

    repeat: int
    number: int
    learning_images: int
    units: NDArray[np.integer]
    true: NDArray[np.integer]
    decided: NDArray[np.integer]
    weights: Floats
    is_cheaper: bool | None


@dataclass(frozen=True)
class Estimate:
    """A mean over folds, its interval, and the two intervals that this one contains within the bounds of a mean."""

    value: float
    low: float
    high: float
    by_folds: Interval
    by_units: Interval


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation.

    Attributes
    ----------
    table : one row for each fold: ``repeat``, ``fold``, ``images``, ``cost``, ``constant_cost`` (that of the best
        constant decision), ``right`` (share decided right) and ``is_cheaper``.
    cost, difference : of the mean cost, and of it minus that of the best constant decision.
    constant : name of the best constant decision, as "always 4".
    """

    table: pd.DataFrame
    cost: Estimate
    difference: Estimate
    constant: str
    confidence: float

    @property
    def is_cheaper(self) -> bool | None:
        """Whether the procedure is shown to cost less than the best constant decision; None if neither is shown."""
        return True if self.difference.high < 0 else False if self.difference.low > 0 else None

    def to_text(self) -> str:
        """A table of the folds, the cost, what is shown, and what one test split would have shown."""
        cost, level = self.cost, f"{self.confidence:.0%}"
        shown = self.table.drop(columns="is_cheaper").rename(columns={"constant_cost": self.constant})
        return "\n".join([
            shown.to_string(index=False, float_format="{:.4f}".format),
            f"Cost of the procedure: {cost_text(cost.value)} {UNIT} ({level} interval {cost_text(cost.low)} to "
            f"{cost_text(cost.high)}), against {cost_text(cost.value - self.difference.value)} for {self.constant}.",
            self._verdict(level),
            self._about_one_split(),
        ]) + "\n"  # fmt: skip

    def _verdict(self, level: str) -> str:
        difference = self.difference
        interval = f"difference {cost_text(difference.low)} to {cost_text(difference.high)}"
        match self.is_cheaper:
            case True:
                return f"Cheaper than {self.constant}: shown at the {level} level ({interval})."
            case False:
                return f"Costlier than {self.constant}, the best decision without a model ({level} level, {interval})."
            case _:
                return f"Not shown to be cheaper than {self.constant}, the best decision without a model ({interval})."

    def _about_one_split(self) -> str:
        verdicts = list(self.table["is_cheaper"])
        agreeing = sum(verdict is not None and self.is_cheaper in (None, verdict) for verdict in verdicts)
        size = round(float(self.table["images"].mean()))
        alone = (f"of {len(verdicts)} test splits of about {size:,} images, {agreeing} show by themselves whether "
                 "their model costs less")  # fmt: skip
        is_decided = 2 * agreeing >= len(verdicts)
        return f"{alone.capitalize()}." if is_decided else f"One test split decides nothing: {alone}."


def cross_validation(
    folds: Sequence[FoldDecisions], outcome_costs: Floats, outcomes: Sequence[str], confidence: float
) -> CrossValidation:
    """The cost of the procedure whose decisions on held-out images these are.

    Parameters
    ----------
    folds : of all repeats, two or more.
    outcome_costs : (K, D), rows true; ``outcomes`` are the names of its columns.
    confidence : level of the intervals.
    """
    costs = outcome_costs[np.concatenate([fold.true for fold in folds])]
    constant = int(np.average(costs, axis=0, weights=np.concatenate([fold.weights for fold in folds])).argmin())
    paid = [outcome_costs[fold.true, fold.decided] for fold in folds]
    instead = [outcome_costs[fold.true, constant] for fold in folds]
    rows = [
        {"repeat": fold.repeat, "fold": fold.number, "images": len(fold.true),
         "cost": float(np.average(a, weights=fold.weights)),
         "constant_cost": float(np.average(b, weights=fold.weights)),
         "right": float((fold.true == fold.decided).mean()), "is_cheaper": fold.is_cheaper}
        for fold, a, b in zip(folds, paid, instead, strict=True)
    ]  # fmt: skip
    table = pd.DataFrame(rows).astype({"is_cheaper": object})
    table["is_cheaper"] = [row["is_cheaper"] for row in rows]
    differences = [a - b for a, b in zip(paid, instead, strict=True)]
    relative = outcome_costs - outcome_costs[:, [constant]]
    cost = _estimate(folds, paid, (float(outcome_costs.min()), float(outcome_costs.max())), confidence)
    difference = _estimate(folds, differences, (float(relative.min()), float(relative.max())), confidence)
    return CrossValidation(table, cost, difference, f"always {outcomes[constant]}", confidence)


def _estimate(
    folds: Sequence[FoldDecisions], values: Sequence[Floats], bounds: Interval, confidence: float
) -> Estimate:
    """The mean of values (n,) of the images of each fold, which are within ``bounds``."""
    means = np.array([np.average(value, weights=fold.weights) for fold, value in zip(folds, values, strict=True)])
    ratio = float(np.mean([len(fold.true) / fold.learning_images for fold in folds]))
    by_folds = corrected_t_interval(means, ratio, confidence)
    units = np.concatenate([fold.units for fold in folds])
    weights = np.concatenate([fold.weights for fold in folds])
    sums, sizes = sum_by_group(weights * np.concatenate(values), units), sum_by_group(weights, units)
    by_units = interval_of(mean_draws(sums, sizes, *bounds), confidence)
    low, high = max(bounds[0], min(by_folds[0], by_units[0])), min(bounds[1], max(by_folds[1], by_units[1]))
    return Estimate(float(means.mean()), low, high, by_folds, by_units)


def corrected_t_interval(means: Floats, ratio: float, confidence: float) -> Interval:
    """The corrected resampled t interval of Nadeau and Bengio (2003) of the means (J,) of the test splits.

    Parameters
    ----------
    ratio : images of a test split, divided by those that its model has learned from.
    """
    j = len(means)
    error = float(np.sqrt((1 / j + ratio) * means.var(ddof=1)))
    half = float(student_t.ppf((1 + confidence) / 2, j - 1)) * error
    return float(means.mean()) - half, float(means.mean()) + half
