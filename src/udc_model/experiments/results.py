"""Results by any of their names: a file or folder, an MLflow run, a DVC experiment; and sweeps over recorded runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from udc_model.decisions.policy import POLICY_FILE, Policy
from udc_model.errors import UdcError
from udc_model.evaluation.comparison import Comparison, compare_predictions
from udc_model.evaluation.tables import read_predictions
from udc_model.tracking.lookup import RecordedRun, artifact, evaluated_runs


@dataclass(frozen=True)
class StoredDecisions:
    """A predictions table, and the policy behind it where that is known (not for a CSV file alone)."""

    predictions: pd.DataFrame
    policy: Policy | None


def find_decisions(name: str, split: str) -> StoredDecisions:
    """The decisions that ``name`` stands for.

    Parameters
    ----------
    name : a ``predictions.csv``; a folder with ``evaluation/`` (or that folder, or one of ``udc decide --out``); id or
        name of an MLflow run; name of a DVC experiment, or any git revision whose outputs are in DVC's cache.
    split : ``test`` or ``validation``; of no matter for a file.

    Raises
    ------
    UdcError
        Nothing is called that, several runs are, or the table is damaged.
    """
    path = Path(name)
    if path.is_dir():
        inner = f"{split}/predictions.csv"
        for folder, name in ((path / "evaluation", inner), (path, inner), (path, "predictions.csv")):
            if (folder / name).is_file():
                return StoredDecisions(read_predictions(folder / name), Policy.load(folder / POLICY_FILE))
        raise UdcError(f"{path}: holds no evaluation/{split}/predictions.csv; run evaluate first (dvc repro)")
    if path.is_file() or path.suffix == ".csv":
        return StoredDecisions(read_predictions(path), None)
    runs = evaluated_runs(name)
    if len(runs) > 1:
        raise UdcError(f"{name}: {len(runs)} runs are called that; name one by its id: "
                       f"{', '.join(run.run_id for run in runs)}")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        wanted = ("evaluation/policy.json", f"evaluation/{split}/predictions.csv")
        fetched = [
            artifact(runs[0].run_id, inner, Path(scratch)) if runs else _from_dvc(name, inner, Path(scratch))
            for inner in wanted
        ]
        return StoredDecisions(read_predictions(fetched[1]), Policy.load(fetched[0]))


def compare(a: str, b: str, split: str) -> Comparison:
    """Compare two results by name, see :func:`find_decisions`.

    Raises
    ------
    UdcError
        One is not found, or they are of other images or other prices.
    """
    one, other = find_decisions(a, split), find_decisions(b, split)
    if one.policy is not None and other.policy is not None and one.policy.classes == other.policy.classes:
        classes = one.policy.classes
        for i, j in np.argwhere(~np.isclose(one.policy.class_costs, other.policy.class_costs)):
            raise UdcError(
                f"{a} and {b} were decided under other prices: {classes[i]} decided as {classes[j]} costs "
                f"{one.policy.class_costs[i][j]:g} and {other.policy.class_costs[i][j]:g}; decide one of them again "
                "with the costs of the other (udc decide --out)"
            )
    return compare_predictions(one.predictions, other.predictions)


def _from_dvc(revision: str, path: str, scratch: Path) -> Path:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    target = scratch / Path(path).name
    try:
        DVCFileSystem(".", rev=revision).get_file(path, str(target))
    except (DvcException, SCMError, OSError) as error:
        raise UdcError(f"{revision}: is no file or folder, no MLflow run with an evaluation, and no DVC experiment or "
                       f"revision with {path} in the cache ({error})") from None  # fmt: skip
    return target


def sweep_of_runs(swept: str, metrics: Sequence[str], conditions: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Test metrics of the recorded runs against one parameter, or against the price of one cell.

    Parameters
    ----------
    swept : full name of a parameter that is a number, or ``true=A,predicted=B``.
    metrics : names without ``test/``.
    conditions : ``full.name=value`` texts that a run's parameters must fulfil.

    Returns
    -------
    A row a run, by rising value: ``run``, ``value``, each metric with ``_low`` and ``_high``; and the names of the
    other parameters that differ among the runs.

    Raises
    ------
    UdcError
        Fewer than two values were recorded.
    """
    wanted = dict(condition.partition("=")[::2] for condition in conditions)
    runs = [run for run in evaluated_runs() if all(run.params.get(k) == v for k, v in wanted.items())]
    rows, used = [], []
    for run in runs:
        value = _swept_value(run, swept)
        if value is not None:
            used.append(run)
            row: dict[str, object] = {"run": run.name, "value": value}
            for name in metrics:
                row[name] = run.metrics.get(f"test/{name}")
                row |= {f"{name}_{end}": run.metrics.get(f"interval/test/{name}_{end}") for end in ("low", "high")}
            rows.append(row)
    if len({row["value"] for row in rows}) < 2:
        raise UdcError(f"{swept}: {len(rows)} recorded run(s) with an evaluation have a value for it; a sweep needs "
                       "two values (dvc exp run --queue -S …)")  # fmt: skip
    return pd.DataFrame(rows).sort_values("value", kind="stable"), _varying(used, swept)


def _swept_value(run: RecordedRun, swept: str) -> float | None:
    if not swept.startswith("true="):
        try:
            return float(run.params[swept])
        except (KeyError, ValueError):
            return None
    fields = dict(part.partition("=")[::2] for part in swept.split(","))
    if set(fields) != {"true", "predicted"}:
        raise UdcError(f"{swept}: must be like true=A,predicted=B")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            policy = Policy.load(artifact(run.run_id, "evaluation/policy.json", Path(scratch)))
        except UdcError:
            return None
    if fields["true"] not in policy.classes or fields["predicted"] not in policy.classes:
        return None
    return policy.class_costs[policy.classes.index(fields["true"])][policy.classes.index(fields["predicted"])]


def _varying(runs: Sequence[RecordedRun], swept: str) -> list[str]:
    """Parameters, other than the swept one, that are not the same in all runs."""
    names = {name for run in runs for name in run.params}
    own = "costs.entries" if swept.startswith("true=") else swept
    return sorted(name for name in names - {own} if len({run.params.get(name) for run in runs}) > 1)
