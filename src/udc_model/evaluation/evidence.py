"""Warnings about figures that rest on few costly mistakes, with an upper bound on what may have been missed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from udc_model.evaluation.intervals import mean_draws, sum_by_group
from udc_model.evaluation.metrics import Scored

Floats = NDArray[np.float64]
ENOUGH = 10  # costly mistakes; with fewer, the relative standard error of their number is above 30 %


def few_mistakes_of(scored: Scored, confidence: float) -> list[str]:
    """`few_mistakes` of the decisions of a split."""
    is_mistake = (scored.decided != scored.targets) & (scored.decided < scored.num_classes)
    costs = scored.outcome_costs[:, : scored.num_classes]
    return few_mistakes(scored.cost_paid, is_mistake, costs, scored.image_weights, scored.groups, confidence)


def few_mistakes(
    paid: Floats,
    is_mistake: NDArray[np.bool_],
    class_costs: Floats,
    weights: Floats,
    groups: NDArray[np.integer] | None,
    confidence: float,
) -> list[str]:
    """A warning if fewer than ten costly mistakes were seen, else nothing.

    A mistake is costly if it costs at least half of the costliest one. The bounds allow for an unseen group, as the
    intervals do.

    Parameters
    ----------
    paid, is_mistake, weights : (N,) cost paid for each image, whether another class was decided, weight.
    class_costs : (K, K), rows true.
    groups : (N,) group indices; None if each image is its own group.
    confidence : level of the one-sided bounds.
    """
    mistakes = class_costs[~np.eye(len(class_costs), dtype=bool)]
    highest = float(mistakes.max())
    if highest <= 0:
        return []
    is_costly = is_mistake & (paid >= highest / 2)
    count = int(is_costly.sum())
    if count >= ENOUGH:
        return []
    sizes = sum_by_group(weights, groups)
    share, cost = (
        float(np.quantile(mean_draws(sum_by_group(weights * values, groups), sizes, 0.0, largest)[1], confidence))
        for values, largest in ((is_costly.astype(float), 1.0), (is_costly * paid, highest))
    )
    cheapest = float(mistakes[mistakes >= highest / 2].min())
    noun = "mistake" if count == 1 else "mistakes"
    kind = "" if cheapest == mistakes.min() else f" of cost {cheapest:g} or more"
    number = "no" if count == 0 else f"only {count}"
    return [f"{number} {noun}{kind} in {len(paid):,} images; in truth up to {share:.2%} of the images may be "
            f"decided so ({confidence:.0%} bound), at {cost:.4f} per image"]  # fmt: skip
