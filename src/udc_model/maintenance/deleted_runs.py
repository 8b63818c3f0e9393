"""Runs that were deleted in MLflow, which marks them only: what they take, who still names them, and ``mlflow gc``.

Only the project's own store is handled, a SQLite file with its artifacts beside it. A server's store belongs to all of
its users; whoever runs the server runs ``mlflow gc`` there.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from udc_model.errors import UdcError, without_credentials
from udc_model.maintenance.holdings import Holding, Use, size_of
from udc_model.tracking.delivery import Progress
from udc_model.tracking.journal import JOURNALS, pending_journals
from udc_model.tracking.links import dvc_experiments
from udc_model.tracking.relocation import ARTIFACTS, local_path
from udc_model.tracking.store import default_uri, reason_of, tracking_uri
from udc_model.tracking.tags import EXPERIMENT_COMMIT, read_tag

_MOST = 3000  # ids that fit on a command line; the next call takes the next ones
_DELETED = "deleted"
_DELETED_VERSION = "Deleted_Internal"  # MLflow's stage of deleted versions of registered models


@dataclass(frozen=True)
class Stored:
    """A run or a logged model in the store.

    Parameters
    ----------
    reason : who names it, so that it stays; empty if nobody does.
    """

    identifier: str
    folder: Path | None
    is_deleted: bool
    run_id: str
    reason: str = ""


@dataclass(frozen=True)
class DeletedRuns:
    """The deleted runs of a project's own store, and the models of them or deleted by themselves.

    Attributes
    ----------
    obstacle : why ``mlflow gc`` would delete more than it should; empty if it would not.
    """

    root: Path
    runs: list[Stored] = field(default_factory=list)
    models: list[Stored] = field(default_factory=list)
    obstacle: str = ""

    @property
    def unused(self) -> list[Stored]:
        """The runs that can go; none if there is an obstacle."""
        return [] if self.obstacle else [run for run in self.runs if not run.reason][:_MOST]

    @property
    def unused_models(self) -> list[Stored]:
        """The logged models that can go."""
        return [] if self.obstacle else [model for model in self.models if not model.reason][:_MOST]

    def holdings(self) -> list[Holding]:
        """Deleted runs that can go, and those that stay by the reason."""
        by_reason = defaultdict[str, list[Stored]](list)
        for each in [*self.runs, *self.models]:
            if each not in [*self.unused, *self.unused_models]:
                by_reason[each.reason or self.obstacle or "the next `udc gc --delete` deletes them"].append(each)
        going = [*self.unused, *self.unused_models]
        gone = [Holding("deleted runs in MLflow", len(self.unused), _bytes(going), Use.UNUSED,
                        "deleted in MLflow, named by nothing", self.delete)] if going else []  # fmt: skip
        return gone + [Holding("deleted runs in MLflow", len({each.run_id for each in stored}), _bytes(stored),
                               Use.NEEDED, reason) for reason, stored in sorted(by_reason.items())]  # fmt: skip

    def delete(self) -> None:
        """Delete those that can go with ``mlflow gc``. After a kill, the next call deletes the rest."""
        import mlflow

        uri = default_uri(self.root)
        client = mlflow.MlflowClient(uri)
        for model in self.unused_models:
            if not model.is_deleted:
                client.delete_logged_model(model.identifier)  # a mark; `mlflow gc` deletes marked ones
        runs, models = ([each.identifier for each in kind] for kind in (self.unused, self.unused_models))
        _mlflow_gc(uri, runs, models)


def _mlflow_gc(uri: str, runs: list[str], models: list[str]) -> None:
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
    command += ["--run-ids", ",".join(runs)] if runs else []  # without ids, all that are deleted
    command += ["--logged-model-ids", ",".join(models)] if models else []
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONWARNINGS": "ignore"})  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise UdcError(f"`mlflow gc` failed: {without_credentials(lines[-1])}")


def _bytes(stored: list[Stored]) -> int:
    return sum(size_of(each.folder) for each in stored if each.folder is not None)


def is_own_store(root: Path) -> bool:
    """Whether runs of a project are recorded in its own SQLite store, and that exists."""
    return tracking_uri() == default_uri(root) and (root / "mlflow.db").is_file()


def deleted_runs(root: Path) -> DeletedRuns:
    """The deleted runs of a project; none if it records in another store.

    Raises
    ------
    UdcError
        The store cannot be read.
    """
    if not is_own_store(root):
        return DeletedRuns(root)
    database = root / "mlflow.db"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
            return _read(connection, root)
    except sqlite3.Error as error:
        raise UdcError(f"{database}: deleted runs cannot be read: {reason_of(error)}") from error


def _read(connection: sqlite3.Connection, root: Path) -> DeletedRuns:
    tags = defaultdict[str, dict[str, str]](dict)
    for run_id, key, value in connection.execute("SELECT run_uuid, key, value FROM tags"):
        tags[run_id][key] = value
    rows = list(connection.execute("SELECT run_uuid, artifact_uri, lifecycle_stage FROM runs"))
    deleted = {run_id for run_id, _, stage in rows if stage == _DELETED}
    names = _names(connection, root, tags, deleted)
    model_rows = list(connection.execute(
        "SELECT model_id, artifact_location, lifecycle_stage, source_run_id FROM logged_models"))  # fmt: skip
    for model_id, _, _, run_id in model_rows:  # a run stays with its model, and a model with its run
        if reason := names.get(model_id):
            names.setdefault(run_id, reason)
    runs = [_stored(root, run_id, uri, run_id, names, is_deleted=True) for run_id, uri, _ in rows if run_id in deleted]
    staying = {run.identifier: run.reason for run in runs if run.reason}
    existing = {run_id for run_id, _, _ in rows}
    models = [_stored(root, model_id, uri, run_id, names | ({model_id: staying[run_id]} if run_id in staying else {}),
                      is_deleted=stage == _DELETED)
              for model_id, uri, stage, run_id in model_rows
              if run_id in deleted or (stage == _DELETED and run_id not in existing)]  # fmt: skip
    return DeletedRuns(root, runs, models, _obstacle(connection, runs, models, model_rows))


def _stored(root: Path, identifier: str, uri: str | None, run_id: str, names: Mapping[str, str], *,
            is_deleted: bool) -> Stored:  # fmt: skip
    """A run or model; it stays if its artifacts are not in the folder of its own that MLflow gave it."""
    artifacts, folder = (root / ARTIFACTS).resolve(), local_path(uri or "")
    reason = names.get(identifier, "")
    resolved = folder.resolve() if folder is not None else None
    if resolved is None or not resolved.is_relative_to(artifacts) or identifier not in resolved.parts:
        return Stored(identifier, None, is_deleted, run_id, reason or f"its artifacts are not in {ARTIFACTS}")
    return Stored(identifier, resolved, is_deleted, run_id, reason)


def _names(
    connection: sqlite3.Connection, root: Path, tags: Mapping[str, Mapping[str, str]], deleted: set[str]
) -> dict[str, str]:
    """By id of a deleted run or of a model: who names it."""
    names = dict[str, str]()
    for run_id, values in tags.items():
        for value in values.values():
            if run_id not in deleted and value in deleted:
                names[value] = f"run {run_id[:8]} names it"
    for run_id, name in _named_by_experiments(root, tags):
        names[run_id] = f"experiment {name} is linked to it"
    for run_id in _named_by_journals(root):
        names[run_id] = "a journal is not delivered to it; `udc sync`"
    versions = connection.execute("SELECT name, version, run_id, source, storage_location, current_stage "
                                  "FROM model_versions")  # fmt: skip
    for name, version, run_id, source, location, stage in versions:
        if stage == _DELETED_VERSION:
            continue
        reason = f"registered model {name}, version {version}"
        for identifier in [run_id, *_identifiers(source), *_identifiers(location)]:
            names[identifier] = reason
    return names


def _identifiers(place: str | None) -> Iterator[str]:
    """The parts of a place such as ``models:/m-12ab`` or ``file:///…/12ab/artifacts/model``, of which ids are some."""
    yield from (place or "").replace("models:/", "/").split("/")


