"""Decisions of results by name, comparisons of two of them, and sweeps over recorded runs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from udc_model.decisions.policy import POLICY_FILE, POLICY_FILE_0_1, Policy
from udc_model.errors import UdcError
from udc_model.evaluation.comparison import Comparison, compare_predictions
from udc_model.evaluation.tables import read_predictions
from udc_model.experiments.names import resolve_name
from udc_model.files import read_consistently
from udc_model.tracking.lookup import RecordedRun, artifact, evaluated_runs


@dataclass(frozen=True)
class StoredDecisions:
    """A predictions table and its policy; None for a CSV file, which has no policy."""

    predictions: pd.DataFrame
    policy: Policy | None


def load_decisions(name: str, split: str) -> StoredDecisions:
    """The decisions of a result.

    Parameters
    ----------
    name : see :func:`~udc_model.experiments.names.resolve_name`. A folder has ``evaluation/``, or is that folder, or
        was written by ``udc decide --out``; the outputs of a git revision are in DVC's cache.
    split : ``test`` or ``validation``; ignored for a file.

    Raises
    ------
    UdcError
        Nothing or more than one run has this name, or the table is damaged.
    """
    result = resolve_name(name)
    if result.path is not None:
        return _from_path(result.path, split)
    with tempfile.TemporaryDirectory() as scratch:

        def fetch(path: str) -> Path:
            if result.run is not None:
                return artifact(result.run.info.run_id, path, Path(scratch))
            return _from_dvc(name, str(result.commit), path, Path(scratch))

        policy = _fetch_policy(fetch)
        return StoredDecisions(read_predictions(fetch(f"evaluation/{split}/predictions.csv")), policy)


def _from_path(path: Path, split: str) -> StoredDecisions:
    if not path.is_dir():
        return StoredDecisions(read_predictions(path), None)
    return read_consistently([path / "evaluation", path], lambda: _from_folder(path, split))


def _from_folder(path: Path, split: str) -> StoredDecisions:
    table = f"{split}/predictions.csv"
    for folder, inner in ((path / "evaluation", table), (path, table), (path, "predictions.csv")):
        if (folder / inner).is_file():
            return StoredDecisions(read_predictions(folder / inner), Policy.load(folder))
    raise UdcError(f"{path}: has no evaluation/{split}/predictions.csv; run evaluate first (dvc repro)")


def _from_dvc(name: str, commit: str, path: str, scratch: Path) -> Path:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    target = scratch / Path(path).name
    try:
        DVCFileSystem(".", rev=commit).get_file(path, str(target))
    except (DvcException, SCMError, OSError) as error:
        raise UdcError(f"{name}: is no file or folder, no MLflow run with an evaluation, and no DVC experiment or "
                       f"git revision with {path} in the cache ({error})") from None  # fmt: skip
    return target


def _fetch_policy(fetch: Callable[[str], Path]) -> Policy:
    """The policy of a result; ``fetch`` downloads a file of it. Results of version 0.1.0 have another file."""
    try:
        path = fetch(f"evaluation/{POLICY_FILE}")
    except UdcError as error:
        try:
            path = fetch(f"evaluation/{POLICY_FILE_0_1}")
        except UdcError:
            raise error from None
    return Policy.load(path)


def compare(a: str, b: str, split: str) -> Comparison:
    """Compare two results by name, see :func:`load_decisions`.

    Raises
    ------
    UdcError
        One of them is not found, or their images or costs differ.
    """
    first, second = load_decisions(a, split), load_decisions(b, split)
    if first.policy is not None and second.policy is not None and first.policy.classes == second.policy.classes:
        classes = first.policy.classes
        for i, j in np.argwhere(~np.isclose(first.policy.class_costs, second.policy.class_costs)):
            raise UdcError(
                f"{a} and {b} were decided under other costs: {classes[i]} decided as {classes[j]} costs "
                f"{first.policy.class_costs[i][j]:g} and {second.policy.class_costs[i][j]:g}; decide one of them again "
                "with the costs of the other (udc decide --out)"
            )
    return compare_predictions(first.predictions, second.predictions)


def sweep_of_runs(swept: str, metrics: Sequence[str], conditions: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Test metrics of the recorded runs against one parameter, or against one entry of the cost matrix.

    Parameters
    ----------
    swept : full name of a numeric parameter, or ``true=A,predicted=B``.
    metrics : names without ``test/``.
    conditions : ``full.name=value``, which a run's parameters must fulfil.

    Returns
    -------
    A table with one run a row, sorted by value: ``run``, ``value``, each metric with ``_low`` and ``_high``; and the
    names of the other parameters that differ between the runs.

    Raises
    ------
    UdcError
        The recorded runs have fewer than two values.
    """
    required = dict(condition.partition("=")[::2] for condition in conditions)
    runs = [run for run in evaluated_runs() if all(run.params.get(k) == v for k, v in required.items())]
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
    fields = dict(part.partition("=")[::2] for part in re.split(r",(?=predicted=)", swept))
    if set(fields) != {"true", "predicted"}:
        raise UdcError(f"{swept}: must be like true=A,predicted=B")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            policy = _fetch_policy(lambda path: artifact(run.run_id, path, Path(scratch)))
        except UdcError:
            return None
    if fields["true"] not in policy.classes or fields["predicted"] not in policy.classes:
        return None
    return policy.class_costs[policy.classes.index(fields["true"])][policy.classes.index(fields["predicted"])]


def _varying(runs: Sequence[RecordedRun], swept: str) -> list[str]:
    """The parameters, except the swept one, that differ between runs."""
    names = {name for run in runs for name in run.params}
    swept_parameter = "costs.entries" if swept.startswith("true=") else swept
    return sorted(name for name in names - {swept_parameter} if len({run.params.get(name) for run in runs}) > 1)
