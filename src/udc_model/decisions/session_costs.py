"""Costs that a session or a request changes: single costs, and the cost of referral."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import ConfigDict, Field

from udc_model.config import LARGEST_COST, CostParams
from udc_model.decisions.actions import action_costs, refer_problems
from udc_model.decisions.matrix import cost_matrix, no_class
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.records import Record, validated

_Cost = Annotated[float, Field(ge=-LARGEST_COST, le=LARGEST_COST)]
_Name = Annotated[str, Field(max_length=1024)]


class _Closed(Record):
    model_config = ConfigDict(extra="forbid")


class CellCost(_Closed):
    """The cost of a decision, a class or an action, if a class is the true one."""

    true: _Name
    decided: _Name
    cost: _Cost


class SessionCosts(_Closed):
    """What differs from the stored costs: single costs, and, unless it stays the same, the cost of referral."""

    cells: Annotated[list[CellCost], Field(max_length=100_000)] = Field(default_factory=list)
    refer: Annotated[float, Field(ge=0, le=LARGEST_COST)] | None = None


def changed_costs(policy: Policy, costs: SessionCosts) -> Policy:
    """A policy under changed costs; a guarantee is not fitted again.

    Raises
    ------
    UdcError
        A cost is not allowed, names no class or action, or referral has no cost although the policy needs it.
    """
    params = _cost_params(policy, costs)
    if params.refer is None and (policy.cost_ceiling is not None or policy.refers_unfamiliar):
        raise UdcError("referral: needs a cost, because the policy refers images by evaluate.decision: cost_ceiling or "
                       "costs.unfamiliar: refer")  # fmt: skip
    if problems := refer_problems(params, policy.classes):
        raise UdcError("\n".join(problems))
    class_costs = cost_matrix(params, policy.classes).tolist()
    return replace(policy, class_costs=class_costs, refer=params.refer, actions=action_costs(params, policy.classes))


def _cost_params(policy: Policy, costs: SessionCosts) -> CostParams:
    """The section ``costs`` of a policy and the changes of a session."""
    actions = {name: dict(zip(policy.classes, values, strict=True)) for name, values in policy.actions.items()}
    entries, classes = [], set(policy.classes)
    for each in costs.cells:
        if each.true not in classes:
            raise UdcError(f"costs: {no_class(each.true, policy.classes)}")
        if each.decided in actions:
            actions[each.decided][each.true] = each.cost
        elif each.decided in classes:
            entries.append({"actual": each.true, "predicted": each.decided, "cost": each.cost})
        else:
            raise UdcError(f"costs: {each.decided!r} is no decision with a cost by class")
    refer = costs.refer if "refer" in costs.model_fields_set else policy.refer
    section = {"matrix": policy.class_costs, "entries": entries, "refer": refer, "actions": actions or None}
    return validated(section, CostParams, "costs", "change the costs")
