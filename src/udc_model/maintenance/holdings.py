"""What takes disk space: files or folders of one kind, whether they are needed, and how they are deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from udc_model.files import size_text

MIN_AGE = 3600.0  # seconds; younger files without an owner may have one that has not locked them yet


class Use(Enum):
    """Whether something is needed."""

    NEEDED = "stays"
    RECOMPUTED = "cache"  # computed again, to the same bits, when it is needed
    UNUSED = "can go"


@dataclass(frozen=True)
class Holding:
    """Files of one kind.

    Parameters
    ----------
    what : as ``journals``.
    count : number of journals, runs, objects, …
    num_bytes : that they take.
    why : why they stay or can go, and what a person can do.
    delete : deletes those that are still unused at that moment; None for `Use.NEEDED`.
    """

    what: str
    count: int
    num_bytes: int
    use: Use
    why: str
    delete: Callable[[], None] | None = None


def of_paths(
    what: str, paths: Sequence[Path], use: Use, why: str, delete: Callable[[Path], None] | None = None
) -> list[Holding]:
    """A holding of files and folders, each deleted by ``delete``; nothing if there are none."""
    if not paths:
        return []

    def delete_all() -> None:
        for path in paths:
            assert delete is not None
            delete(path)

    return [Holding(what, len(paths), sum(map(size_of, paths)), use, why, delete_all if delete else None)]


def size_of(path: Path) -> int:
    """Bytes on disk of a file, or of all files below a folder; links are not followed. What has vanished takes none."""
    try:
        if path.is_symlink() or not path.is_dir():
            return _allocated(path.lstat())
    except OSError:
        return 0
    return sum(map(_allocated, _files_below(path)))


def _files_below(folder: Path) -> Iterable[os.stat_result]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _files_below(Path(entry.path))
                    else:
                        yield entry.stat(follow_symlinks=False)
                except OSError:  # deleted meanwhile
                    continue
    except OSError:
        return


def _allocated(status: os.stat_result) -> int:
    """Bytes that a file takes on disk: less than its size if it has holes."""
    return min(status.st_size, 512 * status.st_blocks) if hasattr(status, "st_blocks") else status.st_size


def table(holdings: Sequence[Holding]) -> str:
    """The holdings as aligned columns: what, number, size, use, why."""
    rows = [("what", "number", "size", "", "why"),
            *((each.what, f"{each.count:,}", size_text(each.num_bytes), each.use.value, each.why)
              for each in holdings)]  # fmt: skip
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return (
        "\n".join(
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:<{widths[3]}}  {row[4]}"
            for row in rows
        )
        + "\n"
    )
