"""Finds recorded runs by any of their names, and reads what they hold."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.errors import UdcError, without_credentials
from udc_model.tracking.journal import wait_for_senders
from udc_model.tracking.links import dvc_experiments, locked_outs, outs_of, runs_with_outputs
from udc_model.tracking.provenance import git, locked_stages
from udc_model.tracking.store import open_store, reason_of, repository_root, run_if_any, tracking_uri
from udc_model.tracking.tags import (
    BASELINE,
    COMMIT,
    DIRTY,
    EVALUATED,
    EXPERIMENT_COMMIT,
    EXPERIMENT_NAME,
    JOURNAL,
    LINKED,
    MODEL_SHA256,
    OUTS,
    TRAINED_BY,
    read_tag,
    runs_with_tag,
    tags_below,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_HEADLINES = ("test/mean_cost", "test/accuracy")
RESTORED = "restored from"


@dataclass(frozen=True)
class RecordedRun:
    """One MLflow run: identity, logged parameters (as text), last metrics, and digests of its data."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    data: tuple[str, ...] = ()


@contextmanager
def _store_errors(subject: str) -> Iterator[None]:
    """Turn MLflow's exceptions into :class:`UdcError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise UdcError(f"{subject}: {reason_of(error)}") from None


def open_complete_store() -> list[str]:
    """Wait until ended stages are logged completely and open the store; returns the ids of the experiments to search.

    Raises
    ------
    UdcError
        The store cannot be reached.
    """
    wait_for_senders(repository_root())
    return [open_store()]


def evaluated_runs() -> list[RecordedRun]:
    """All runs with an evaluation, the latest first; :class:`UdcError` if the store cannot be reached."""
    import mlflow

    experiments = open_complete_store()
    with _store_errors(without_credentials(tracking_uri())):
        runs = runs_with_tag(mlflow.MlflowClient(), experiments, EVALUATED, "true")
    return [
        RecordedRun(run.info.run_id, run.info.run_name, run.data.params, run.data.metrics,
                    tuple(sorted({each.dataset.digest for each in (run.inputs.dataset_inputs if run.inputs else ())})))
        for run in runs
    ]  # fmt: skip


def artifact(run_id: str, name: str, target: Path) -> Path:
    """Download one artifact of a run into a folder; :class:`UdcError` if the run has no artifact of that name."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(target)))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UdcError(f"run {run_id} has no artifact {name}: {reason_of(error)}") from None


def environment(run: Run) -> dict[str, str]:
    """The versions, host and hardware that a run was made with, by name: ``torch``, ``host``, ``device``, ``threads``.

    Raises
    ------
    UdcError
        The run does not have them.
    """
    tags = run.data.tags
    if "udc.host" in tags:  # versions up to 0.2.0 recorded them as tags
        former = {tag.removeprefix("udc.version."): value for tag, value in tags.items()}
        names = ("udc.host", "device", "precision", "kernels", "threads")
        hardware = {name.removeprefix("udc."): tags[name] for name in names if name in tags}
        return {name: value for name, value in former.items() if name not in tags} | hardware
    stage = "train" if read_tag(tags, TRAINED_BY) is None else "evaluate"
    with tempfile.TemporaryDirectory() as scratch:
        path = artifact(run.info.run_id, f"environment/{stage}.json", Path(scratch))
        return flat_environment(json.loads(path.read_text(encoding="utf-8")))


def flat_environment(recorded: Mapping[str, Any]) -> dict[str, str]:
    """Versions, host and hardware of a recorded environment in one mapping."""
    return {**recorded["versions"], "host": recorded["host"], **recorded["hardware"]}


def find_runs(name: str, *, is_evaluated: bool = False) -> list[Run]:
    """All runs of a name.

    Parameters
    ----------
    name : id or name of an MLflow run, name of a DVC experiment, registered model (``models:/spiders/3``,
        ``models:/spiders@champion``), or a git revision whose ``dvc.lock`` has the outputs of a run.
    is_evaluated : leave out runs without an evaluation.

    Raises
    ------
    UdcError
        The store cannot be reached, or has no run of that id or no such registered model.
    """
    import mlflow

    experiments = open_complete_store()
    client = mlflow.MlflowClient()
    with _store_errors(name):
        if name.startswith("models:/"):
            runs = [client.get_run(_run_of_model(client, name))]
        elif re.fullmatch(r"[0-9a-f]{32}", name):
            runs = [client.get_run(name)]
        else:
            runs = _named_runs(client, experiments, name, is_evaluated)
    return [run for run in runs if not is_evaluated or read_tag(run.data.tags, EVALUATED) == "true"]


