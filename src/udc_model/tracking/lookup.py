"""Finding recorded runs again, by any of their names, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.errors import UdcError
from udc_model.tracking.delivery import EVALUATED, JOURNAL, MODEL_SHA256, TRAINED_BY
from udc_model.tracking.links import EXPERIMENT_COMMIT, LINKED, dvc_experiments, locked_outs, outs_of, same_content
from udc_model.tracking.provenance import COMMIT, DIRTY, EXPERIMENT_NAME, OUTS, git, locked_stages
from udc_model.tracking.store import open_store, repository_root, tracking_uri, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


_HEADLINES = ("test/mean_cost", "test/accuracy", "validation/mean_cost", "validation/accuracy")
RESTORED = "udc.restored_from"


@dataclass(frozen=True)
class RecordedRun:
    """One MLflow run: identity, logged parameters (texts) and last metrics."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def evaluated_runs(name: str | None = None) -> list[RecordedRun]:
    """All runs with an evaluation, the latest first, or those of one run id or run name.

    Raises
    ------
    UdcError
        The store cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow.search_runs(
            [open_store()],
            filter_string=f"tags.`{EVALUATED}` = 'true'",
            order_by=["attributes.start_time DESC"],
            output_format="list",
            max_results=50_000,
        )
    except MlflowException as error:
        raise UdcError(f"{without_credentials(tracking_uri())}: {without_credentials(str(error))}") from None
    runs = [RecordedRun(run.info.run_id, run.info.run_name, run.data.params, run.data.metrics) for run in found]
    return [run for run in runs if name is None or name in (run.run_id, run.name)]


def artifact(run_id: str, name: str, target: Path) -> Path:
    """Fetch one artifact of a run into a folder; :class:`UdcError` if the run has none of that name."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(target)))
    except (MlflowException, OSError) as error:
        raise UdcError(f"run {run_id} has no {name}: {without_credentials(str(error))}") from None


def find_run(name: str) -> Run:
    """The one run that ``name`` stands for.

    Parameters
    ----------
    name : id or name of an MLflow run, name of a DVC experiment, registered model (``models:/spiders/3``,
        ``models:/spiders@champion``), or a git revision whose ``dvc.lock`` has the run's outputs.

    Raises
    ------
    UdcError
        No run is called that, or several are; or the store cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    store = [open_store()]
    client = mlflow.MlflowClient()
    try:
        if name.startswith("models:/"):
            return client.get_run(_registered(client, name))
        if re.fullmatch(r"[0-9a-f]{32}", name):
            return client.get_run(name)
        runs = _called(client, store, name)
    except MlflowException as error:
        raise UdcError(f"{name}: {without_credentials(str(error)).splitlines()[0]}") from None
    if not runs:
        store_name = without_credentials(tracking_uri())
        raise UdcError(f"{name}: {store_name} has no run of that id or name, and none with the outputs of a DVC "
                       "experiment or git revision of that name (udc sync sends what is left)")  # fmt: skip
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs)
        raise UdcError(f"{name}: {len(runs)} runs are called that; name one by its id: {ids}")
    return runs[0]


def _called(client: MlflowClient, store: list[str], name: str) -> list[Run]:
    if "'" in name:
        return []
    for condition in (f"tags.`{EXPERIMENT_NAME}` = '{name}'", f"attributes.run_name = '{name}'"):
        if runs := list(client.search_runs(store, condition)):
            # an experiment whose evaluation was repeated has several runs; the content of its commit decides
            commit = dvc_experiments().get(name)
            kept = same_content(client, store, locked_outs(commit))[-1:] if commit and len(runs) > 1 else []
            return kept or runs
    commit = dvc_experiments().get(name) or git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return same_content(client, store, locked_outs(commit))[:1] if commit else []


def _registered(client: MlflowClient, address: str) -> str:
    """The id of the run that made a registered model version."""
    name, at, alias = address.removeprefix("models:/").partition("@")
    if at:
        version = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = name.rpartition("/")
        version = client.get_model_version(name, number)
    if not version.run_id:
        raise UdcError(f"{address}: does not say which run made it")
    return str(version.run_id)


def description(run: Run) -> dict[str, Any]:
    """What identifies a run and where everything of it lies, for ``udc show``."""
    tags = run.data.tags
    name = tags.get(EXPERIMENT_NAME)
    others = tags.get(LINKED, "").split()
    dataset = run.inputs.dataset_inputs[0].dataset if run.inputs and run.inputs.dataset_inputs else None
    outputs = run.outputs.model_outputs if run.outputs else []
    return {
        "run": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "store": without_credentials(tracking_uri()),
        "experiments": [*([name] if name else []), *others],
        "commit": tags.get(COMMIT),
        "uncommitted_changes": tags.get(DIRTY) == "true",
        "experiment_commit": tags.get(EXPERIMENT_COMMIT),
        "baseline": tags.get("dvc.baseline"),
        "trained_by": tags.get(TRAINED_BY),
        "data": {"name": dataset.name, "digest": dataset.digest} if dataset else None,
        "model_sha256": tags.get(MODEL_SHA256),
        "checkpoint": f"{run.info.artifact_uri}/model" if TRAINED_BY not in tags else None,
        "served_model": f"models:/{outputs[-1].model_id}" if outputs else None,
        "artifacts": run.info.artifact_uri,
        "dvc_outs": {tag.removeprefix(OUTS): value for tag, value in tags.items() if tag.startswith(OUTS)},
        "metrics": {
            key: run.data.metrics[key] for key in ("test/mean_cost", "test/accuracy") if key in run.data.metrics
        },
    }


def tell_restored(run_id: str) -> None:
    """Tag a run that ``mlflow run`` opened and no stage filled, for DVC had it all, with the run that made it."""
    import mlflow

    store = [open_store()]
    client = mlflow.MlflowClient()
    if JOURNAL in client.get_run(run_id).data.tags:
        return
    outs = outs_of(locked_stages(repository_root() / "dvc.lock"))
    if runs := same_content(client, store, outs):
        client.set_tag(run_id, RESTORED, runs[0].info.run_id)
