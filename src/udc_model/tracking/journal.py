"""What a stage has to tell the tracker, on disk before it is sent, so that no outage loses any of it.

A journal is a folder: ``journal.jsonl`` with one entry a line, the first of kind ``open`` and the last of kind ``end``;
``files/`` with copies of what is to become artifacts; ``sent.json``, how far the sender got. Two locks say who is at
work: the stage holds ``writer.lock`` as long as it lives, whoever sends holds ``sender.lock``.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

JOURNALS = Path(".udc") / "tracking"  # under the repository's root: git-ignored, and outlives temporary copies

Entry = dict[str, Any]


def milliseconds() -> int:
    """Now, as MLflow counts time."""
    return time.time_ns() // 1_000_000


@dataclass
class Journal:
    """The writer's side of one journal."""

    folder: Path
    _files: int = field(default=0, init=False)
    _writer: FileLock = field(init=False, repr=False)

    @classmethod
    def create(cls, root: Path, stage: str, header: Mapping[str, Any], key: str | None = None) -> Journal:
        """A new journal below ``root``; its name sorts by time. The caller's process holds the writer's lock."""
        key = key or uuid.uuid4().hex
        folder = root / JOURNALS / f"{time.time_ns()}-{stage}-{uuid.uuid4().hex[:8]}"
        journal = cls(folder)
        (folder / "files").mkdir(parents=True)
        journal._writer = FileLock(folder / "writer.lock")
        journal._writer.acquire()
        journal.append("open", key=key, stage=stage, **header)
        return journal

    def append(self, kind: str, **values: Any) -> None:
        """Add one entry; it is with the operating system when this returns."""
        line = json.dumps({"kind": kind, "time": milliseconds(), **values}, ensure_ascii=False)
        with (self.folder / "journal.jsonl").open("a", encoding="utf-8") as out:
            out.write(line + "\n")

    def keep(self, source: Path) -> str:
        """Copy a file or folder into the journal, as it is now; returns its name there."""
        self._files += 1
        name = f"files/{self._files}"
        copy = self.folder / name / source.name.lstrip(".")
        copy.parent.mkdir()
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy)
        return copy.relative_to(self.folder).as_posix()

    def close(self) -> None:
        """Let go of the writer's lock."""
        self._writer.release()


def entries(folder: Path, position: int) -> Iterator[tuple[Entry, int]]:
    """The whole entries from byte ``position`` on, each with the position behind it.

    A last line without an end, from a writer killed while it wrote, is left out.
    """
    with (folder / "journal.jsonl").open("rb") as lines:
        lines.seek(position)
        for line in lines:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            yield json.loads(line), position


def end_of_killed(folder: Path) -> None:
    """Write the end that the stage could not write, for it was killed; a line torn by that is cut off."""
    path = folder / "journal.jsonl"
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    line = json.dumps({"kind": "end", "time": milliseconds(), "status": "KILLED"})
    scratch = path.with_suffix(".partial")
    scratch.write_bytes(whole + line.encode() + b"\n")
    scratch.replace(path)


def is_held(lock: Path) -> bool:
    """Whether a living process holds this lock."""
    probe = FileLock(lock)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    probe.release()
    return False


def unsent(root: Path) -> list[Path]:
    """The journals below ``root`` that have not been sent whole, the oldest first."""
    found = (root / JOURNALS).glob("*/journal.jsonl")
    return sorted(path.parent for path in found)
