"""Corrections of labels, groups and images: ``data/corrections.csv``, which people write and ``prepare`` applies.

See `udc_model.data.applied_corrections`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from filelock import FileLock

from udc_model.csv_files import csv_writer
from udc_model.data.sources import join_for_message, printable
from udc_model.errors import UdcError
from udc_model.files import Workspace, read_bytes, write_atomically

COLUMNS = ("path", "sha256", "action", "value", "author", "date", "reason")
ACTIONS = ("relabel", "drop", "keep", "group")
EMPTY = ",".join(COLUMNS) + "\n"  # the file without corrections: DVC refuses a dependency that is missing
MAX_BYTES = 64 * 2**20
_MAX_TEXT = 4096  # characters of a value
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADVICE = "fix the line, or remove it"


@dataclass(frozen=True)
class Correction:
    """One line of ``data/corrections.csv``.

    Parameters
    ----------
    path : of the image, relative to ``data.path``; empty means all images with the pixels.
    sha256 : of the decoded pixels, as in ``manifest.csv``; empty accepts any.
    action : ``relabel`` and ``group`` set label and group to ``value``; ``drop`` leaves the image out; ``keep`` records
        that somebody has confirmed the label.
    author, date, reason : for people.
    """

    path: str
    sha256: str
    action: str
    value: str = ""
    author: str = ""
    date: str = ""
    reason: str = ""

    @property
    def scope(self) -> tuple[str, str, bool]:
        """What the correction decides: the group of an image, or its label. There is one correction for each."""
        return self.path, "" if self.path else self.sha256, self.action == "group"

    @property
    def image(self) -> str:
        """The image, for messages."""
        return printable(self.path) if self.path else f"sha256 {self.sha256}"


def read_corrections(path: Path) -> list[Correction]:
    """The lines of a file of corrections; none if there is no file.

    Raises
    ------
    UdcError
        The file cannot be read, is larger than 64 MiB, or a line is not valid; the message lists the lines.
    """
    if not path.exists():
        return []
    try:
        text = read_bytes(path, _ADVICE, MAX_BYTES).decode("utf-8-sig")
        rows = list(_numbered_rows(text))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UdcError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    if not rows or tuple(rows[0][1]) != COLUMNS:
        raise UdcError(f"{path}, line 1: must be the header {EMPTY.strip()}")
    problems, corrections = [], []
    lines_by_scope: dict[tuple[str, str, bool], int] = {}
    for number, row in rows[1:]:
        if not row:
            continue
        problem = _problem(row)
        if problem is None:
            correction = Correction(*row)
            corrections.append(correction)
            first = lines_by_scope.setdefault(correction.scope, number)
            if first != number:
                problem = f"{correction.image} is corrected in line {first} already"
        if problem is not None:
            problems.append(f"line {number}: {problem}")
    if problems:
        raise UdcError(f"{path}: {len(problems)} line(s) are not valid; fix or remove them:\n  "
                       + join_for_message(problems, "\n  "))  # fmt: skip
    return corrections


def _numbered_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each with the number of its first line; a quoted value can have several lines."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    for row in reader:
        yield number, row
        number = reader.line_num + 1


def _problem(row: list[str]) -> str | None:
    """What is wrong with a line; None if nothing is."""
    if len(row) != len(COLUMNS):
        return f"has {len(row)} values instead of {len(COLUMNS)}"
    if too_long := [name for name, value in zip(COLUMNS, row, strict=True) if len(value) > _MAX_TEXT]:
        return f"{too_long[0]} has more than {_MAX_TEXT:,} characters"
    path, sha256, action, value, _, day, _ = row
    if not path and not sha256:
        return "names no image; fill in path, sha256 or both"
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path:
        return f"path is {printable(path)}; must be relative to data.path, with / between folders and without .."
    if sha256 and not _SHA256.fullmatch(sha256):
        return f"sha256 is {printable(sha256)[:80]}; must have 64 characters of 0 to 9 and a to f"
    if action not in ACTIONS:
        return f"action is {printable(action)[:80]!r}; allowed: {', '.join(ACTIONS)}"
    if bool(value) != (action in ("relabel", "group")):
        return f"{action} needs a value" if not value else f"{action} has a value, which must be empty"
    return None if not day or _is_date(day) else f"date is {printable(day)[:80]!r}; must be a date as 2026-01-31"


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def write_corrections(path: Path, corrections: Iterable[Correction]) -> None:
    """Write a file of corrections, which is complete at any time; :class:`UdcError` if that is not possible."""
    write_atomically(path, csv_text(COLUMNS, map(astuple, corrections)))


def with_correction(corrections: Sequence[Correction], correction: Correction) -> list[Correction]:
    """The corrections and another one, which replaces the one that decides the same."""
    return [*(each for each in corrections if each.scope != correction.scope), correction]


class _Image(Protocol):
    """A path and the digest of the pixels there."""

    @property
    def path(self) -> str: ...
    @property
    def sha256(self) -> str: ...


_Kind = TypeVar("_Kind", bound=_Image)


def without_reviewed(images: Iterable[_Kind], corrections: Iterable[Correction]) -> list[_Kind]:
    """The images whose label no person has decided, neither by path nor, with an empty path, by pixels.

    A corrected group says nothing about the label.
    """
    of_labels = [each for each in corrections if each.action != "group"]
    paths = {each.path for each in of_labels if each.path}
    pixels = {each.sha256 for each in of_labels if not each.path}
    return [image for image in images if image.path not in paths and image.sha256 not in pixels]


def record_correction(workspace: Workspace, correction: Correction) -> Correction | None:
    """Add a correction to the file of a workspace, which another process may have changed since.

    Returns
    -------
    The correction that it replaces; None if there was none.

    Raises
    ------
    UdcError
        The correction or the file is not valid, or the file cannot be written.
    """
    if problem := _problem(list(astuple(correction))):
        raise UdcError(f"{correction.image}: the correction is not valid: {problem}")
    with _locked(workspace):
        corrections = read_corrections(workspace.corrections)
        write_corrections(workspace.corrections, with_correction(corrections, correction))
    return next((each for each in corrections if each.scope == correction.scope), None)


def undo_correction(workspace: Workspace, written: Correction, former: Correction | None) -> None:
    """Take back a correction that `record_correction` wrote, and restore the one that it replaced.

    Raises
    ------
    UdcError
        The line was changed or removed since, and stays as it is; or the file cannot be read or written.
    """
    with _locked(workspace):
        corrections = read_corrections(workspace.corrections)
        if written not in corrections:
            raise UdcError(
                f"{workspace.corrections}: the line of {written.image} was changed since, and stays as it is"
            )
        at = corrections.index(written)
        restored = [] if former is None else [former]
        write_corrections(workspace.corrections, [*corrections[:at], *restored, *corrections[at + 1 :]])


@contextmanager
def _locked(workspace: Workspace) -> Iterator[None]:
    """Let no other process change the file of corrections during the block."""
    lock = workspace.root / ".udc" / "corrections.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except OSError as error:
        raise UdcError(f"{workspace.corrections}: cannot be written: {error}") from error


def csv_text(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as CSV with a header."""
    buffer = io.StringIO()
    writer = csv_writer(buffer.write)
    writer.writerow(names)
    writer.writerows(rows)
    return buffer.getvalue()
