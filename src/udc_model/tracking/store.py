"""The MLflow store: ``MLFLOW_TRACKING_URI``, or SQLite at the root of the repository."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from filelock import FileLock

from udc_model.errors import UdcError, without_credentials
from udc_model.tracking.pages import experiment_tags
from udc_model.tracking.relocation import ARTIFACTS, Relocation, former_folders, relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Set before mlflow is imported. No telemetry, no progress output.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The requirements of logged models are passed, so MLflow needs neither pip nor uv to infer them.
os.environ.setdefault("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The sender repeats failed requests, with delays that it chooses.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

logger = logging.getLogger(__name__)

EXPERIMENT = "udc-model"
_SQLITE = "sqlite:///"


def repository_root() -> Path:
    """The main repository: ``DVC_ROOT`` (queued experiments run in temporary copies), or the closest folder with
    ``.dvc`` above the current one."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def tracking_uri() -> str:
    """The address of the store with its credentials; print it through `without_credentials` only."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(repository_root())


def default_uri(root: Path) -> str:
    """The address of the store of a project."""
    return f"{_SQLITE}{root / 'mlflow.db'}"


def reason_of(error: Exception) -> str:
    """The line of an error of MLflow that says what is wrong, without credentials.

    Errors of a database begin with remarks of SQLAlchemy and end with the whole statement.
    """
    text = without_credentials(str(error))
    of_database = re.search(r"^\((?:\w+\.)+\w*Error\) (.+)$", text, re.MULTILINE)
    return of_database[1] if of_database else next(iter(text.splitlines()), type(error).__name__)


def run_if_any(client: MlflowClient, run_id: str) -> Run | None:
    """The run of a store; None if it does not exist, or does not any more."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def experiment_name() -> str:
    """The MLflow experiment of all runs: ``MLFLOW_EXPERIMENT_NAME``, or the project's."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def open_store(uri: str | None = None, name: str | None = None) -> str:
    """Make MLflow use the store, and return the id of the experiment. Both are created if they do not exist.

    A SQLite store is initialised under a file lock, because processes that do so at the same time break it. Its
    experiment gets an absolute folder for artifacts; MLflow's default is relative to the current folder, which may be
    temporary. The places in the store of a project that was copied or moved are corrected; another SQLite store may be
    where it is on purpose, so :func:`relocate_store` is for a person to call.

    Parameters
    ----------
    uri, name : of store and experiment; default: :func:`tracking_uri` and :func:`experiment_name`.

    Raises
    ------
    UdcError
        The store cannot be reached or written, or is not the project's and seems to have been moved.
    """
    uri, name = uri or tracking_uri(), name or experiment_name()
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # Alembic logs each step of creating a database at level INFO, and MLflow the traceback of an error that it raises.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        mlflow.set_tracking_uri(uri)
        if not uri.startswith(_SQLITE):
            return _experiment(mlflow.MlflowClient(), name, None)
        database = _database(uri)
        database.parent.mkdir(parents=True, exist_ok=True)
        _check_database(database)
        with _lock(database):
            client = mlflow.MlflowClient()  # creates the tables
            _check_place(database)
            return _experiment(client, name, (database.parent / ARTIFACTS / _folder_name(name)).as_uri())
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise UdcError(f"the MLflow store {without_credentials(uri)} cannot be used: {reason_of(error)}") from error


def _folder_name(experiment: str) -> str:
    """The name of the folder of an experiment: its own name, quoted if it is a path, as that of a Databricks server."""
    if "/" not in experiment and experiment not in (".", ".."):
        return experiment
    return quote(experiment, safe="").replace(".", "%2E")


def _check_database(path: Path) -> None:
    """Raise `sqlite3.Error` if a database cannot be read or created; MLflow would try again for 100 seconds."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version").fetchone()


def relocate_store() -> Relocation:
    """Correct the places of artifacts in a SQLite store that was copied or moved, see `relocate`.

    Raises
    ------
    UdcError
        There is no such store, or it cannot be written.
    """
    uri = tracking_uri()
    database = _database(uri)
    if not uri.startswith(_SQLITE) or not database.is_file():
        raise UdcError(
            f"{without_credentials(uri)}: is no SQLite store that exists; only such a store can be relocated"
        )
    try:
        with _lock(database):
            return relocate(database)
    except (OSError, sqlite3.Error) as error:
        raise UdcError(f"{database}: the places of artifacts cannot be corrected: {error}") from error


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE)).resolve()


def _lock(database: Path) -> FileLock:
    return FileLock(database.parent / "mlflow.db.lock")


def _check_place(database: Path) -> None:
    """Correct the places in the project's store if it was moved; :class:`UdcError` if another store was."""
    former = former_folders(database)
    if not former:
        return
    previous, artifacts = min(former) / ARTIFACTS, database.parent / ARTIFACTS
    if database != _database(default_uri(repository_root())):
        raise UdcError(f"{database}: its artifacts are in {previous}, not beside it, as if it had been moved; "
                       "run `udc relocate` to use the folder beside it")  # fmt: skip
    relocation = relocate(database)
    logger.info("%s was moved: %d places of artifacts are in %s now", database, relocation.num_corrected, artifacts)
    if relocation.remaining:
        logger.warning("the artifacts of %d earlier runs and models are in %s only; copy them to %s, then run "
                       "`udc relocate`", len(relocation.remaining), previous, artifacts)  # fmt: skip


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """The id of the experiment, created if it does not exist; another process may create it at the same time."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location, tags=experiment_tags()))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)
