"""Corrects the places of artifacts in a SQLite store that was copied or moved with its project.

MLflow stores the place of each run's artifacts as an absolute path, so after ``cp -r a b`` the runs of ``b`` would be
written to ``a``. A relative path is no remedy: MLflow reads it from the folder in which each process works.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"  # folder of all artifacts, beside the database
# Columns with places of artifacts. A place in `experiments` is where the artifacts of later runs will be.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@dataclass(frozen=True)
class Relocation:
    """What `relocate` did: places corrected, and places whose files are in the former folder only."""

    num_corrected: int
    remaining: list[Path]


def former_folders(database: Path) -> set[Path]:
    """The folders in which the store was when its experiments were created, without the present one; usually none.

    A folder that is the present one under another path, as with a mounted disk, is not among them.
    """
    with closing(_connect(database)) as connection:
        return set(_former(connection, database.parent, "experiments", "artifact_location"))


def relocate(database: Path) -> Relocation:
    """Replace each place in a former folder of the store by the same place beside the database.

    A place stays if its files are in the former folder and not beside the database. One transaction: other processes
    see the store before it or after it. The caller holds the lock of the store.

    Raises
    ------
    sqlite3.Error
        The database cannot be written.
    """
    here, num_corrected, remaining = database.parent, 0, set[Path]()
    with closing(_connect(database)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        former = {folder for table, column in _COLUMNS for folder in _former(connection, here, table, column)}
        for table, column in _COLUMNS:
            for row, place in _places(connection, table, column):
                path = local_path(place)
                folder = path and next((each for each in former if path.is_relative_to(each)), None)
                if path is None or folder is None:
                    continue
                target = here / path.relative_to(folder)
                if table != "experiments" and _exists(path) and not target.exists():
                    remaining.add(path)
                    continue
                text = target.as_uri() if place.startswith("file:") else str(target)
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (text, row))
                num_corrected += 1
    return Relocation(num_corrected, sorted(remaining))


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=60, isolation_level=None)


def _former(connection: sqlite3.Connection, here: Path, table: str, column: str) -> Iterator[Path]:
    """The folders with ``mlartifacts`` in the places of one column, except ``here``."""
    for _, place in _places(connection, table, column):
        path = local_path(place)
        if path is None or ARTIFACTS not in path.parts:
            continue
        folder = Path(*path.parts[: path.parts.index(ARTIFACTS)])
        if folder != here and not (_exists(folder) and folder.samefile(here)):
            yield folder


def _places(connection: sqlite3.Connection, table: str, column: str) -> list[tuple[int, str]]:
    """Row and value of all values of a column; none if a store of an older MLflow lacks it."""
    columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
    if column not in columns:
        return []
    return list(connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} <> ''"))


def _exists(path: Path) -> bool:
    """Whether a path exists and can be seen: the former folder may be of a disk or user that is out of reach."""
    try:
        return path.exists()
    except OSError:
        return False


def local_path(place: str) -> Path | None:
    """The absolute path that a place names; None if it is not on this machine's disk (``s3://…``, ``models:/…``)."""
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return Path(place) if place.startswith("/") else None
