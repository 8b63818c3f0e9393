"""What is in ``.udc/`` and what killed processes have left beside outputs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from udc_model.errors import UdcError
from udc_model.files import is_abandoned, try_to_remove
from udc_model.maintenance.holdings import MIN_AGE, Holding, Use, of_paths
from udc_model.tracking.delivery import is_delivered
from udc_model.tracking.journal import JOURNALS, delete_journal, is_written, sender_lock

UDC = Path(".udc")
_CACHES = {"features": "features of frozen networks", "logits": "logits of evaluated models", "figures": "figures",
           "explanations": "saliency maps and features of similar images",
           "prepare": "images for the next preparation of shards"}  # fmt: skip
_KEPT = {
    "studies": ("studies of udc tune", "`udc tune` resumes them"),
    "seconds": ("durations of training runs", "`udc tune --metric training/seconds` reads them"),
    "errors": ("reports of errors", "the last 20"),
    "upgrade": ("new versions of files", "of `udc upgrade`, to be compared with yours"),
}
_CROSS_VALIDATION, _CHECKPOINTS = UDC / "cross-validation", UDC / "checkpoints"
_OF_FOLDS = ("data", "model", "training")  # of a fold, deleted once it is evaluated


def holdings(root: Path, find_finished: Callable[[Mapping[str, Path]], set[str]]) -> list[Holding]:
    """What is in ``.udc/`` of a project, by kind.

    Parameters
    ----------
    find_finished : of the keys of runs, each with its folder of checkpoints, those whose training run has ended and
        whose model DVC has stored.
    """
    return [*_journals(root), *_checkpoints(root, find_finished), *_cross_validation(root), *_others(root),
            *_scratch(root)]  # fmt: skip


def _journals(root: Path) -> list[Holding]:
    pending, delivered = list[Path](), list[Path]()
    for folder in _folders(root / JOURNALS):
        (delivered if _is_unused_journal(folder) else pending).append(folder)
    return [
        *of_paths("journals", pending, Use.NEEDED, "MLflow does not have all of them; `udc sync` delivers them"),
        *of_paths("journals", delivered, Use.UNUSED, "delivered to MLflow; what delivered them was killed",
                  _delete_journal),
    ]  # fmt: skip


def _is_unused_journal(folder: Path) -> bool:
    """Whether nobody writes or delivers a journal and MLflow has all of it."""
    if is_written(folder):
        return False
    if not (folder / "journal.jsonl").is_file():  # of a journal that is being created, or was deleted incompletely
        return _is_old_journal(folder)
    return is_delivered(folder)


def _is_old_journal(folder: Path) -> bool:
    """As `_is_old`, by the time in the name: the lock that is taken to delete the folder changes the folder's."""
    begin = folder.name.partition("-")[0]
    return begin.isdecimal() and time.time() - int(begin) / 1e9 > MIN_AGE


def _delete_journal(folder: Path) -> None:
    with suppress(Timeout, OSError), sender_lock(folder, timeout=0):
        if _is_unused_journal(folder):
            delete_journal(folder)


