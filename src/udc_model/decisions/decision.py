"""Decisions from probabilities, and their costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]


def shift_prior(probabilities: Floats, training: Floats, deployment: Floats) -> Floats:
    """Posteriors (N, K) for class frequencies ``deployment`` instead of ``training`` (Saerens et al. 2002, eq. 4)."""
    shifted = probabilities * (deployment / training)
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def expected_costs(probabilities: Floats, costs: Floats) -> Floats:
    """Expected cost of each decision, (N, D): ``probabilities @ costs`` with costs (K, D), rows true (Elkan 2001)."""
    return np.asarray(probabilities @ costs)


def decide(probabilities: Floats, costs: Floats, decision: str) -> NDArray[np.intp]:
    """The decision for each sample, (N,) column indices.

    Parameters
    ----------
    probabilities : (N, K) calibrated posteriors.
    costs : (K, D) cost matrix, rows true; columns beyond K are actions (Chow 1970: refer if every class costs more).
    decision : ``min_expected_cost`` is the decision of least expected cost (the Bayes decision), ``argmax`` the most
        probable class. Of ties, the first decision is taken.
    """
    if decision == "argmax":
        return np.asarray(np.argmax(probabilities, axis=1))
    if decision == "min_expected_cost":
        return np.asarray(np.argmin(expected_costs(probabilities, costs), axis=1))
    raise ValueError(f"unknown decision {decision!r}")


def with_surcharge(costs: Floats, classes: Sequence[int], surcharge: float) -> Floats:
    """The cost matrix (K, D) with ``surcharge`` added to all decisions for other than some classes if they are true."""
    increased, is_other = np.array(costs, dtype=np.float64), ~np.isin(np.arange(costs.shape[1]), classes)
    increased[np.ix_(np.asarray(classes), is_other)] += surcharge
    return increased


def clopper_pearson_bound(hits: float | Indices | Floats, n: float, confidence: float) -> Floats:
    """One-sided lower bound in [0, 1] of a share, such as a recall, of which ``hits`` of ``n`` were observed.

    Clopper and Pearson 1934, as a quantile of the beta distribution, without the half second that importing scipy.stats
    takes. The upper bound is one minus the lower bound of ``n - hits``. Numbers that are not whole are the share of
    images that were hit times the number of their groups.
    """
    hits = np.asarray(hits)
    return np.where(hits == 0, 0.0, betaincinv(np.where(hits == 0, 1, hits), n - hits + 1, 1 - confidence))


def mean_cost(targets: Indices, decisions: Indices, costs: Floats, weights: Floats | None = None) -> float:
    """Mean cost, ``mean C[y, decision]``, with sample weights (N,)."""
    return float(np.average(costs[targets, decisions], weights=weights))


def constant_costs(targets: Indices, costs: Floats, weights: Floats | None = None) -> Floats:
    """Mean cost of each constant decision, (D,)."""
    return np.asarray(np.average(costs[targets], axis=0, weights=weights))


def normalised_cost(targets: Indices, decisions: Indices, costs: Floats, weights: Floats | None = None) -> float | None:
    """Mean cost divided by that of the best constant decision; None if a constant decision costs nothing.

    0 is perfect, 1 is no better than the best constant decision.
    """
    constant = float(constant_costs(targets, costs, weights).min())
    return mean_cost(targets, decisions, costs, weights) / constant if constant > 0 else None
