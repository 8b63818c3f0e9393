"""The images that tables list, with their classes, splits and groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from udc_model.config import CsvFile, DataParams
from udc_model.data.sources.columns import Columns, find_columns, group_advice, names_splits
from udc_model.data.sources.finder import ImageFinder, unsafe_path
from udc_model.data.sources.groups import group_pattern
from udc_model.data.sources.labels import Labels
from udc_model.data.sources.listing import Listing
from udc_model.data.sources.records import (
    ImageRecord,
    ImageSource,
    LeftOut,
    Rejection,
    accepted_split_names,
    join_for_message,
    printable,
    split_of_name,
)
from udc_model.data.sources.subgroups import parse_divisions
from udc_model.data.sources.tables import Table, read_table
from udc_model.errors import UdcError

_GroupOfRow = Callable[[Sequence[str], str], str | None]


def table_source(
    root: Path, listing: Listing, files: Sequence[str | CsvFile], params: DataParams, labels: Labels
) -> ImageSource:
    """List the images of tables.

    Parameters
    ----------
    listing : contents of ``root``.
    files : the tables, relative to ``root``.

    Raises
    ------
    UdcError
        A table is missing, damaged or lacks a column, or rows are invalid; one message lists them.
    """
    reader = _Reader(root, ImageFinder(root, listing.images, params.path_pattern), params, labels)
    descriptions, notes = [], []
    for entry in files:
        file = entry if isinstance(entry, CsvFile) else CsvFile(file=entry)
        if (reason := unsafe_path(file.file)) is not None:
            raise UdcError(f"data.csv_files: {printable(file.file)}: {reason}")
        table = read_table(root / file.file, params.encoding)
        columns = find_columns(table, params)
        descriptions.append(f"{printable(file.file)} ({columns.describe(table)})")
        reader.read(table, columns, file)
        notes += group_advice(table, columns) if params.group is None and columns.group is None else []
    reader.raise_for_problems()
    used = set(reader.lines)
    tables = {file if isinstance(file, str) else file.file for file in files}
    unlisted = [path for path in listing.images if path not in used]
    left_out = [item for item in listing.left_out if item.path not in tables]
    return ImageSource(
        root,
        "table " + join_for_message(descriptions),
        sorted(reader.classes or ()),
        sorted(reader.records, key=lambda record: record.path),
        reader.rejected,
        left_out + [LeftOut(path, "not listed in the table") for path in unlisted],
        notes,
    )


@dataclass
class _Reader:
    """Collects the images and the problems of the rows of all tables."""

    root: Path
    finder: ImageFinder
    params: DataParams
    labels: Labels
    records: list[ImageRecord] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)  # place in a table by path
    classes: set[str] | None = None

    def __post_init__(self) -> None:
        self.classes = set(self.params.classes) if self.params.classes is not None else None
        self.divisions = parse_divisions(self.params.subgroups or ())

    def read(self, table: Table, columns: Columns, file: CsvFile) -> None:
        folder = PurePosixPath(file.file).parent
        found = set()
        group_of = _group_of_row(table, columns, self.params)
        for line, cells in table.rows:
            where = table.where(line)
            try:
                record, exists = self._record(cells, columns, file, folder, group_of)
            except UdcError as error:
                self.problems.append(f"{where}: {error}")
                continue
            if record.path in self.lines:
                self.problems.append(f"{where}: {record.path} is already listed in {self.lines[record.path]}")
                continue
            self.lines[record.path] = where
            found.add(record.label)
            if exists:
                self.records.append(record)
            else:
                suggestion = self.finder.suggestion(record.path)
                self.rejected.append(Rejection(record.path, f"no such file{suggestion} ({where})"))
        if columns.split is not None and not names_splits(table, columns.split):
            name = printable(table.columns[columns.split])
            self.hints.append(f"if the column {name} of {printable(file.file)} is no split, as the number of a fold, "
                              "rename the column")  # fmt: skip
        if self.classes is None:  # without data.classes, the first table defines the classes
            self.classes = found

    def _record(
        self, cells: Sequence[str], columns: Columns, file: CsvFile, folder: PurePosixPath, group_of: _GroupOfRow
    ) -> tuple[ImageRecord, bool]:
        cell, label = cells[columns.path], columns.label_of(cells)
        if not cell or not label:
            raise UdcError("has no image" if not cell else "has no class")
        name = self.labels.class_of(label)
        if self.classes is not None and name not in self.classes:
            raise UdcError(f"the label {name!r} is not among the classes {sorted(self.classes)}")
        path, exists = self.finder.find(cell, folder)
        text = cells[columns.split] if columns.split is not None else ""
        split = split_of_name(text) if text else file.split
        if text and split is None:
            raise UdcError(f"the split {text!r} is unknown; names of splits: {accepted_split_names()}")
        subgroups = tuple(
            each.of_path(path) if k is None else cells[k]
            for each, k in zip(self.divisions, columns.subgroups, strict=True)
        )
        return ImageRecord(path, name, split, group_of(cells, path), subgroups), exists

    def raise_for_problems(self) -> None:
        if self.problems:
            if not self.params.classes:
                self.hints.append("the first table defines the classes, unless data.classes lists them")
            hints = "".join(f"\n({hint})" for hint in self.hints)
            lines = join_for_message(self.problems, "\n  ")
            raise UdcError(f"{len(self.problems)} row(s) cannot be used:\n  {lines}{hints}")


def _group_of_row(table: Table, columns: Columns, params: DataParams) -> _GroupOfRow:
    """A function from the cells of a row and the path of its image to its group: by the column, else by the path.

    Raises
    ------
    UdcError
        The table has no column of groups, and ``data.group`` is no pattern; by the function: the row has no group.
    """
    if (k := columns.group) is None:
        try:
            group_of = group_pattern(params.group)
        except UdcError as error:
            shown = f"the columns of {printable(str(table.path))} are {join_for_message(table.columns)}"
            raise UdcError(f"{error}; {shown}") from None
        return lambda cells, path: group_of(path)

    def cell_of_row(cells: Sequence[str], path: str) -> str:
        if not cells[k]:
            raise UdcError(f"the column {table.columns[k]} is empty")
        return cells[k]

    return cell_of_row
