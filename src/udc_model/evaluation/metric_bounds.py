"""The lowest and the highest value that each metric of a resample takes if one more group had been seen.

The unseen group has the size of the largest one. A mean of values in [a, b] becomes ``(total + e a) / (size + e)`` at
the lowest, with e the weight of the unseen group's images. Other metrics are treated as means of what their most
influential group contributes; for these the coverage was measured (benchmarks/intervals.py), not proved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udc_model.decisions.actions import REFER
from udc_model.evaluation.confusion_sums import ConfusionSums
from udc_model.evaluation.metrics import Scored, SplitSums, miss_rate_metric, rate_metric, recall_metric

Floats = NDArray[np.float64]
Bounds = dict[str, tuple[Floats, Floats]]  # (B,) each


@dataclass(frozen=True)
class LargestGroup:
    """The largest weight that a group has: of all images, and of the images of each class, (K,)."""

    images: float
    of_class: Floats

    @classmethod
    def of(cls, scored: Scored) -> LargestGroup:
        """Those of scored images."""
        n, weights = len(scored.targets), scored.image_weights
        groups = np.arange(n) if scored.groups is None else np.unique(scored.groups, return_inverse=True)[1]
        of_class = [
            float(np.bincount(groups[is_class], weights[is_class]).max())
            for is_class in (scored.targets == y for y in range(scored.num_classes))
        ]
        return cls(float(np.bincount(groups, weights).max()), np.array(of_class))


def metric_bounds(
    sums: SplitSums,
    values: Mapping[str, Floats],
    unseen: Floats,
    observed: SplitSums,
    scored: Scored,
    largest: LargestGroup,
    recall_of: Sequence[tuple[int, str]],
) -> Bounds:
    """Lowest and highest value (B,) of each metric of B resamples, except the calibration error.

    Parameters
    ----------
    sums, values : sums of the resamples, and the metrics at them.
    unseen : (B,) weight of the unseen group.
    observed : sums over all images, as ``sums`` with B = 1.
    """
    cells, weight = sums.decided, sums.decided.weight
    extra = unseen * largest.images
    means = _means(scored)
    bounds = {name: _mean(values[name], extra / weight, ends) for name, ends in means.items()}
    for y, name in recall_of:
        share = _divide(unseen * largest.of_class[y], cells.true[y])
        bounds |= {metric(name): _mean(values[metric(name)], share, (0.0, 1.0))
                   for metric in (recall_metric, miss_rate_metric)}  # fmt: skip
    bounds |= _cost_ratio_bounds(cells, extra, observed.decided, scored.outcome_costs)
    bounds |= _agreement_bounds(cells, values, unseen, largest)
    share = unseen * (largest.of_class[:, None] / cells.true).max(axis=0) / scored.num_classes
    for name in ("roc_auc", "average_precision"):
        bounds[name] = _mean(values[name], share, (0.0, 1.0))
    return bounds


def _means(scored: Scored) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of an image, of the metrics that are means over all images."""
    costs, k = scored.outcome_costs, scored.num_classes
    low, high = costs.min(axis=1), costs.max(axis=1)
    of_classes = costs[:, :k]
    return {
        "mean_cost": (float(low.min()), float(high.max())),
        "argmax_mean_cost": (float(of_classes.min()), float(of_classes.max())),
        "cost_saved": (float((of_classes.min(axis=1) - high).min()), float((of_classes.max(axis=1) - low).max())),
        "argmax_accuracy": (0.0, 1.0),
        rate_metric(REFER): (0.0, 0.0),
        **{rate_metric(name): (0.0, 1.0) for name in scored.action_names},
        "log_loss": (0.0, -np.log(scored.least_probability)),
        "brier_score": (0.0, 2.0),
    }


def _mean(value: Floats, share: Floats, ends: tuple[float, float]) -> tuple[Floats, Floats]:
    """A mean with an unseen group of ``share`` of the others' weight, with the lowest and with the highest value."""
    value = np.nan_to_num(value)  # without any image, the share is infinite and the mean that of the unseen group
    seen = 1 / (1 + share)
    return value * seen + ends[0] * (1 - seen), value * seen + ends[1] * (1 - seen)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """The ratio, infinite where the denominator is not above 0."""
    ratio = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.inf)
    return np.asarray(np.divide(numerator, denominator, out=ratio, where=denominator > 0))


