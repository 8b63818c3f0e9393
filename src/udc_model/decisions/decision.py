"""Decisions from probabilities, their costs, and the surcharge that guarantees a recall."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from udc_model.errors import UdcError

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
    costs : (K, D) cost matrix, rows true; a column beyond K is referral (Chow 1970: refer if every class costs more).
    decision : ``min_expected_cost`` is the decision of least expected cost (the Bayes decision), ``argmax`` the most
        probable class. Of ties, the first decision is taken.
    """
    if decision == "argmax":
        return np.asarray(np.argmax(probabilities, axis=1))
    if decision == "min_expected_cost":
        return np.asarray(np.argmin(expected_costs(probabilities, costs), axis=1))
    raise ValueError(f"unknown decision {decision!r}")


def with_surcharge(costs: Floats, k: int, surcharge: float) -> Floats:
    """The cost matrix (K, D) with ``surcharge`` added to all decisions but ``k`` for true class ``k``."""
    increased = costs.copy()
    increased[k, np.arange(costs.shape[1]) != k] += surcharge
    return increased


def recall_surcharge(
    probabilities: Floats, targets: Indices, costs: Floats, k: int, floor: float, confidence: float, name: str
) -> float:
    """The smallest surcharge on missing class ``k`` for which a recall of at least ``floor`` is proved.

    Of all decisions with a fixed recall, the one of least expected cost minimises the expected cost under a matrix with
    a surcharge on missing the class (Lagrange multiplier). Of n calibration samples of the class it must decide r
    right, the smallest number whose one-sided Clopper-Pearson bound, ``Beta(1 - confidence; r, n - r + 1)``, reaches
    the floor. Since r depends on n alone, the surcharge is an order statistic of the samples' smallest surcharges, and
    the lower bound of the recall is exact (Wilks 1941).

    Parameters
    ----------
    probabilities, targets : (N, K) and (N,), of the calibration split.
    costs : (K, D), rows true.
    name : name of the class, for messages.

    Raises
    ------
    UdcError
        There are too few samples of the class to prove the floor; the message states how many are missing.
    """
    p = probabilities[targets == k]
    n = len(p)
    check_provable(n, floor, confidence, name)
    hits = np.arange(1, n + 1)
    r = int(hits[clopper_pearson_bound(hits, n, confidence) >= floor][0])
    expected = expected_costs(p, costs)
    gap = expected[:, k] - np.delete(expected, k, axis=1).min(axis=1)
    with np.errstate(divide="ignore"):
        # slightly above the tie, at which the first decision is taken
        smallest = np.where(gap < 0, 0.0, gap / p[:, k] * (1 + 1e-9) + 1e-12)
    surcharge = float(np.sort(smallest)[r - 1])
    if not np.isfinite(surcharge):
        raise UdcError(f"evaluate.recall_floor: the model gives some images of {name} the probability 0 of {name}, so "
                       "no surcharge reaches the floor; set evaluate.calibration, or train longer")  # fmt: skip
    return surcharge


def check_provable(n: int, floor: float, confidence: float, name: str) -> None:
    """Raise :class:`UdcError` if ``n`` images of the class ``name`` are too few to prove a recall of ``floor``."""
    needed = positives_needed(floor, confidence)
    if n < needed:
        raise UdcError(
            f"evaluate.recall_floor: a recall of {floor:g} of {name} at confidence {confidence:g} needs at least "
            f"{needed} of its images in the calibration split, which has {n}: {needed - n} more are needed. Raise "
            "data.splits.calibration, or lower the floor or the confidence"
        )


def positives_needed(floor: float, confidence: float) -> int:
    """The smallest number of samples that, all decided right, prove a recall of ``floor``: 59 for 95% at 95%."""
    return int(np.ceil(np.log(1 - confidence) / np.log(floor) - 1e-9))


def clopper_pearson_bound(hits: int | Indices, n: int, confidence: float) -> Floats:
    """One-sided lower bound in [0, 1] of a share, such as a recall, of which ``hits`` of ``n`` were observed.

    Clopper and Pearson 1934, as a quantile of the beta distribution, without the half second that importing scipy.stats
    takes. The upper bound is one minus the lower bound of ``n - hits``.
    """
    hits = np.asarray(hits)
    return np.where(hits == 0, 0.0, betaincinv(np.maximum(hits, 1), n - hits + 1, 1 - confidence))


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
