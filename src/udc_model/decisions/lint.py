"""Finds costs that are valid but probably unintended: decisions that are never made, mistakes without effect."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from udc_model.decisions.actions import ActionCosts, with_actions


def lint_costs(
    costs: NDArray[np.float64], classes: list[str], refer: float | None = None, actions: ActionCosts | None = None
) -> list[str]:
    """Warnings about costs that are valid but probably unintended, one sentence each.

    Parameters
    ----------
    costs : (K, K), rows true.
    refer, actions : cost of referral, and costs of the other actions.
    """
    actions = actions or {}
    outcome_costs = with_actions(costs, refer, actions)
    findings = _action_findings(outcome_costs, refer, list(actions))
    for k, name in enumerate(classes):
        if (costs[k] == 0).all():
            findings.append(f"costs: mistakes on {name} cost nothing, so its images do not affect the cost")
        if (costs[:, k] <= 0).all() and (costs[:, [k]] <= outcome_costs).all():
            findings.append(f"costs: deciding {name} costs nothing for any true class, so it is always the decision")
        elif is_never_least(outcome_costs, k):
            findings.append(f"costs: deciding {name} never has the least expected cost; no image is decided {name}")
    return findings


def _action_findings(outcome_costs: NDArray[np.float64], refer: float | None, names: list[str]) -> list[str]:
    """Actions that are never or always the decision; the names are those after referral."""
    k, findings = len(outcome_costs), []
    if refer is not None and is_never_least(outcome_costs, k):
        findings.append(f"costs.refer: at {refer:g}, referral never has the least expected cost; no image is referred")
    for column, name in enumerate(names, outcome_costs.shape[1] - len(names)):
        if (outcome_costs[:, [column]] < np.delete(outcome_costs, column, axis=1)).all():
            findings.append(f"costs.actions: {name} costs less than any other decision for each true class, so it is "
                            "always the decision; is a sign wrong?")  # fmt: skip
        elif is_never_least(outcome_costs, column):
            findings.append(f"costs.actions: {name} never has the least expected cost, so it is never the decision")
    return findings


def is_never_least(costs: NDArray[np.float64], decision: int) -> bool:
    """Whether it is proved that a decision has strictly the least expected cost for no posterior.

    Decision d of the costs C (K, D) is strictly the least for a posterior p if ``p G < 0`` with the gains
    ``G = C[:, d] - C[:, others]`` (K, D - 1). By Gordan's theorem (Gordan 1873) there is such a p exactly if no mixture
    q of the other decisions has ``G q >= 0``: costs no more, whatever the true class. A linear programme finds a
    candidate for each; the candidates are checked in exact arithmetic, so no finding rests on rounding.

    Parameters
    ----------
    costs : (K, D) finite costs.
    decision : column of the decision.
    """
    num_costlier = np.count_nonzero(costs[:, [decision]] < costs, axis=1)
    if (num_costlier == costs.shape[1] - 1).any():  # the cheapest decision for one true class
        return False
    gains = costs[:, [decision]] - np.delete(costs, decision, axis=1)
    rows, columns = _equilibrating_scales(gains)
    scaled = rows[:, None] * gains * columns
    first, second = np.triu_indices(len(scaled))
    if ((scaled[first] + scaled[second]) / 2 < -1e-9).all(axis=1).any():
        return False
    posterior, mixture = _candidates(scaled)
    if _is_negative(posterior * rows, gains):
        return False
    weights = [[Fraction(float(q)).limit_denominator(limit) for q in mixture] for limit in (10**3, 10**6, 10**12)]
    scales = [Fraction(float(scale)) for scale in columns]
    return any(
        _costs_no_more([q * scale for q, scale in zip(each, scales, strict=True)], costs, decision) for each in weights
    )


def _equilibrating_scales(gains: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Powers of 2 for rows and columns that bring the entries of a matrix near 1, so that a solver sees all of them."""
    rows, columns = np.ones(len(gains)), np.ones(gains.shape[1])
    sizes = np.log2(np.abs(gains), out=np.full_like(gains, np.nan), where=gains != 0)
    for _ in range(8):
        for axis, scales in ((1, rows), (0, columns)):
            current = sizes + np.log2(rows)[:, None] + np.log2(columns)
            has_entry = ~np.isnan(current).all(axis=axis)
            middle = np.zeros(len(scales))
            low, high = np.nanmin(current, axis=axis, initial=np.inf), np.nanmax(current, axis=axis, initial=-np.inf)
            middle[has_entry] = (low[has_entry] + high[has_entry]) / 2
            scales *= 2.0 ** -np.round(middle)
    return rows, columns


def _candidates(gains: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The posterior (K,) that maximises the smallest advantage, and the dual mixture (D - 1,) of other decisions."""
    from scipy.optimize import linprog  # 0.2 s to import

    k = len(gains)
    best = linprog(
        c=np.append(np.zeros(k), -1.0),
        A_ub=np.column_stack([gains.T, np.ones(gains.shape[1])]),
        b_ub=np.zeros(gains.shape[1]),
        A_eq=np.append(np.ones(k), 0.0)[None, :],
        b_eq=[1.0],
        bounds=[(0, None)] * k + [(None, None)],
    )
    return np.maximum(best.x[:k], 0.0), np.maximum(-best.ineqlin.marginals, 0.0)


def _is_negative(posterior: NDArray[np.float64], gains: NDArray[np.float64]) -> bool:
    """Whether ``posterior @ gains < 0`` in exact arithmetic."""
    weights = [Fraction(float(p)) for p in posterior]
    return all(sum(w * _exact(g) for w, g in zip(weights, column, strict=True) if w) < 0 for column in gains.T)


def _costs_no_more(weights: list[Fraction], costs: NDArray[np.float64], decision: int) -> bool:
    """Whether a mixture of the other decisions costs at most as much as the decision for every class, exactly."""
    total = sum(weights)
    if not total:
        return False
    others = np.delete(costs, decision, axis=1)
    return all(
        sum(w * _exact(c) for w, c in zip(weights, row, strict=True) if w) <= total * _exact(own)
        for row, own in zip(others, costs[:, decision], strict=True)
    )


def _exact(cost: float) -> Fraction:
    """The decimal number that a person wrote: 0.1, not the nearest binary number."""
    return Fraction(repr(float(cost)))