def _cost_ratio_bounds(cells: ConfusionSums, extra: Floats, observed: ConfusionSums, costs: Floats) -> Bounds:
    """Bounds of the mean cost of the best constant decision, and of the mean cost divided by it.

    The best constant decision is a minimum over decisions. Its lower end takes the minimum of their lower ends, its
    upper end that of the decision that was best on the data; for the ratio the other way round.
    """
    weight, paid, constant = cells.weight, cells.cost, cells.constant_cost
    best = int(observed.constant_cost[:, 0].argmin())
    lowest = (constant + costs.min(axis=0)[:, None] * extra).min(axis=0) / (weight + extra)
    highest = (constant[best] + costs[:, best].max() * extra) / (weight + extra)
    ratio_high, ratio_low = np.zeros_like(paid), np.full_like(paid, np.inf)
    for value in np.unique(costs.max(axis=1)):  # rows of one highest cost: the one that adds least to the divisor
        divisor = constant + costs[costs.max(axis=1) == value].min(axis=0)[:, None] * extra
        ratio_high = np.maximum(ratio_high, _divide(paid + value * extra, divisor).max(axis=0))
    for value in np.unique(costs.min(axis=1)):
        divisor = constant[best] + costs[costs.min(axis=1) == value, best].max() * extra
        ratio_low = np.minimum(ratio_low, _divide(paid + value * extra, divisor))
    return {"constant_mean_cost": (lowest, highest), "normalised_cost": (ratio_low, ratio_high)}


def _agreement_bounds(
    cells: ConfusionSums, values: Mapping[str, Floats], unseen: Floats, largest: LargestGroup
) -> Bounds:
    """Bounds of the metrics of the images that are decided as a class."""
    true, decided = cells.true_decided, cells.decided
    total = true.sum(axis=0)
    share = _divide(unseen * largest.images, total)
    sizes = largest.of_class[:, None]
    of_recall = (unseen * np.where(true > 0, sizes / np.maximum(true, 1e-300), 0)).max(axis=0)
    of_f1 = (unseen * np.where(true > 0, 2 * sizes / np.maximum(true + decided, 1e-300), 0)).max(axis=0)
    classes, with_f1 = (np.maximum((images > 0).sum(axis=0), 1) for images in (true, true + decided))
    bounds = {
        "accuracy": _mean(values["accuracy"], share, (0.0, 1.0)),
        "balanced_accuracy": _mean(values["balanced_accuracy"], of_recall / classes, (0.0, 1.0)),
        "macro_f1": _mean(values["macro_f1"], of_f1 / with_f1, (0.0, 1.0)),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        by_chance = (true * decided).sum(axis=0) / total**2
        spread = np.sqrt((1 - (true**2).sum(axis=0) / total**2) * (1 - (decided**2).sum(axis=0) / total**2))
    for name, scale in (("cohen_kappa", 1 - by_chance), ("matthews_correlation", spread)):
        ends = [(accuracy - by_chance) / np.where(scale > 0, scale, np.nan) for accuracy in bounds["accuracy"]]
        low, high = (np.nan_to_num(end, nan=value) for end, value in zip(ends, (-1.0, 1.0), strict=True))
        bounds[name] = np.maximum(low, -1.0), np.minimum(high, 1.0)
    return bounds


def gap_noise(sums: SplitSums, observed: SplitSums, unseen: Floats) -> Floats:
    """By how much the gaps of all bins together differ in each resample from the observed ones, (B,).

    The calibration error is a sum of absolute values. It cannot differ from the true one by more than this sum of the
    errors of the bins, whatever its bias. The unseen group, of weight ``unseen`` (B,), adds a gap of 1.
    """
    weight, total = sums.argmax.weight, observed.argmax.weight
    change = np.abs(sums.calibration_gap / weight - observed.calibration_gap / total).sum(axis=0)
    return np.asarray(change + unseen / (weight + unseen))


def proportions(
    observed: SplitSums, num_images: int, recall_of: Sequence[tuple[int, str]], actions: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Hits and images of each metric that is a proportion of images of weight 1; ``actions`` are all names."""
    cells = observed.decided
    counts = {
        "accuracy": (cells.right.sum(), cells.decided.sum()),
        "argmax_accuracy": (observed.argmax.right.sum(), num_images),
    }
    for j, name in enumerate(actions):
        counts[rate_metric(name)] = cells.actions[j].sum(), num_images
    for y, name in recall_of:
        counts[recall_metric(name)] = cells.right[y, 0], cells.true[y, 0]
        counts[miss_rate_metric(name)] = cells.true_decided[y, 0] - cells.right[y, 0], cells.true[y, 0]
    return {name: (round(float(hits)), round(float(size))) for name, (hits, size) in counts.items()}
