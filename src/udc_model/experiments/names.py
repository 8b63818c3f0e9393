"""Results by name: the one place that decides what a name on the command line refers to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.errors import UdcError, without_credentials
from udc_model.files import Workspace
from udc_model.tracking.lookup import commit_of, find_runs, runs_of_outputs
from udc_model.tracking.provenance import dvc_hash
from udc_model.tracking.store import tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class NamedResult:
    """What a name refers to. Exactly one of the fields is not None.

    Parameters
    ----------
    path : a folder or a CSV file.
    run : a recorded run.
    commit : of a git revision or DVC experiment whose outputs are of no recorded run.
    """

    path: Path | None = None
    run: Run | None = None
    commit: str | None = None


def resolve_name(name: str, *, is_evaluated: bool = True) -> NamedResult:
    """What a name refers to.

    Parameters
    ----------
    name : in this order: a registered model (``models:/spiders/3``, ``models:/spiders@champion``); a folder with
        results, or a CSV file; the id or name of an MLflow run; a DVC experiment; a git revision.
    is_evaluated : ignore runs without an evaluation.

    Raises
    ------
    UdcError
        Nothing has this name, or several runs have it; or the store cannot be reached.
    """
    path = Path(name)
    if not name.startswith("models:/") and (path.is_file() or path.suffix == ".csv" or _has_results(path)):
        return NamedResult(path=path)
    runs = find_runs(name, is_evaluated=is_evaluated)
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs)
        raise UdcError(f"{name}: {len(runs)} runs have this name; use the id of one of them: {ids}")
    if runs:
        return NamedResult(run=runs[0])
    if commit := commit_of(name):
        return NamedResult(commit=commit)
    if path.is_dir():
        raise UdcError(f"{name}: the folder has no results; run the pipeline there first (dvc repro)")
    evaluation = " with an evaluation" if is_evaluated else ""
    raise UdcError(f"{name}: is no file or folder, no MLflow run{evaluation}, and no DVC experiment, git revision or "
                   f"registered model (store {without_credentials(tracking_uri())}); `udc experiments --all` lists "
                   "experiments")  # fmt: skip


def _has_results(folder: Path) -> bool:
    names = ("model", "evaluation", "predictions.csv", "test/predictions.csv", "validation/predictions.csv")
    return any((folder / name).exists() for name in names)


def resolve_run(name: str) -> Run:
    """The recorded run of a name, see :func:`resolve_name`; of a folder the run that has its outputs.

    Raises
    ------
    UdcError
        As :func:`resolve_name`; or the name refers to something that is no recorded run.
    """
    result = resolve_name(name, is_evaluated=False)
    if result.run is not None:
        return result.run
    if result.path is not None and result.path.is_dir():
        workspace = Workspace(result.path)
        folders = {"model": workspace.model, "evaluation": workspace.evaluation}
        if runs := runs_of_outputs({key: dvc_hash(folder) for key, folder in folders.items() if folder.is_dir()}):
            return runs[-1]
    store = without_credentials(tracking_uri())
    raise UdcError(f"{name}: no run in {store} has these outputs; `udc sync` delivers pending entries")
