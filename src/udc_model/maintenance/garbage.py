"""What ``udc gc`` does: examine what takes disk space in a project, and delete what nothing needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from udc_model.errors import UdcError
from udc_model.experiments.stored import DvcCache
from udc_model.files import Workspace, only_writer, size_text
from udc_model.maintenance import dvc_cache, local_files
from udc_model.maintenance.deleted_runs import deleted_runs
from udc_model.maintenance.holdings import Holding, Use, table
from udc_model.maintenance.named_objects import named_by_runs
from udc_model.maintenance.running import running_processes, running_stages
from udc_model.model_files.folder import WEIGHTS
from udc_model.tracking.store import default_uri, open_store, reason_of, repository_root, tracking_uri
from udc_model.tracking.tags import JOURNAL, OUTS, runs_with_tag, tags_below

_Examination = Callable[[], list[Holding]]


@dataclass
class Collection:
    """What was deleted, and what could not be."""

    deleted: list[Holding] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes that were freed."""
        return sum(each.num_bytes for each in self.deleted)

    def to_text(self) -> str:
        """A table of what was deleted."""
        if not self.deleted:
            return "nothing to delete\n"
        return f"{table(self.deleted)}deleted: {size_text(self.num_bytes)}\n"


def project_root() -> Path:
    """The folder of the project; :class:`UdcError` outside of one."""
    root = repository_root()
    if not (root / ".dvc").is_dir():
        raise UdcError(f"{root}: is no project (it has no .dvc); run the command in the folder of a project")
    return root


def examine(root: Path) -> list[Holding]:
    """What takes disk space in a project, without deleting anything."""
    runs = _or_reason("deleted runs in MLflow", lambda: deleted_runs(root).holdings())
    going = set(_unused_runs(root))
    return [
        *_or_reason("files in .udc", _local(root)),
        *runs,
        *_or_reason("objects in DVC's cache", partial(_dvc, root, going)),
    ]


def to_text(holdings: list[Holding]) -> str:
    """A table of holdings and what would be freed, for a person."""
    unused, recomputed = (sum(each.num_bytes for each in holdings if each.use is use)
                          for use in (Use.UNUSED, Use.RECOMPUTED))  # fmt: skip
    return (f"{table(holdings)}nothing was deleted: `udc gc --delete` frees {size_text(unused)}, with --caches "
            f"{size_text(unused + recomputed)}\n")  # fmt: skip


def collect(root: Path, *, with_caches: bool) -> Collection:
    """Delete what nothing needs. Killed at any moment, it can be repeated.

    Each part is examined again before it is deleted, the objects of DVC last, since deleted runs name no objects.

    Parameters
    ----------
    with_caches : also what is computed again when it is needed.

    Raises
    ------
    UdcError
        A stage or a command of DVC is running in the project.
    """
    result = Collection()
    uses = {Use.UNUSED, Use.RECOMPUTED} if with_caches else {Use.UNUSED}
    with only_writer(Workspace(root)):
        _refuse_if_running(root)
        for examination in _parts(root):
            try:
                for holding in (each for each in examination() if each.use in uses):
                    assert holding.delete is not None
                    holding.delete()
                    result.deleted.append(holding)
            except UdcError as error:
                result.errors.append(str(error))
    return result


def _refuse_if_running(root: Path) -> None:
    # this process is the writer whose lock it holds
    here = f"(process {os.getpid()})"
    running = [each for each in (*running_stages(root), *running_processes(root)) if here not in each]
    if running:
        raise UdcError(f"{running[0]} is running in {root}; wait until it has ended, or stop it")


def _parts(root: Path) -> Iterator[_Examination]:
    yield _local(root)
    yield lambda: deleted_runs(root).holdings()
    yield partial(_dvc, root, set())


def _local(root: Path) -> _Examination:
    return lambda: local_files.holdings(root, partial(_finished, root))


def _dvc(root: Path, going: set[str]) -> list[Holding]:
    return dvc_cache.holdings(root, named_by_runs(root, going))


def _unused_runs(root: Path) -> list[str]:
    try:
        return [run.identifier for run in deleted_runs(root).unused]
    except UdcError:
        return []


def _or_reason(what: str, examination: _Examination) -> list[Holding]:
    """The holdings of a part, or one that says why it cannot be examined; nothing of it would be deleted."""
    try:
        return examination()
    except UdcError as error:
        return [Holding(what, 0, 0, Use.NEEDED, str(error))]


def _finished(root: Path, keys: Mapping[str, Path]) -> set[str]:
    """The keys of runs that have finished and whose model is in DVC's cache; none if MLflow cannot be reached.

    A run ends before its stage has written its outputs, and a stage before DVC has stored them.
    """
    if tracking_uri() == default_uri(root) and not (root / "mlflow.db").is_file():
        return set()
    import mlflow
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        open_store()
        client, cache = mlflow.MlflowClient(), DvcCache()
        experiments = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
        return {
            key for key in keys
            if any(run.info.status == "FINISHED" and cache.file(tags_below(run.data.tags, OUTS), "model", WEIGHTS)
                   for run in runs_with_tag(client, experiments, JOURNAL, key))
        }  # fmt: skip
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise UdcError(f"checkpoints: it is not known which training runs have finished: {reason_of(error)}") from error
