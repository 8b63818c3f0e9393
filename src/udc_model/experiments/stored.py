"""The evaluation files of a result by name: of a folder, a recorded run, or a commit whose outputs DVC has."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from udc_model.decisions.policy import POLICY_FILE, POLICY_FILE_0_1, Policy
from udc_model.errors import UdcError
from udc_model.evaluation.redecision import StoredDecisions, StoredEvaluation
from udc_model.evaluation.tables import read_predictions
from udc_model.experiments.names import resolve_name
from udc_model.files import read_consistently
from udc_model.tracking.lookup import artifact

Result = TypeVar("Result")
Fetch = Callable[[str], Path]  # from the name of a file in evaluation/, as test/metrics.csv, to its local path


@contextmanager
def evaluation_files(name: str) -> Iterator[Fetch]:
    """Yield a function that finds a file in the evaluation folder of a result; downloads are removed after the block.

    Parameters
    ----------
    name : see :func:`~udc_model.experiments.names.resolve_name`. A folder has ``evaluation/`` or is that folder; the
        outputs of a git revision are in DVC's cache or remote.

    Raises
    ------
    UdcError
        Nothing or more than one run has this name; the function raises it if the result has no such file.
    """
    result = resolve_name(name)
    if result.path is not None:
        yield partial(_in_folder, result.path)
        return
    with tempfile.TemporaryDirectory() as scratch:

        def fetch(file: str) -> Path:
            if result.run is not None:
                return artifact(result.run.info.run_id, f"evaluation/{file}", Path(scratch))
            return from_dvc(name, str(result.commit), f"evaluation/{file}", Path(scratch))

        yield fetch


def _in_folder(folder: Path, file: str) -> Path:
    for path in (folder / "evaluation" / file, folder / file):
        if path.is_file():
            return path
    raise UdcError(f"{folder}: has no evaluation/{file}; run `dvc repro` there")


def from_dvc(name: str, commit: str, path: str, scratch: Path) -> Path:
    """Copy one output of a commit from DVC's cache or remote into a folder; ``name`` is for the error message."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    target = scratch / path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        DVCFileSystem(".", rev=commit).get_file(path, str(target))
    except (DvcException, SCMError, OSError) as error:
        raise UdcError(f"{name}: is no file or folder, no MLflow run with an evaluation, and no DVC experiment or "
                       f"git revision with {path} in the cache ({error})") from None  # fmt: skip
    return target


class DvcCache:
    """Files of output folders in DVC's local cache, found by the hashes in ``dvc.lock``: 200 times as fast as DVC's
    file system of a commit, which indexes all of its outputs first."""

    def __init__(self) -> None:
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo import Repo

        try:
            self._cache = Repo().cache.local
        except NotDvcRepoError:
            raise UdcError(
                f"{Path.cwd()}: is not in a DVC repository; run the command in the project's folder"
            ) from None

    def file(self, outs: Mapping[str, str], folder: str, name: str) -> Path | None:
        """The cached file of an output folder; None if it is not in the cache. ``outs``: hashes by path."""
        digest = outs.get(folder)
        listing = Path(self._cache.oid_to_path(digest)) if digest else None
        if listing is None or not listing.is_file():
            return None
        entries = json.loads(listing.read_text(encoding="utf-8"))
        found = next((entry["md5"] for entry in entries if entry["relpath"] == name), None)
        path = Path(self._cache.oid_to_path(found)) if found else None
        return path if path is not None and path.is_file() else None


def fetch_policy(fetch: Fetch) -> Policy:
    """The policy of a result. Results of version 0.1.0 have another file."""
    try:
        path = fetch(POLICY_FILE)
    except UdcError as error:
        try:
            path = fetch(POLICY_FILE_0_1)
        except UdcError:
            raise error from None
    return Policy.load(path)


def _is_decided(folder: Path) -> bool:
    """Whether ``udc decide --out`` wrote a folder. That of a project may have a table of this name from elsewhere."""
    return (folder / "predictions.csv").is_file() and not (folder / "evaluation").is_dir()


def load_decisions(name: str, split: str) -> StoredDecisions:
    """The decisions of a result.

    Parameters
    ----------
    name : as for `evaluation_files`, or a predictions table, or a folder that ``udc decide --out`` wrote.
    split : ``test`` or ``validation``; ignored for a table.

    Raises
    ------
    UdcError
        Nothing or more than one run has this name, or the table is damaged.
    """
    path = Path(name)
    if path.suffix == ".csv" or path.is_file():
        return StoredDecisions(read_predictions(path), None)
    if _is_decided(path):
        return StoredDecisions(read_predictions(path / "predictions.csv"), Policy.load(path))
    return _read(name, lambda fetch: StoredDecisions(read_predictions(fetch(f"{split}/predictions.csv")),
                                                     fetch_policy(fetch)))  # fmt: skip


def policy_beside(table: str) -> Policy | None:
    """The policy of the evaluation, or of ``udc decide --out``, that a table is in; None if there is none."""
    path = Path(table)
    folders = (path.parent, path.parent.parent) if path.is_file() else ()
    for folder in folders:
        if any((folder / name).is_file() for name in (POLICY_FILE, POLICY_FILE_0_1)):
            return Policy.load(folder)
    return None


def load_evaluation(name: str, split: str) -> StoredEvaluation:
    """The policy of a result, and its predictions of the calibration split and of ``split``.

    Raises
    ------
    UdcError
        As `load_decisions`; or the name is that of a table, or of decisions without the calibration split.
    """
    path = Path(name)
    if path.is_file() or _is_decided(path):
        raise UdcError(f"{name}: has no predictions of the calibration split; name a result of stage evaluate, as its "
                       "folder, run or experiment (`udc experiments` lists experiments)")  # fmt: skip
    return _read(name, lambda fetch: StoredEvaluation(
        fetch_policy(fetch), *(read_predictions(fetch(f"{each}/predictions.csv")) for each in ("calibration", split)),
    ))  # fmt: skip


def _read(name: str, read: Callable[[Fetch], Result]) -> Result:
    """What ``read`` reads from the evaluation files of a result; of a folder, all files are of the same version."""
    path = Path(name)
    with evaluation_files(name) as fetch:
        return read_consistently([path / "evaluation", path] if path.is_dir() else [], lambda: read(fetch))
