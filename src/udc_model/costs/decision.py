"""From probabilities to decisions and their price."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def expected_costs(probabilities: Floats, costs: Floats) -> Floats:
    """Expected cost of each decision, (N, D): ``probabilities @ costs`` with costs (K, D), rows true (Elkan 2001)."""
    return np.asarray(probabilities @ costs)


def decide(probabilities: Floats, costs: Floats, rule: str) -> NDArray[np.intp]:
    """The decisions of evaluate, predict and the served model, (N,) column indices.

    Parameters
    ----------
    probabilities : (N, K) calibrated posteriors.
    costs : (K, D) cost matrix, rows true.
    rule : ``min_expected_cost`` takes the decision of least expected cost (the Bayes decision), ``argmax`` the most
        probable class. Ties go to the first class.
    """
    if rule == "argmax":
        return np.asarray(np.argmax(probabilities, axis=1))
    if rule == "min_expected_cost":
        return np.asarray(np.argmin(expected_costs(probabilities, costs), axis=1))
    raise ValueError(f"no decision rule is called {rule!r}")


def mean_cost(targets: NDArray[np.integer], decisions: NDArray[np.integer], costs: Floats) -> float:
    """Mean price paid, ``mean C[y, decision]``."""
    return float(costs[targets, decisions].mean())


def normalised_cost(targets: NDArray[np.integer], decisions: NDArray[np.integer], costs: Floats) -> float | None:
    """Mean cost over that of the best constant decision: 0 is perfect, 1 no better than not looking.

    None where a constant decision is free, for then the ratio means nothing.
    """
    constant = costs[targets].mean(axis=0).min()
    return mean_cost(targets, decisions, costs) / float(constant) if constant > 0 else None
