"""The cost matrix ``C[y, k]``: the price of deciding class k where the truth is class y."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from udc_model.config import CostParams
from udc_model.errors import UdcError


def cost_matrix(params: CostParams, classes: list[str]) -> NDArray[np.float64]:
    """Build the (K, K) cost matrix, rows true and columns predicted, in the order of ``classes``.

    Raises
    ------
    UdcError
        A class that the data lacks, a row or cell that is missing, or an order that does not fit; all are named.
    """
    _check_names(params, classes)
    n = len(classes)
    if isinstance(params.matrix, dict):
        costs = np.array([[params.matrix[true][predicted] for predicted in classes] for true in classes])
    elif params.matrix is not None:
        costs = np.array(params.matrix)
    elif params.preset == "absolute_difference":
        values = _ordinal_values(params, classes)
        costs = params.default * np.abs(values[:, None] - values[None, :]) ** params.power
    else:
        costs = params.default * (1.0 - np.eye(n))
    index = {name: k for k, name in enumerate(classes)}
    for entry in params.entries:
        costs[index[entry.true], index[entry.predicted]] = entry.cost
    if (costs == costs[:, :1]).all():
        raise UdcError("costs: every decision costs the same whatever the truth, so there is nothing to decide")
    return costs


def _check_names(params: CostParams, classes: list[str]) -> None:
    known = set(classes)
    problems = []
    for i, entry in enumerate(params.entries):
        for key, name in (("true", entry.true), ("predicted", entry.predicted)):
            if name not in known:
                problems.append(f"costs.entries.{i}.{key}: the data has no class {name!r}")
    if isinstance(params.matrix, list) and [len(row) for row in params.matrix] != [len(classes)] * len(classes):
        shape = " + ".join(str(len(row)) for row in params.matrix)
        problems.append(f"costs.matrix: needs {len(classes)} rows of {len(classes)} numbers, has rows of {shape}")
    if isinstance(params.matrix, dict):
        problems += _key_problems("costs.matrix", set(params.matrix), known)
        for true, row in params.matrix.items():
            problems += _key_problems(f"costs.matrix.{true}", set(row), known)
    if params.order is not None:
        problems += _key_problems("costs.order", set(params.order), known)
        if len(params.order) != len(set(params.order)):
            problems.append("costs.order: names a class twice")
    if problems:
        raise UdcError("\n".join([*problems, f"the classes of the data are: {', '.join(classes)}"]))


def _key_problems(where: str, given: set[str], known: set[str]) -> list[str]:
    problems = [f"{where}: the data has no class {name!r}" for name in sorted(given - known)]
    return problems + [f"{where}: the class {name!r} is missing" for name in sorted(known - given)]


def _ordinal_values(params: CostParams, classes: list[str]) -> NDArray[np.float64]:
    """The place of each class on the ordinal scale: its rank in ``costs.order``, or the number that it is named."""
    if params.order is not None:
        return np.array([params.order.index(name) for name in classes], dtype=float)
    try:
        return np.array([float(name) for name in classes])
    except ValueError:
        raise UdcError(
            "costs.preset: absolute_difference needs class names that are numbers, or their order in costs.order; "
            f"the classes are {', '.join(classes)}"
        ) from None


def with_referral(costs: NDArray[np.float64], refer: float | None) -> NDArray[np.float64]:
    """The prices of all decisions, (K, D): those of the classes and, where it is offered, of referral at the end."""
    return costs if refer is None else np.column_stack([costs, np.full(len(costs), refer)])


def class_prior(params: CostParams, classes: list[str]) -> NDArray[np.float64] | None:
    """``costs.prior`` in the order of ``classes``, (K,), or None; :class:`UdcError` if it names other classes."""
    if params.prior is None:
        return None
    if problems := _key_problems("costs.prior", set(params.prior), set(classes)):
        raise UdcError("\n".join([*problems, f"the classes of the data are: {', '.join(classes)}"]))
    prior = np.array([params.prior[name] for name in classes])
    return np.asarray(prior / prior.sum())


def lint_costs(costs: NDArray[np.float64], classes: list[str], refer: float | None = None) -> list[str]:
    """What in a (K, K) cost matrix is allowed but hardly meant, one sentence each, with what follows from it."""
    found = []
    priced = with_referral(costs, refer)
    if refer is not None and not _is_ever_cheapest(priced, len(costs)):
        found.append(f"costs.refer: at {refer:g} handing an image to a person is never the cheapest; none will be")
    for k, name in enumerate(classes):
        others = np.delete(costs[k], k)
        if (others == 0).all():
            found.append(f"costs: no mistake on a {name} costs anything, so its images count for nothing")
        if (costs[:, k] <= 0).all():
            found.append(f"costs: calling every image {name} costs nothing, so that is what the cheapest rule will do")
        elif not _is_ever_cheapest(priced, k):
            found.append(f"costs: deciding {name} is never the cheapest, however sure the model is; no image will be")
    return found


def _is_ever_cheapest(costs: NDArray[np.float64], decision: int) -> bool:
    """Whether any posterior makes a decision, a column of (K, D), strictly cheaper than all others: a linear programme.

    Maximise t over posteriors p with ``p C[:, other] - p C[:, decision] >= t`` for every other decision.
    """
    k = len(costs)
    gains = costs[:, [decision]] - np.delete(costs, decision, axis=1)  # (K, D - 1), to be below -t for p
    best = linprog(
        c=np.append(np.zeros(k), -1.0),
        A_ub=np.column_stack([gains.T, np.ones(gains.shape[1])]),
        b_ub=np.zeros(gains.shape[1]),
        A_eq=np.append(np.ones(k), 0.0)[None, :],
        b_eq=[1.0],
        bounds=[(0, None)] * k + [(None, None)],
    )
    return bool(-best.fun > 1e-9 * np.abs(costs).max())