def runs_of_outputs(outs: Mapping[str, str]) -> list[Run]:
    """The runs whose outputs have these hashes (by name: ``model``, ``evaluation``), the earliest first."""
    import mlflow

    experiments = open_complete_store()
    with _store_errors(without_credentials(tracking_uri())):
        return runs_with_outputs(mlflow.MlflowClient(), experiments, outs)


def _named_runs(client: MlflowClient, experiments: list[str], name: str, is_evaluated: bool) -> list[Run]:
    commit = commit_of(name)
    if "'" not in name:  # the filter language cannot quote it
        for found in (runs_with_tag(client, experiments, EXPERIMENT_NAME, name),
                      client.search_runs(experiments, f"attributes.run_name = '{name}'")):  # fmt: skip
            runs = [run for run in found if not is_evaluated or read_tag(run.data.tags, EVALUATED) == "true"]
            if runs:
                if len(runs) == 1 or name not in dvc_experiments():
                    return runs
                # an experiment that was evaluated repeatedly has several runs; its commit decides
                return runs_with_outputs(client, experiments, locked_outs(commit))[-1:] or runs
    return runs_with_outputs(client, experiments, locked_outs(commit))[:1] if commit else []


def commit_of(name: str) -> str:
    """The commit of a DVC experiment or git revision; empty if there is none of that name."""
    return dvc_experiments().get(name) or git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


def _run_of_model(client: MlflowClient, address: str) -> str:
    """The id of the run of a registered model version."""
    name, at, alias = address.removeprefix("models:/").partition("@")
    if at:
        version = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = name.rpartition("/")
        version = client.get_model_version(name, number)
    if not version.run_id:
        raise UdcError(f"{address}: the registry does not name the run of this version")
    return str(version.run_id)


def description(run: Run) -> dict[str, Any]:
    """The identity of a run and the places of everything that it holds, for ``udc show``."""
    tags = run.data.tags
    artifacts = without_credentials(run.info.artifact_uri)  # such as sftp://user:password@host/folder
    names = [*filter(None, [read_tag(tags, EXPERIMENT_NAME)]), *(read_tag(tags, LINKED) or "").split()]
    dataset = run.inputs.dataset_inputs[0].dataset if run.inputs and run.inputs.dataset_inputs else None
    outputs = run.outputs.model_outputs if run.outputs else []
    return {
        "run": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "store": without_credentials(tracking_uri()),
        "experiments": names,
        "commit": tags.get(COMMIT),
        "uncommitted_changes": read_tag(tags, DIRTY) == "true",
        "experiment_commit": read_tag(tags, EXPERIMENT_COMMIT),
        "baseline": read_tag(tags, BASELINE),
        "trained_by": read_tag(tags, TRAINED_BY),
        "data": {"name": dataset.name, "digest": dataset.digest} if dataset else None,
        "model_sha256": read_tag(tags, MODEL_SHA256),
        "checkpoint": f"{artifacts}/model" if read_tag(tags, TRAINED_BY) is None else None,
        "served_model": f"models:/{outputs[-1].model_id}" if outputs else None,
        "artifacts": artifacts,
        "dvc_outs": tags_below(tags, OUTS),
        "metrics": {key: run.data.metrics[key] for key in _HEADLINES if key in run.data.metrics},
    }


def tag_restored(run_id: str) -> None:
    """Tag a run that ``mlflow run`` opened with the run that it repeats, if DVC restored all outputs from its cache.

    Raises
    ------
    UdcError
        The store cannot be reached or fails.
    """
    import mlflow

    experiments = open_complete_store()
    client = mlflow.MlflowClient()
    with _store_errors(f"MLFLOW_RUN_ID {run_id}"):
        run = run_if_any(client, run_id)
        if run is None or read_tag(run.data.tags, JOURNAL) is not None:
            return  # nothing to tag; a stage filled it
        outs = outs_of(locked_stages(repository_root() / "dvc.lock"))
        if runs := runs_with_outputs(client, experiments, outs):
            client.set_tag(run_id, RESTORED, runs[0].info.run_id)
