"""Finds the columns of a table by their names: image, label (or one column per class), split and group."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from udc_model.config import DataParams
from udc_model.data.sources.records import join_for_message, printable, split_of_name
from udc_model.data.sources.subgroups import parse_divisions
from udc_model.data.sources.tables import Table
from udc_model.errors import UdcError

# In order of preference; compared in lower case, with _ for spaces and -.
PATH_COLUMNS = ("image_path", "path", "file_path", "filepath", "image_file", "file_name", "filename", "file",
                "image_name", "image", "img", "image_id", "id")  # fmt: skip
LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "target", "category")
SPLIT_COLUMNS = ("split", "subset", "partition", "set")
_OBJECT = re.compile(r"(patient|subject|person|participant|donor|animal|specimen|lesion|case|study|slide|group)"
                     r"_?(id|no|number)|patient|subject|participant|lesion")  # fmt: skip
_ZERO, _ONE = frozenset({"0", "0.0", "false"}), frozenset({"1", "1.0", "true"})


@dataclass(frozen=True)
class Columns:
    """Positions of the columns in a row.

    Attributes
    ----------
    path : the image.
    label : the class, or None if ``one_hot`` is set.
    one_hot : column of each class; 1 in exactly one of them.
    split, group : None if the table has no such column.
    subgroups : of the entries of ``data.subgroups``; None for a pattern.
    """

    path: int
    label: int | None
    one_hot: dict[str, int]
    split: int | None
    group: int | None
    subgroups: tuple[int | None, ...] = ()

    def label_of(self, cells: Sequence[str]) -> str:
        """The label of a row; ``""`` if it has none.

        Raises
        ------
        UdcError
            The row has a 1 in several columns of classes.
        """
        if self.label is not None:
            return cells[self.label]
        names = [name for name, k in self.one_hot.items() if cells[k].casefold() in _ONE]
        if len(names) > 1:
            raise UdcError(f"has a 1 for several classes ({join_for_message(names)}); an image has one class. If some "
                           "of these columns are no classes, list the classes in data.classes")  # fmt: skip
        return names[0] if names else ""

    def describe(self, table: Table) -> str:
        """One line, as ``image: filename; class: one of the columns MEL, NV``."""
        label = table.columns[self.label] if self.label is not None else None
        parts = [f"image: {table.columns[self.path]}",
                 f"class: {label or 'one of the columns ' + join_for_message(list(self.one_hot))}"]  # fmt: skip
        roles = (("split", self.split), ("group", self.group), *(("subgroup", k) for k in self.subgroups))
        parts += [f"{role}: {table.columns[k]}" for role, k in roles if k is not None]
        return "; ".join(parts)


def find_columns(table: Table, params: DataParams) -> Columns:
    """Find the columns of a table by the parameters that name them (``data.path_column``, …), or by usual names.

    Raises
    ------
    UdcError
        There is no column of images or of classes, or not one that a parameter names.
    """
    path = _column(table, params.path_column, PATH_COLUMNS, "path_column")
    label = _column(table, params.label_column, LABEL_COLUMNS, "label_column")
    splits = [_column(table, None, (name,), "") for name in SPLIT_COLUMNS]
    split = next((k for k in splits if k is not None and (k == splits[0] or names_splits(table, k))), None)
    subgroups = tuple(
        None if each.pattern else _column(table, each.name, (), "subgroups")
        for each in parse_divisions(params.subgroups or ())
    )
    group = _group_column(table.columns, params.group, {path, label, *subgroups})
    used = {k for k in (path, split, group, *subgroups) if k is not None}
    one_hot = _one_hot(table, params, used) if label is None else {}
    missing = [text for text, is_missing in (
        (f"images ({', '.join(PATH_COLUMNS[:6])}, …; or set data.path_column)", path is None),
        (f"classes ({', '.join(LABEL_COLUMNS)}; a column of 0 and 1 for each class; or set data.label_column)",
         label is None and not one_hot),
    ) if is_missing]  # fmt: skip
    if path is None or missing:
        raise UdcError(f"{printable(str(table.path))}: has no column of {' and no column of '.join(missing)}; "
                       f"its columns are {join_for_message(table.columns)}")  # fmt: skip
    return Columns(path, label, one_hot, split, group, subgroups)


def _column(table: Table, name: str | None, usual: Sequence[str], parameter: str) -> int | None:
    if name is not None:
        if name.strip() not in table.columns:
            raise UdcError(f"data.{parameter}: {printable(str(table.path))} has no column {name!r}; its columns are "
                           f"{join_for_message(table.columns)}")  # fmt: skip
        return table.columns.index(name.strip())
    return _usual_column(table.columns, usual)


def _group_column(columns: Sequence[str], name: str | None, taken: Collection[int | None]) -> int | None:
    """The column that ``data.group`` names, or ``group``; one with that name in other letters has no second role."""
    exact = "group" if name is None else name.strip()
    if name is not None or exact in columns:
        return columns.index(exact) if exact in columns else None
    usual = _usual_column(columns, (exact,))
    return None if usual in taken else usual


def group_advice(table: Table, columns: Columns) -> list[str]:
    """A line about the first column that seems to number patients or other objects, of which some have several images.

    Parameters
    ----------
    columns : of the table, without one of groups.
    """
    for k, name in enumerate(table.columns):
        if k in (columns.path, columns.label, *columns.subgroups) or not _OBJECT.fullmatch(_plain(name)):
            continue
        values = [cells[k] for _, cells in table.rows if cells[k]]
        if 1 < (count := len(set(values))) < len(values):
            shown, file = printable(name), printable(table.path.name)
            return [f"the column {shown} of {file} has {count:,} values for {len(values):,} images; "
                    f"set data.group: {shown} so that images of one {shown} stay in one split"]  # fmt: skip
    return []


def _plain(name: str) -> str:
    return name.casefold().replace(" ", "_").replace("-", "_")


def _usual_column(columns: Sequence[str], usual: Sequence[str]) -> int | None:
    plain = [_plain(column) for column in columns]
    return next((plain.index(candidate) for candidate in usual if candidate in plain), None)


def find_path_column(path: Path, columns: Sequence[str], name: str | None) -> int:
    """Position of the column of images: that of a name, or by the usual names.

    Parameters
    ----------
    path : the table, for messages.

    Raises
    ------
    UdcError
        There is none.
    """
    found = _usual_column(columns, PATH_COLUMNS) if name is None else None
    if name is not None and name.strip() in columns:
        found = columns.index(name.strip())
    if found is None:
        reason = f"has no column {name!r}" if name is not None else (
            f"has no column of images ({', '.join(PATH_COLUMNS[:6])}, …); name it with --column")  # fmt: skip
        raise UdcError(f"{printable(str(path))}: {reason}; its columns are {join_for_message(columns)}")
    return found


def names_splits(table: Table, k: int) -> bool:
    """Whether all cells of a column are names of splits, or empty."""
    return all(split_of_name(cells[k]) for _, cells in table.rows if cells[k])


def _one_hot(table: Table, params: DataParams, used: set[int]) -> dict[str, int]:
    """Columns that contain 0 and 1 only: those of ``data.classes``, or all."""
    names = params.classes or table.columns
    candidates = [(name, table.columns.index(name)) for name in names if name in table.columns]
    candidates = [(name, k) for name, k in candidates if k not in used]
    allowed = _ZERO | _ONE | {""}
    for _, cells in table.rows:
        candidates = [(name, k) for name, k in candidates if cells[k].casefold() in allowed]
    return dict(candidates) if len(candidates) > 1 and table.rows else {}
