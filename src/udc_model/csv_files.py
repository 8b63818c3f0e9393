"""Writes CSV that is read back unchanged, whatever texts the cells have: names of files may contain any character."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class CsvWriter(Protocol):
    """What `csv.writer` returns."""

    def writerow(self, row: Iterable[Any], /) -> Any:
        """Write a row."""

    def writerows(self, rows: Iterable[Iterable[Any]], /) -> Any:
        """Write rows."""


class LineFeeds:
    """A stream for a CSV writer whose lines end with ``\\r\\n``; it writes ``\\n`` instead.

    Before Python 3.13, `csv.writer` quotes only those line breaks that the end of its lines contains, so with ``\\n``
    it writes a carriage return in a cell without quotes, and a reader ends the row there.

    Parameters
    ----------
    write : is called with each row.
    """

    END = "\r\n"  # of the lines that the CSV writer must be set to

    def __init__(self, write: Callable[[str], Any]) -> None:
        self._write = write

    def write(self, row: str) -> None:
        """Write a row with its end, as CSV writers do."""
        self._write(f"{row.removesuffix(self.END)}\n")


def csv_writer(write: Callable[[str], Any]) -> CsvWriter:
    """A writer that calls ``write`` with each row, which ends with ``\\n``; cells with any line break are quoted."""
    return csv.writer(LineFeeds(write), lineterminator=LineFeeds.END)
