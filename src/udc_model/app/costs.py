"""Costs that hold for a session: a stored policy under other costs, and the lines for ``params.yaml``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from udc_model.config import CostParams, load_params
from udc_model.config.yaml12 import as_yaml
from udc_model.decisions.matrix import cost_matrix
from udc_model.decisions.policy import Policy
from udc_model.decisions.session_costs import SessionCosts, changed_costs
from udc_model.errors import UdcError
from udc_model.evaluation.redecision import with_guarantee


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


def params_lines(policy: Policy, params_file: Path) -> str:
    """The lines of the section ``costs`` that make the costs of a policy permanent.

    They replace the lines of the same names in the file, whose other lines stay: ``entries`` has the entries of the
    file and what differs from its costs.

    Returns
    -------
    The lines, or, as a comment, why there are none: the file cannot be read, or its costs do not fit the classes.
    """
    try:
        of_file = load_params(params_file).costs
        entries = _entries(policy, of_file)
    except UdcError as error:
        return "".join(f"# {line}\n" for line in str(error).splitlines())
    section: dict[str, object] = {"entries": entries, "refer": policy.refer}
    if policy.actions:
        section["actions"] = {
            name: costs[0] if min(costs) == max(costs) >= 0 else dict(zip(policy.classes, costs, strict=True))
            for name, costs in policy.actions.items()
        }
    return as_yaml({"costs": section}, is_compact=True)


def _entries(policy: Policy, of_file: CostParams) -> list[dict[str, object]]:
    """The entries of a file, which come first, and the cells that differ from its costs, with the policy's costs."""
    classes, costs = policy.classes, np.array(policy.class_costs)
    differs = costs != cost_matrix(of_file, classes)
    index = {name: k for k, name in enumerate(classes)}
    cells = dict.fromkeys((index[each.true], index[each.predicted]) for each in of_file.entries)
    cells |= dict.fromkeys((int(i), int(j)) for i, j in np.argwhere(differs))
    return [{"actual": classes[i], "predicted": classes[j], "cost": float(costs[i, j])} for i, j in cells]
