"""Decisions of results by name, comparisons of two of them, and sweeps over recorded runs."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from udc_model.config import full_name
from udc_model.config.yaml12 import read_yaml
from udc_model.decisions.actions import REFER
from udc_model.decisions.policy import Policy, all_outcome_costs
from udc_model.errors import UdcError
from udc_model.evaluation.comparison import Comparison, compare_predictions
from udc_model.evaluation.redecision import decided_by, under_costs_of
from udc_model.experiments.stored import fetch_policy, load_decisions, load_evaluation, policy_beside
from udc_model.tracking.lookup import RecordedRun, artifact, evaluated_runs


def compare(a: str, b: str, split: str, costs: str | None = None) -> Comparison:
    """Compare two results by name, see :func:`~udc_model.experiments.stored.load_decisions`.

    Parameters
    ----------
    costs : name of the result whose costs, actions and class frequencies decide both again; None compares the stored
        decisions.

    Raises
    ------
    UdcError
        One of them is not found, or their images differ, or without ``costs`` the costs of their decisions.
    """
    if costs is not None:
        policy = _policy(costs, split)
        first_table, second_table = (_decided_under(policy, name, split) for name in (a, b))
        return compare_predictions(first_table, second_table, policy.outcome_costs)
    first, second = load_decisions(a, split), load_decisions(b, split)
    if difference := cost_difference(first.policy, second.policy):
        command = shlex.join(["udc", "compare", a, b, *(["--split", split] if split != "test" else []), "--costs"])
        raise UdcError(f"{a} and {b} were decided under other costs: {difference}; to decide both under the costs of "
                       f"one, run `{command} {shlex.quote(a)}` or `{command} {shlex.quote(b)}`")  # fmt: skip
    policies = (first.policy or policy_beside(a), second.policy or policy_beside(b))
    outcome_costs = all_outcome_costs([each for each in policies if each is not None])
    return compare_predictions(first.predictions, second.predictions, outcome_costs)


def cost_difference(a: Policy | None, b: Policy | None) -> str | None:
    """The first difference between the costs of two policies on the same classes; None if there is none or no policy.

    An action that only one of them has is no difference: both state what the same decisions cost.
    """
    if a is None or b is None or a.classes != b.classes:
        return None
    for i, j in np.argwhere(~np.isclose(a.class_costs, b.class_costs)):
        return (f"{a.classes[i]} decided as {a.classes[j]} costs {a.class_costs[i][j]:g} and "
                f"{b.class_costs[i][j]:g}")  # fmt: skip
    if a.refer is not None and b.refer is not None and not np.isclose(a.refer, b.refer):
        return f"referring an image costs {a.refer:g} and {b.refer:g}"
    for name in (name for name in a.action_names if name in b.action_names):
        of_a, of_b = (policy.outcome_costs[:, policy.outcomes.index(name)] for policy in (a, b))
        for i in np.flatnonzero(~np.isclose(of_a, of_b)):
            return f"{a.classes[i]} decided as {name} costs {of_a[i]:g} and {of_b[i]:g}"
    if (a.deployment_prior is None) != (b.deployment_prior is None) or not np.allclose(
        a.deployment_prior or 0.0, b.deployment_prior or 0.0
    ):
        return "their images have other weights (costs.prior)"
    return None


def _policy(name: str, split: str) -> Policy:
    policy = load_decisions(name, split).policy
    if policy is None:
        raise UdcError(f"--costs {name}: a table has no costs; name a result with policy.json, as a folder or a run")
    return policy


def _decided_under(costs: Policy, name: str, split: str) -> pd.DataFrame:
    """The predictions of a result, decided again by its own calibration and decision under other costs."""
    stored = load_decisions(name, split)
    if stored.policy is None:
        raise UdcError(f"{name}: a table alone cannot be decided again; name the result that it is from")
    has_guarantee = stored.policy.guarantee is not None
    calibration = load_evaluation(name, split).calibration if has_guarantee else None
    return decided_by(under_costs_of(costs, stored.policy, calibration), stored.predictions)


def sweep_of_runs(swept: str, metrics: Sequence[str], conditions: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Test metrics of the recorded runs against one parameter, or against one entry of the cost matrix.

    Parameters
    ----------
    swept : name of a numeric parameter, or ``true=A,predicted=B``.
    metrics : names without ``test/``.
    conditions : ``name=value``, which a run's parameters must fulfil.

    Returns
    -------
    A table with one run a row, sorted by value: ``run``, ``value``, each metric with ``_low`` and ``_high``; and the
    names of the other parameters that differ between the runs, and ``data`` if their images do.

    Raises
    ------
    UdcError
        The recorded runs have fewer than two values, no parameter has a name, or no run has a metric.
    """
    cell = _cell(swept)
    swept = full_name(swept) if cell is None else swept
    required = [_condition(text) for text in conditions]
    rows, used, known = [], [], set[str]()
    for run in evaluated_runs():
        if not all(name in run.params and _parsed(run.params[name]) == value for name, value in required):
            continue
        value = _value(run, swept) if cell is None else _cost(run, *cell)
        if value is not None:
            used.append(run)
            table = _test_metrics(run)
            known |= set(table.index)
            table = table.reindex(list(metrics))
            row: dict[str, object] = {"run": run.name, "value": value}
            for name in metrics:
                low, high = table.loc[name, ["low", "high"]]
                row |= {name: table.loc[name, "value"], f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
    if len({row["value"] for row in rows}) < 2:
        raise UdcError(f"{swept}: {len(rows)} recorded run(s) with an evaluation have a value for it; a sweep needs "
                       f"two values: `{_sweep_command(swept, cell)}`")  # fmt: skip
    if absent := [name for name in metrics if name not in known]:
        raise UdcError(f"--metrics {absent[0]}: no run has this metric; the metrics are {', '.join(sorted(known))}")
    return pd.DataFrame(rows).sort_values("value", kind="stable"), _varying(used, swept)


def _condition(text: str) -> tuple[str, Any]:
    """Full name and value of a condition ``name=value``."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UdcError(f"--where {text}: must be name=value, as train.epochs=5")
    return full_name(name), _parsed(value)


def _parsed(text: str) -> Any:
    """A value as in params.yaml, so that 0.001 is 1e-3; text that is no YAML remains text."""
    try:
        return read_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _cell(swept: str) -> tuple[str, str] | None:
    """True class and decision of ``true=A,predicted=B``; None for the name of a parameter."""
    if not swept.startswith("true="):
        return None
    fields = dict(part.partition("=")[::2] for part in re.split(r",(?=predicted=)", swept))
    if set(fields) != {"true", "predicted"}:
        raise UdcError(f"{swept}: must be like true=A,predicted=B")
    return fields["true"], fields["predicted"]


def _sweep_command(swept: str, cell: tuple[str, str] | None) -> str:
    """The command that makes the values of a sweep."""
    if cell is not None and cell[1] != REFER:
        return shlex.join(["udc", "decide", "--sweep", f"{swept},values=0:20:2"])
    parameter = swept if cell is None else "costs.refer"  # one cost for all classes
    return f"udc run --queue -S {parameter}=A,B` and `dvc queue start"


def _value(run: RecordedRun, parameter: str) -> float | None:
    try:
        return float(run.params[parameter])
    except (KeyError, ValueError):
        return None


def _cost(run: RecordedRun, true: str, predicted: str) -> float | None:
    """The cost of a decision for images of a class in a run's policy; None if it has none."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            policy = fetch_policy(lambda file: artifact(run.run_id, f"evaluation/{file}", Path(scratch)))
        except UdcError:
            return None
    if true not in policy.classes or predicted not in policy.outcomes:
        return None
    return float(policy.outcome_costs[policy.classes.index(true), policy.outcomes.index(predicted)])


def _test_metrics(run: RecordedRun) -> pd.DataFrame:
    """All metrics on test by name: ``value``, ``low``, ``high``."""
    with tempfile.TemporaryDirectory() as scratch:
        return pd.read_csv(artifact(run.run_id, "evaluation/test/metrics.csv", Path(scratch))).set_index("metric")


def _varying(runs: Sequence[RecordedRun], swept: str) -> list[str]:
    """The parameters, except the swept one, that differ between runs, and ``data`` if the images do."""
    names = {name for run in runs for name in run.params if not name.endswith(".digest")}
    swept_parameter = "costs.entries" if swept.startswith("true=") else swept
    varying = sorted(name for name in names - {swept_parameter} if len({run.params.get(name) for run in runs}) > 1)
    return [*(["data"] if len({run.data for run in runs}) > 1 else []), *varying]
