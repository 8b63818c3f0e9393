"""Actions: decisions other than a class, as to refer an image to a person, to retest or to discard.

An action is one more column of the cost matrix, with a cost by true class. ``costs.refer`` is the action ``refer``,
which costs the same for every class; those of ``costs.actions`` follow it in the order of the parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from udc_model.config import CostParams
from udc_model.decisions.matrix import key_problems

REFER = "refer"  # the decision to refer an image to a person
_LONGEST_NAME = 255  # bytes of the name of a class or an action, as of a folder

ActionCosts = Mapping[str, Sequence[float]]  # name: costs (K,) by true class


def action_costs(params: CostParams, classes: Sequence[str]) -> dict[str, list[float]]:
    """The costs of ``costs.actions``, (K,) each, in the order of ``classes``, which `action_problems` has checked."""
    return {
        name: [float(costs[true]) for true in classes] if isinstance(costs, dict) else [float(costs)] * len(classes)
        for name, costs in (params.actions or {}).items()
    }


def with_actions(class_costs: NDArray[np.float64], refer: float | None, actions: ActionCosts) -> NDArray[np.float64]:
    """The costs of all decisions, (K, D), rows true: a cost matrix (K, K), then a column for each action.

    Parameters
    ----------
    refer : cost of referral, whose column is the first of the actions; None if it is not available.
    """
    columns = [*([] if refer is None else [np.full(len(class_costs), refer)]), *map(np.asarray, actions.values())]
    return np.column_stack([class_costs, *columns]) if columns else class_costs


def refer_problems(params: CostParams, classes: Sequence[str]) -> list[str]:
    """That a class has the name of the decision to refer an image, if referral is available."""
    if params.refer is None or REFER not in classes:
        return []
    return [f"costs.refer: not available for data with a class called {REFER!r}; rename the class"]


def action_problems(params: CostParams, classes: Sequence[str]) -> list[str]:
    """Why ``costs.actions`` does not fit the classes, one sentence each."""
    problems = []
    for name, costs in (params.actions or {}).items():
        parameter = f"costs.actions.{name}" if name.isprintable() else f"costs.actions.{name!r}"
        if name in classes:
            problems.append(f"{parameter}: is the name of a class; give the action another one")
        elif reason := unusable_name(name):
            problems.append(f"{parameter}: the name {reason}; rename the action")
        if isinstance(costs, dict):
            problems += key_problems(parameter, costs, classes)
    return problems


def unusable_name(name: str) -> str | None:
    """Why messages and tables cannot use the name of a class or an action, as "is empty"; None if they can."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if not name.strip():
        return "is empty"
    if name != name.strip():
        return "begins or ends with a space"
    if any(ord(character) < 32 or character in "\x7f\x85\u2028\u2029" for character in name):
        return "contains a line break or another control character"
    return f"has {size} bytes, and {_LONGEST_NAME} are allowed" if size > _LONGEST_NAME else None
