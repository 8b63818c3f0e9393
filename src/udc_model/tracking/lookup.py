"""Finding recorded runs again, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from udc_model.errors import UdcError
from udc_model.tracking.delivery import EVALUATED
from udc_model.tracking.store import open_store, tracking_uri, without_credentials


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
