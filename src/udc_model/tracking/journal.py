"""The journal of a stage: everything it logs, on disk before it is delivered to MLflow, so that no outage loses it.

A journal is a folder:

- ``journal.jsonl``: one entry a line, the first of kind ``open``, the last of kind ``end``
- ``files/``: copies of the files that become artifacts
- ``sent.json``: how much is delivered, see :class:`~udc_model.tracking.delivery.Progress`
- ``sender.log``: warnings and errors of the sender
- ``writer.lock``: held by the stage as long as it runs
- ``sender.lock``: held by the process that delivers the journal
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

logger = logging.getLogger(__name__)

JOURNALS = Path(".udc") / "tracking"  # under the repository's root: ignored by git, outlives temporary copies
SENDER_LOG = "sender.log"
SENDER = "UDC_SENDER"  # environment variable
DAMAGED = "damaged"  # kind of an entry that cannot be read
_WARNINGS = "warnings.log"
RUN_ID_PLACEHOLDER = "{{run_id}}"  # in texts and tags logged with fill_run_id; replaced on delivery
EXPERIMENT_ID_PLACEHOLDER = "{{experiment_id}}"  # likewise
_NOT_COPIED = ("__pycache__", "plots.html")  # of the package, whose code is logged with each model
_WRITER_LOCK, _SENDER_LOCK = "writer.lock", "sender.lock"
_POLL = 0.05  # seconds
_SILENT = 2.0  # seconds before wait_for_senders reports that it waits

Entry = dict[str, Any]


def timestamp() -> int:
    """The current time in milliseconds since 1970, as MLflow stores it."""
    return time.time_ns() // 1_000_000


@dataclass
class Journal:
    """The writer's side of one journal."""

    folder: Path
    _num_files: int = field(default=0, init=False)
    _lock: FileLock = field(init=False, repr=False)

    @classmethod
    def create(cls, root: Path, stage: str, header: Mapping[str, Any], key: str | None = None) -> Journal:
        """Create a journal below ``root`` and lock it as its writer. Names of journals sort by time."""
        key = key or uuid.uuid4().hex
        folder = root / JOURNALS / f"{time.time_ns()}-{stage}-{uuid.uuid4().hex[:8]}"
        journal = cls(folder)
        (folder / "files").mkdir(parents=True)
        journal._lock = FileLock(folder / _WRITER_LOCK)
        journal._lock.acquire()
        journal.append("open", key=key, stage=stage, **header)
        return journal

    def append(self, kind: str, **values: Any) -> None:
        """Add one entry. It survives a kill of this process from the moment that this method returns.

        Raises
        ------
        OSError
            The entry cannot be written, as on a full disk; the journal is as before, and later entries can be added.
        """
        line = json.dumps({"kind": kind, "time": timestamp(), **values}, ensure_ascii=False) + "\n"
        _append_line(self.folder / "journal.jsonl", line.encode())

    def copy(self, source: Path) -> str:
        """Copy a file or folder, in its present state, into the journal; returns the path of the copy there."""
        self._num_files += 1
        copy = self.folder / "files" / str(self._num_files) / source.name.lstrip(".")
        copy.parent.mkdir()
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        else:
            shutil.copyfile(source, copy)
        return copy.relative_to(self.folder).as_posix()

    def close(self) -> None:
        """Release the writer's lock."""
        self._lock.release()


def _append_line(path: Path, line: bytes) -> None:
    """Append a complete line to a file, or nothing."""
    with path.open("a+b", buffering=0) as out:  # a buffer would write the rest of a failed line when it is closed
        size = out.seek(0, os.SEEK_END)
        out.seek(max(0, size - 1))
        if out.read(1) not in (b"", b"\n"):  # part of a line, which could not be removed
            line = b"\n" + line
        try:
            while line:
                line = line[out.write(line) :]
        except OSError:
            with suppress(OSError):
                out.truncate(size)
            raise


def read_entries(folder: Path, position: int = 0) -> Iterator[tuple[Entry, int]]:
    """The complete entries from byte ``position`` on, each with the position after it.

    An incomplete last line (the writer was killed, or is writing now) is left out. In place of a line that is no entry
    there is one of kind :data:`DAMAGED`, so that the other entries can be read.

    Raises
    ------
    ValueError
        The first line of the journal, without which the others cannot be used, is no entry.
    """
    with (folder / "journal.jsonl").open("rb") as lines:
        lines.seek(position)
        for line in lines:
            if not line.endswith(b"\n"):
                return
            entry = _entry(line)
            if position == 0 and entry["kind"] == DAMAGED:
                raise ValueError("the first line is no entry")
            position += len(line)
            yield entry, position


