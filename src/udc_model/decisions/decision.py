"""From probabilities to decisions and their price."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from udc_model.errors import UdcError

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]


def shift_prior(probabilities: Floats, training: Floats, deployment: Floats) -> Floats:
    """Posteriors (N, K) when class frequencies go from ``training`` to ``deployment`` (Saerens et al. 2002, eq. 4)."""
    shifted = probabilities * (deployment / training)
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def expected_costs(probabilities: Floats, costs: Floats) -> Floats:
    """Expected cost of each decision, (N, D): ``probabilities @ costs`` with costs (K, D), rows true (Elkan 2001)."""
    return np.asarray(probabilities @ costs)


def decide(probabilities: Floats, costs: Floats, decision: str) -> NDArray[np.intp]:
    """The decisions of evaluate, predict and the served model, (N,) column indices.

    Parameters
    ----------
    probabilities : (N, K) calibrated posteriors.
    costs : (K, D) cost matrix, rows true; a column beyond K is referral (Chow 1970: refer where every class is dearer).
    rule : ``min_expected_cost`` takes the decision of least expected cost (the Bayes decision), ``argmax`` the most
        probable class. Ties go to the first decision.
    """
    if decision == "argmax":
        return np.asarray(np.argmax(probabilities, axis=1))
    if decision == "min_expected_cost":
        return np.asarray(np.argmin(expected_costs(probabilities, costs), axis=1))
    raise ValueError(f"no decision is called {decision!r}")


def with_surcharge(costs: Floats, k: int, price: float) -> Floats:
    """The cost matrix (K, D) in which missing class ``k``, by whatever other decision, costs ``price`` more."""
    dearer = costs.copy()
    dearer[k, np.arange(costs.shape[1]) != k] += price
    return dearer


def recall_surcharge(
    probabilities: Floats, targets: Indices, costs: Floats, k: int, floor: float, confidence: float, name: str
) -> float:
    """The least surcharge on missing class ``k`` with which its recall provably reaches ``floor``.

    The cheapest of all rules with a given recall is the decision of least expected cost under a matrix in which missing
    the class costs more (Lagrange). Of n calibration samples of the class it must find r, the least number whose
    one-sided Clopper-Pearson bound, ``Beta(1 - confidence; r, n - r + 1)``, reaches the floor. r depends on n alone, so
    the surcharge is an order statistic of the samples' own ones, and the recall's lower bound is exact (Wilks 1941).

    Parameters
    ----------
    probabilities, targets : (N, K) and (N,), of the calibration split.
    costs : (K, D), rows true.
    name : the class, for messages.

    Raises
    ------
    UdcError
        There are too few samples of the class to prove the floor; the message says how many are missing.
    """
    own = probabilities[targets == k]
    n = len(own)
    check_provable(n, floor, confidence, name)
    found = np.arange(1, n + 1)
    r = int(found[clopper_pearson_bound(found, n, confidence) >= floor][0])
    expected = expected_costs(own, costs)
    gap = expected[:, k] - np.delete(expected, k, axis=1).min(axis=1)
    with np.errstate(divide="ignore"):
        # A hair above the tie, which would go to the first decision.
        least = np.where(gap < 0, 0.0, gap / own[:, k] * (1 + 1e-9) + 1e-12)
    surcharge = float(np.sort(least)[r - 1])
    if not np.isfinite(surcharge):
        raise UdcError(f"evaluate.recall_floor: the model calls it impossible that some images of {name} are {name}; "
                       "no price changes that. Calibrate (evaluate.calibration), or train longer")  # fmt: skip
    return surcharge


def check_provable(n: int, floor: float, confidence: float, name: str) -> None:
    """:class:`UdcError` if ``n`` images of the class ``name`` are too few to prove a recall of ``floor``."""
    needed = positives_needed(floor, confidence)
    if n < needed:
        raise UdcError(
            f"evaluate.recall_floor: a recall of {floor:g} of {name} at confidence {confidence:g} needs at least "
            f"{needed} of its images in the calibration split, which has {n}: {needed - n} more are needed. Raise "
            "data.splits.calibration, or lower the floor or the confidence"
        )


def positives_needed(floor: float, confidence: float) -> int:
    """The least number of samples that, all found, prove a recall of ``floor``: 59 for 95% at 95% confidence."""
    return int(np.ceil(np.log(1 - confidence) / np.log(floor) - 1e-9))


def clopper_pearson_bound(found: int | Indices, n: int, confidence: float) -> Floats:
    """One-sided lower bound in [0, 1] of a share, such as a recall, when ``found`` of ``n`` were counted.

    Clopper and Pearson 1934, as a quantile of the beta distribution; scipy.stats has it too, but takes half a second
    to import. The upper bound of ``found`` is one minus the lower bound of ``n - found``.
    """
    found = np.asarray(found)
    return np.where(found == 0, 0.0, betaincinv(np.maximum(found, 1), n - found + 1, 1 - confidence))


def mean_cost(targets: Indices, decisions: Indices, costs: Floats, weights: Floats | None = None) -> float:
    """Mean price paid, ``mean C[y, decision]``; ``weights`` (N,) count samples more or less often."""
    return float(np.average(costs[targets, decisions], weights=weights))


def constant_costs(targets: Indices, costs: Floats, weights: Floats | None = None) -> Floats:
    """Mean price of each decision, (D,), if every sample got the same."""
    return np.asarray(np.average(costs[targets], axis=0, weights=weights))


def normalised_cost(targets: Indices, decisions: Indices, costs: Floats, weights: Floats | None = None) -> float | None:
    """Mean cost over that of the best constant decision: 0 is perfect, 1 no better than not looking.

    None where a constant decision is free, for then the ratio means nothing.
    """
    constant = float(constant_costs(targets, costs, weights).min())
    return mean_cost(targets, decisions, costs, weights) / constant if constant > 0 else None
