"""Costs that hold for a session: a stored policy under other costs, and the lines for ``params.yaml``."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
import yaml
from pydantic import Field

from udc_model.config import LARGEST_COST, CostParams
from udc_model.decisions.actions import action_costs, refer_problems
from udc_model.decisions.matrix import cost_matrix, no_class
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.redecision import under_costs_of
from udc_model.records import Record, validated

_LARGEST_MATRIX = 10  # classes; of more, the lines for params.yaml are the single costs that differ

_Cost = Annotated[float, Field(ge=-LARGEST_COST, le=LARGEST_COST)]
_Name = Annotated[str, Field(max_length=1024)]


class CellCost(Record):
    """The cost of a decision, a class or an action, if a class is the true one."""

    true: _Name
    decided: _Name
    cost: _Cost


class SessionCosts(Record):
    """What differs from the stored costs: single costs, and the cost of referral, which is always stated."""

    cells: Annotated[list[CellCost], Field(max_length=100_000)] = Field(default_factory=list)
    refer: Annotated[float, Field(ge=0, le=LARGEST_COST)] | None = None


def under_session_costs(policy: Policy, costs: SessionCosts, calibration: pd.DataFrame | None) -> Policy:
    """The stored policy under the costs of a session; a guarantee is fitted again.

    Parameters
    ----------
    calibration : predictions of the calibration split; None without one.

    Raises
    ------
    UdcError
        A cost is not allowed, names no class or action, or the guarantee of the policy cannot be given with it.
    """
    if not costs.cells and costs.refer == policy.refer:
        return policy
    if policy.guarantee and calibration is None:
        raise UdcError(f"the guarantee ({policy.guarantee}) is fitted again for other costs, and "
                       "evaluation/calibration/predictions.csv is missing; run evaluate (dvc repro)")  # fmt: skip
    if costs.refer is None and (policy.cost_ceiling is not None or policy.refers_unfamiliar):
        raise UdcError("referral: needs a cost, because the policy refers images by evaluate.decision: cost_ceiling or "
                       "costs.unfamiliar: refer")  # fmt: skip
    params = _cost_params(policy, costs)
    if problems := refer_problems(params, policy.classes):
        raise UdcError("\n".join(problems))
    class_costs = cost_matrix(params, policy.classes).tolist()
    # a policy whose familiarity warns or refers as before
    changed = Policy(policy.classes, class_costs, refer=costs.refer, actions=action_costs(params, policy.classes),
                     deployment_prior=policy.deployment_prior, familiarity=policy.familiarity)  # fmt: skip
    return under_costs_of(changed, policy, calibration)


def _cost_params(policy: Policy, costs: SessionCosts) -> CostParams:
    """The section ``costs`` of a policy and the changes of a session."""
    actions = {name: dict(zip(policy.classes, values, strict=True)) for name, values in policy.actions.items()}
    entries = []
    for each in costs.cells:
        if each.true not in policy.classes:
            raise UdcError(f"costs: {no_class(each.true, policy.classes)}")
        if each.decided in actions:
            actions[each.decided][each.true] = each.cost
        elif each.decided in policy.classes:
            entries.append({"actual": each.true, "predicted": each.decided, "cost": each.cost})
        else:
            raise UdcError(f"costs: {each.decided!r} is no decision with a cost by class")
    section = {"matrix": policy.class_costs, "entries": entries, "refer": costs.refer, "actions": actions or None}
    return validated(section, CostParams, "costs", "change the costs")


def params_lines(policy: Policy, stored: Policy) -> str:
    """The lines of the section ``costs`` that make the costs of a policy permanent.

    Of many classes, the single costs that differ from the stored ones; they are added to ``costs.entries``.
    """
    classes = policy.classes
    if len(classes) <= _LARGEST_MATRIX:
        rows = {
            true: dict(zip(classes, row, strict=True)) for true, row in zip(classes, policy.class_costs, strict=True)
        }
        section: dict[str, object] = {"matrix": rows}
    else:
        section = {"entries": [
            {"actual": classes[i], "predicted": classes[j], "cost": cost}
            for i, row in enumerate(policy.class_costs) for j, cost in enumerate(row)
            if cost != stored.class_costs[i][j]
        ]}  # fmt: skip
    section["refer"] = policy.refer
    if policy.actions:
        section["actions"] = {name: dict(zip(classes, costs, strict=True)) for name, costs in policy.actions.items()}
    return yaml.safe_dump({"costs": section}, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
