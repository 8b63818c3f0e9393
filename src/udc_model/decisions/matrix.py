"""The cost matrix ``C[y, k]``: the cost of deciding class k if the true class is y."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from udc_model.config import LARGEST_COST, SHARE_TOLERANCE, CostParams, EvaluateParams
from udc_model.errors import UdcError

_MAX_LISTED = 20  # classes in a message


def cost_matrix(params: CostParams, classes: list[str]) -> NDArray[np.float64]:
    """Build the (K, K) cost matrix, rows true and columns predicted, in the order of ``classes``.

    Raises
    ------
    UdcError
        A class is not in the data, a row or cell is missing, or the order does not match; the message lists all.
    """
    if problems := cost_problems(params, classes):
        raise UdcError("\n".join([*problems, f"the classes of the data are: {list_classes(classes)}"]))
    n = len(classes)
    if isinstance(params.matrix, dict):
        costs = np.array([[params.matrix[true][predicted] for predicted in classes] for true in classes])
    elif params.matrix is not None:
        costs = np.array(params.matrix)
    elif params.preset == "absolute_difference":
        values = _ordinal_values(params, classes)
        with np.errstate(over="ignore"):  # an infinite cost is refused below
            costs = params.default * np.abs(values[:, None] - values[None, :]) ** params.power
    else:
        costs = params.default * (1.0 - np.eye(n))
    index = {name: k for k, name in enumerate(classes)}
    for entry in params.entries:
        costs[index[entry.true], index[entry.predicted]] = entry.cost
    if not (np.abs(costs) <= LARGEST_COST).all():
        raise UdcError(f"costs: a cost is larger than {LARGEST_COST:g}; lower costs.power or costs.default")
    if problems := _cheap_mistakes(params, costs, classes):
        raise UdcError("\n".join(problems))
    if (costs == costs[:, :1]).all():
        raise UdcError("costs: all decisions cost the same for each true class, so there is nothing to decide")
    return costs


def _cheap_mistakes(params: CostParams, costs: NDArray[np.float64], classes: list[str]) -> list[str]:
    """Mistakes that cost less than the right decision of their row, probably by a wrong sign, one sentence each."""
    entries = {(entry.true, entry.predicted): f"costs.entries.{i}" for i, entry in enumerate(params.entries)}
    problems = []
    for y, k in np.argwhere(costs < np.diag(costs)[:, None]):
        true, decided = classes[y], classes[k]
        origin = entries.get((true, decided)) or entries.get((true, true)) or "costs.matrix"
        problems.append(f"{origin}: deciding {decided} costs {costs[y, k]:g} if the true class is {true}, less than "
                        f"the right decision ({costs[y, y]:g}); is a sign wrong?")  # fmt: skip
    return problems


def cost_problems(params: CostParams, classes: Sequence[str]) -> list[str]:
    """Why `cost_matrix` cannot be built for these classes, one sentence each."""
    names = set(classes)
    problems = []
    for i, entry in enumerate(params.entries):
        for key, entry_class in (("actual", entry.true), ("predicted", entry.predicted)):
            if entry_class not in names:
                problems.append(f"costs.entries.{i}.{key}: {no_class(entry_class, classes)}")
    if isinstance(params.matrix, list) and [len(row) for row in params.matrix] != [len(classes)] * len(classes):
        shape = " + ".join(str(len(row)) for row in params.matrix)
        problems.append(f"costs.matrix: needs {len(classes)} rows of {len(classes)} numbers, has rows of {shape}")
    if isinstance(params.matrix, dict):
        problems += key_problems("costs.matrix", params.matrix, classes)
        for true, row in params.matrix.items():
            problems += key_problems(f"costs.matrix.{true}", row, classes)
    if params.order is not None:
        problems += key_problems("costs.order", params.order, classes)
        if len(params.order) != len(set(params.order)):
            problems.append("costs.order: names a class twice")
    unordered = [name for name in classes if not _is_number(name)]
    if unordered and params.order is None and params.matrix is None and params.preset == "absolute_difference":
        problems.append(
            "costs.preset: absolute_difference needs class names that are numbers, or their order in costs.order; "
            f"no numbers are the classes {list_classes(unordered)}; uniform needs no order"
        )
    return problems


def prior_problems(params: CostParams, classes: Sequence[str]) -> list[str]:
    """Why ``costs.prior`` does not fit the classes, one sentence each."""
    if params.prior is None:
        return []
    allowed = set(classes)
    unknown = [f"costs.prior: {no_class(name, classes)}" for name in params.prior if name not in allowed]
    total, is_complete = sum(params.prior.values()), set(params.prior) >= set(classes)
    if not unknown and is_complete and abs(total - 1) > SHARE_TOLERANCE:
        return [f"costs.prior: the shares add up to {total:g}; they must add up to 1"]
    if not unknown and not is_complete and total > 1 - SHARE_TOLERANCE:
        others = list_classes([name for name in classes if name not in params.prior])
        return [f"costs.prior: the shares add up to {total:g}, which leaves nothing for {others}; lower a share"]
    return unknown


def guarantee_problems(evaluate: EvaluateParams, costs: CostParams, classes: Sequence[str]) -> list[str]:
    """Why the floors or the ceiling of ``evaluate`` do not fit the classes and costs, one sentence each."""
    problems = []
    for i, floor in enumerate(evaluate.recall_floors):
        parameter = "evaluate.recall_floor" + (f".{i}" if isinstance(evaluate.recall_floor, list) else "")
        problems += [f"{parameter}.class: {no_class(name, classes)}" for name in floor.classes if name not in classes]
        if len(set(floor.classes)) < len(floor.classes):
            problems.append(f"{parameter}.class: names a class twice")
        if set(floor.classes) >= set(classes):
            problems.append(f"{parameter}.class: names all classes, so every decision has a recall of 1")
        if evaluate.decision == "recall_floor" and len(floor.classes) > 1 and costs.prior is not None:
            problems.append(f"{parameter}.class: the recall of several classes depends on their frequencies, so it "
                            "cannot be proved for those in costs.prior; state a floor for each class")  # fmt: skip
    if evaluate.decision == "cost_ceiling" and costs.refer is None:
        problems.append("evaluate.decision: cost_ceiling needs costs.refer, the cost of referring an image to a person")
    if evaluate.decision == "cost_ceiling" and costs.prior is not None:
        problems.append("evaluate.decision: cost_ceiling cannot be proved for other class frequencies than those of "
                        "the calibration split; remove costs.prior, or use recall floors")  # fmt: skip
    return problems


def proof_problems(evaluate: EvaluateParams) -> list[str]:
    """That the calibration is fitted too closely to the images that the guarantee is proved on."""
    if evaluate.decision not in ("recall_floor", "cost_ceiling") or evaluate.calibration in ("none", "temperature"):
        return []
    return [f"evaluate.calibration: {evaluate.calibration} fits the calibration split so closely that "
            f"{evaluate.decision} cannot be proved on the same images; set temperature or none"]  # fmt: skip


def no_class(name: str, classes: Sequence[str]) -> str:
    """That the data lacks a class, and one of a similar name that it has."""
    similar = {each.casefold().strip(): each for each in classes}
    close = difflib.get_close_matches(name.casefold().strip(), similar, n=1)
    return f"the data has no class {name!r}" + (f"; did you mean {similar[close[0]]!r}?" if close else "")


def list_classes(classes: Sequence[str]) -> str:
    """The first 20 class names for a message, and the number of further ones."""
    more = f", … and {len(classes) - _MAX_LISTED} more" if len(classes) > _MAX_LISTED else ""
    return ", ".join(name if name.isprintable() else repr(name) for name in classes[:_MAX_LISTED]) + more


def key_problems(parameter: str, names: Collection[str], classes: Sequence[str]) -> list[str]:
    """Why the names in a parameter are not those of all classes, one sentence each."""
    allowed, present = set(classes), set(names)
    problems = [f"{parameter}: {no_class(name, classes)}" for name in dict.fromkeys(names) if name not in allowed]
    missing = [name for name in classes if name not in present]
    if not missing:
        return problems
    if len(missing) == 1:
        return [*problems, f"{parameter}: the class {missing[0]!r} is missing"]
    return [*problems, f"{parameter}: {len(missing)} classes are missing: {list_classes(missing)}"]


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _ordinal_values(params: CostParams, classes: list[str]) -> NDArray[np.float64]:
    """The value of each class on the ordinal scale: its index in ``costs.order``, or its name as a number."""
    if params.order is not None:
        index = {name: k for k, name in enumerate(params.order)}
        return np.array([index[name] for name in classes], dtype=float)
    return np.array([float(name) for name in classes])


def display_order(params: CostParams, classes: Sequence[str]) -> list[int] | None:
    """Indices of the classes in the order of ``costs.order``, which plots and tables follow; None if it is not set."""
    index = {name: k for k, name in enumerate(classes)}
    return None if params.order is None else [index[name] for name in params.order]


def class_prior(params: CostParams, classes: list[str], training_counts: Sequence[float]) -> NDArray[np.float64] | None:
    """``costs.prior`` in the order of ``classes``, (K,), or None.

    Parameters
    ----------
    training_counts : (K,) images of each class, in whose proportion the classes that are not named share the rest.

    Raises
    ------
    UdcError
        A class is not in the data, or the shares do not add up.
    """
    if params.prior is None:
        return None
    if problems := prior_problems(params, classes):
        raise UdcError("\n".join([*problems, f"the classes of the data are: {list_classes(classes)}"]))
    prior = np.array([params.prior.get(name, 0.0) for name in classes])
    others = np.array([0.0 if name in params.prior else count for name, count in
                       zip(classes, training_counts, strict=True)])  # fmt: skip
    if others.any():
        prior += (1 - prior.sum()) * others / others.sum()
    return np.asarray(prior / prior.sum())
