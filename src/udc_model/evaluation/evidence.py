"""Warnings about figures that rest on few costly mistakes, with an upper bound on what may have been missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from udc_model.evaluation.intervals import mean_draws, sum_by_group
from udc_model.evaluation.metrics import Scored

Floats = NDArray[np.float64]
ENOUGH = 10  # costly mistakes; with fewer, the relative standard error of their number is above 30 %


def warnings_of(scored: Scored, outcomes: Sequence[str], confidence: float) -> list[str]:
    """Why the metrics of a split say little, one sentence each: `too_few_images` and `few_mistakes`."""
    is_mistake, costs = _mistakes(scored), scored.outcome_costs[:, : scored.num_classes]
    weights, groups = scored.image_weights, scored.groups
    too_few = too_few_images(scored.targets, scored.outcome_costs, outcomes, weights, groups, confidence)
    return too_few + few_mistakes(scored.cost_paid, is_mistake, costs, weights, groups, confidence)


def costly_mistakes(scored: Scored) -> NDArray[np.bool_]:
    """(N,) whether another class was decided at a cost of at least half of the costliest mistake."""
    k = scored.num_classes
    highest = float(scored.outcome_costs[:, :k][~np.eye(k, dtype=bool)].max())
    return _mistakes(scored) & (scored.cost_paid >= highest / 2) & (highest > 0)


def _mistakes(scored: Scored) -> NDArray[np.bool_]:
    return np.asarray((scored.decided != scored.targets) & (scored.decided < scored.num_classes))


def too_few_images(
    targets: NDArray[np.integer],
    outcome_costs: Floats,
    outcomes: Sequence[str],
    weights: Floats,
    groups: NDArray[np.integer] | None,
    confidence: float,
) -> list[str]:
    """A warning if these images cannot show that any model is worth its use, else nothing.

    Each image is given its cheapest decision. Even then, the difference to a constant decision is not shown to be below
    0 if an unseen group, as large as the largest one and decided at the highest cost, outweighs all images in more than
    the allowed share of the random weights. For exponential weights that share is the product over the groups of
    ``1 / (1 + d / u)``: d is what the constant decision costs more on the group, u what it costs less on the unseen
    one. The interval of the normalised cost has the same unseen group, so no result on these images is called cheaper.

    Parameters
    ----------
    targets : (N,) true class indices.
    outcome_costs : (K, D), rows true.
    outcomes : names of the D decisions.
    weights : (N,) weight of each image.
    groups : (N,) group indices; None if each image is its own group.
    confidence : level of the two-sided interval.
    """
    sizes = sum_by_group(weights, groups)
    cheapest, shares = outcome_costs.min(axis=1), []
    for constant in outcome_costs.T:
        excess = sum_by_group(weights * (constant - cheapest)[targets], groups)
        unseen = sizes.max() * float((outcome_costs.max(axis=1) - constant).max())
        if not excess.any():  # no model can cost less than this decision, which is no news
            return []
        shares.append(float(np.exp(-np.log1p(excess / unseen).sum())) if unseen > 0 else 0.0)
    worst = int(np.argmax(shares))
    if shares[worst] <= (1 - confidence) / 2:
        return []
    units = "" if groups is None else f" in {len(sizes):,} groups"
    return [f"{len(targets):,} images{units} decide nothing: even without a mistake, no model would be shown to cost "
            f"less than always {outcomes[worst]} ({confidence:.0%} interval); udc cross-validate uses all "
            "images"]  # fmt: skip


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
    return [f"{number} {noun}{kind} among {len(paid):,} images: their true share may be up to {share:.2%} "
            f"({confidence:.0%} bound), and would then cost {cost:.4f} per image"]  # fmt: skip