def _entry(line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) and "kind" in entry else {"kind": DAMAGED}


def append_killed_end(folder: Path) -> None:
    """Append the entry ``end`` with status KILLED to the journal of a killed stage; removes an incomplete last line."""
    path = folder / "journal.jsonl"
    contents = path.read_bytes()
    complete = contents[: contents.rfind(b"\n") + 1]
    line = json.dumps({"kind": "end", "time": timestamp(), "status": "KILLED"})
    scratch = path.with_suffix(".partial")
    scratch.write_bytes(complete + line.encode() + b"\n")
    scratch.replace(path)


def delete_journal(folder: Path) -> None:
    """Delete a delivered journal."""
    (folder / "journal.jsonl").unlink(missing_ok=True)  # first: a folder without this file is no journal
    shutil.rmtree(folder, ignore_errors=True)


def pending_journals(root: Path) -> list[Path]:
    """The journals below ``root`` that are not completely delivered, the oldest first."""
    return sorted(path.parent for path in (root / JOURNALS).glob("*/journal.jsonl"))


def sender_lock(folder: Path, timeout: float = -1) -> FileLock:
    """The lock of the process that delivers a journal; a negative timeout waits for ever."""
    return FileLock(folder / _SENDER_LOCK, timeout=timeout)


def is_written(folder: Path) -> bool:
    """Whether the stage that writes this journal is still running."""
    return _is_locked(folder / _WRITER_LOCK)


def _is_locked(path: Path) -> bool:
    """Whether a process holds this lock.

    The test takes a shared lock, which filelock does not offer: with exclusive locks, two processes that test at the
    same time would take each other for the holder.
    """
    import fcntl

    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released with the handle
    except FileNotFoundError:  # delivered meanwhile
        return False
    except BlockingIOError:
        return True
    return False


def _delivered_now(root: Path) -> list[Path]:
    """The journals of stages that have ended which a sender is delivering at this moment."""
    return [folder for folder in pending_journals(root) if not is_written(folder) and _is_locked(folder / _SENDER_LOCK)]


def wait_for_senders(root: Path, timeout: float = 60.0) -> bool:
    """Wait until all senders of stages that have ended are done; returns whether they are.

    A stage ends before its sender does, so whatever reads runs calls this first. Stages that are running are not waited
    for.

    Parameters
    ----------
    timeout : seconds, after which a warning is logged and the caller continues.
    """
    started = time.monotonic()
    is_reported = False
    while at_work := _delivered_now(root):
        elapsed = time.monotonic() - started
        if elapsed > timeout:
            logger.warning("%d journal(s) are still being delivered to MLflow; the latest entries may be missing",
                           len(at_work))  # fmt: skip
            return False
        if elapsed > _SILENT and not is_reported:
            logger.info("waiting for MLflow to receive the last results …")
            is_reported = True
        time.sleep(_POLL)
    return True


def record_warning(root: Path, message: str) -> None:
    """Store a warning of a sender whose stage has ended; :func:`report_warnings` logs it."""
    with (root / JOURNALS / _WARNINGS).open("a", encoding="utf-8") as out:
        out.write(message + "\n")


def sender_is_off() -> bool:
    """Whether stages start no sender, but leave their journals to ``udc sync``."""
    return os.environ.get(SENDER) == "off"


def report_warnings(root: Path) -> None:
    """Log what senders reported after their stages had ended, and one line if they have left journals."""
    recorded = root / JOURNALS / _WARNINGS
    taken = recorded.with_suffix(f".{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        recorded.rename(taken)  # of two processes, one reports it
        for line in taken.read_text(encoding="utf-8").splitlines():
            logger.warning("%s", line)
        taken.unlink()
    abandoned = [folder for folder in pending_journals(root)
                 if not is_written(folder) and not _is_locked(folder / _SENDER_LOCK)]  # fmt: skip
    if abandoned and not sender_is_off():
        reason = _last_line(abandoned[-1] / SENDER_LOG)
        logger.warning("%d journal(s) of earlier stages are not delivered to MLflow%s; `udc sync` delivers them",
                       len(abandoned), f" ({reason})" if reason else "")  # fmt: skip


def _last_line(path: Path) -> str:
    try:
        return next(reversed(path.read_text(encoding="utf-8", errors="replace").strip().splitlines()), "")
    except OSError:
        return ""
