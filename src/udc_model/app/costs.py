"""Costs that hold for a session: a stored policy under other costs, and the lines for ``params.yaml``."""

from __future__ import annotations

import pandas as pd
import yaml

from udc_model.decisions.policy import Policy
from udc_model.decisions.session_costs import SessionCosts, changed_costs
from udc_model.errors import UdcError
from udc_model.evaluation.redecision import with_guarantee

_LARGEST_MATRIX = 10  # classes; of more, the lines for params.yaml are the single costs that differ


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
    return with_guarantee(changed_costs(policy, costs), calibration)


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