def _named_by_experiments(root: Path, tags: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    experiments = dvc_experiments()
    commits = {commit: name for name, commit in experiments.items()}
    for run_id, values in tags.items():
        if (commit := read_tag(values, EXPERIMENT_COMMIT)) in commits:
            yield run_id, commits[str(commit)]
    with suppress(OSError, ValueError, AttributeError):
        linked = json.loads((root / JOURNALS / "linked.json").read_text(encoding="utf-8"))
        for name, commit in experiments.items():
            if run_id := linked.get(f"{name} {commit}"):
                yield str(run_id), name


def _named_by_journals(root: Path) -> Iterator[str]:
    for folder in pending_journals(root):
        with suppress(OSError, ValueError, TypeError):
            if run_id := Progress.load(folder).run_id:
                yield run_id


def _obstacle(connection: sqlite3.Connection, runs: list[Stored], models: list[Stored], all_models: list[tuple[
    str, str, str, str]]) -> str:  # fmt: skip
    """Why ``mlflow gc``, which takes an empty list for all that are deleted, would delete what must stay."""
    going, going_models = ({each.identifier for each in kind if not each.reason} for kind in (runs, models))
    deleted_models = {model_id for model_id, _, stage, _ in all_models if stage == _DELETED}
    if not going and any(run.reason for run in runs):
        return "`mlflow gc` would delete other deleted runs too, which are still named"
    if not going_models and deleted_models:
        return "`mlflow gc` would delete other deleted models too; restore them, or run it yourself"
    experiments = [row[0] for row in connection.execute(
        "SELECT experiment_id FROM experiments WHERE lifecycle_stage = ?", (_DELETED,))]  # fmt: skip
    for experiment in experiments:
        members = {row[0] for row in connection.execute(
            "SELECT run_uuid FROM runs WHERE experiment_id = ?", (experiment,))}  # fmt: skip
        if not members <= going:
            return (f"MLflow's experiment {experiment} is deleted, and `mlflow gc` would delete all of it: restore it "
                    f"with `mlflow experiments restore -x {experiment}`")  # fmt: skip
    return ""
