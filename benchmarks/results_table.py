"""A table of results that grows row by row, so that an interrupted benchmark continues where it ended."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


class ResultsTable:
    """A CSV file of settings, one key column, and the values measured at them."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, **values: object) -> bool:
        """Whether a row has these values."""
        return any(all(row[name] == str(value) for name, value in values.items()) for row in self.rows)

    def append(self, *values: object) -> None:
        """Add a row; the file is complete after each."""
        is_new = not self.path.is_file()
        row = dict(zip(self.columns, map(_text, values), strict=True))
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