def _checkpoints(root: Path, find_finished: Callable[[Mapping[str, Path]], set[str]]) -> list[Holding]:
    newest = {folder: _newest_checkpoint(folder) for folder in _folders(root / _CHECKPOINTS)}
    keys = {key: folder for folder, file in newest.items() if file is not None and (key := _key_of(file))}
    why, finished = "not finished: the same command, commit and data resume them; delete one to give it up", set[str]()
    try:
        finished = find_finished(keys) if keys else finished
    except UdcError as error:
        why = str(error)
    done = [keys[key] for key in sorted(finished)]
    empty = [folder for folder, file in newest.items() if file is None and _is_old(folder)]
    kept = [folder for folder in newest if folder not in (*done, *empty)]

    def delete(folder: Path) -> None:
        _delete_checkpoints(folder, newest[folder])

    what = "checkpoints of training runs"
    return [
        *of_paths(what, kept, Use.NEEDED, why),
        *of_paths(what, done, Use.UNUSED, "finished: DVC and MLflow have the model", delete),
        *of_paths(what, empty, Use.UNUSED, "folders without a checkpoint", delete),
    ]  # fmt: skip


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a training run, of its first member that has one; None if there is none."""
    return next(iter(sorted(folder.glob("*.safetensors"), reverse=True) or sorted(folder.rglob("*.safetensors"))), None)


def _key_of(checkpoint: Path) -> str | None:
    """The key of the run of a checkpoint; None if it is damaged."""
    from udc_model.training.checkpoints import read_header

    try:
        return read_header(checkpoint)["run_key"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return None


def _delete_checkpoints(folder: Path, newest: Path | None) -> None:
    """Delete the checkpoints of a training run unless it is running or has been started again since."""
    lock = FileLock(folder.with_suffix(".lock"))
    with suppress(Timeout), lock.acquire(timeout=0):
        if _newest_checkpoint(folder) == newest:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink(missing_ok=True)


def _cross_validation(root: Path) -> list[Holding]:
    studies = _folders(root / _CROSS_VALIDATION)
    unused = list[Path]()
    for study in studies:
        with suppress(OSError, ValueError, AttributeError):
            if json.loads((study / "study.json").read_text(encoding="utf-8")).get("logged"):
                unused += [path for path in [study / "images.bin"] if path.is_file()]
        for fold in _folders(study):
            if (fold / "metrics.json").is_file():  # written last
                unused += [fold / name for name in _OF_FOLDS if (fold / name).is_dir()]
    going = of_paths("images and models of folds", unused, Use.UNUSED,
                     "their folds are evaluated; a process was killed before it deleted them", _remove)  # fmt: skip
    staying = of_paths("cross-validations", studies, Use.NEEDED, "`udc cross-validate` uses evaluated folds again")
    return [*(replace(each, num_bytes=each.num_bytes - sum(part.num_bytes for part in going)) for each in staying),
            *going]  # fmt: skip


def _others(root: Path) -> list[Holding]:
    found = list[Holding]()
    for name, what in _CACHES.items():
        entries = [path for path in _entries(root / UDC / name) if not path.name.startswith(".")]
        found += of_paths(what, entries, Use.RECOMPUTED, "computed again when needed; --caches deletes them", _remove)
    for name, (what, why) in _KEPT.items():
        found += of_paths(what, _entries(root / UDC / name), Use.NEEDED, why)
    return found


def _scratch(root: Path) -> list[Holding]:
    """What killed processes wrote and did not rename: ``.NAME.PID.partial``, and partial checkpoints."""
    places = [*_entries(root), *_entries(root / "data"), *_below(root / UDC)]
    named = [path for path in places if path.name.startswith(".") and path.name.endswith(".partial")]
    unused = [path for path in named if _is_old(path) and is_abandoned(path)]
    partial = [path for path in _below(root / _CHECKPOINTS) if path.name == "writing.safetensors.partial"
               and _is_old(path)]  # fmt: skip
    return [
        *of_paths("scratch files", unused, Use.UNUSED, "their processes were killed", _delete_scratch),
        *of_paths("partial checkpoints", partial, Use.UNUSED, "their processes were killed", _delete_partial),
    ]


def _delete_scratch(path: Path) -> None:
    if is_abandoned(path):
        try_to_remove(path)


def _delete_partial(path: Path) -> None:
    """Delete a partial checkpoint unless its training run, or that of the ensemble it is in, is running."""
    folder = path.parent if path.parent.parent.name == _CHECKPOINTS.name else path.parent.parent
    with suppress(Timeout), FileLock(folder.with_suffix(".lock")).acquire(timeout=0):
        path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _is_old(path: Path) -> bool:
    """Whether a file or folder was last changed so long ago that whoever created it has locked it, or is gone."""
    try:
        return time.time() - path.lstat().st_mtime > MIN_AGE
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is none, or it is a link to somewhere else."""
    if folder.is_symlink():
        return []
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir() and not path.is_symlink()
            and not path.name.startswith(".")]  # fmt: skip


def _below(folder: Path) -> Iterator[Path]:
    for path in _entries(folder):
        yield path
        if path.is_dir() and not path.is_symlink() and not path.name.endswith(".partial"):
            yield from _below(path)
