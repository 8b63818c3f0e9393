"""Subgroups of the images: the values in a column of the tables, or of a named pattern on the path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from udc_model.data.sources.records import ImageRecord, join_for_message, printable
from udc_model.errors import UdcError

_MOST_VALUES = 50  # of one division; more are no subgroups, but numbers or names
_LONGEST_VALUE = 200  # characters
_MOST_LISTED = 12  # with their number of images


@dataclass(frozen=True)
class Division:
    """One way to divide the images into subgroups: an entry of ``data.subgroups``.

    Attributes
    ----------
    name : of the column, or of the pattern's group.
    pattern : searched in the path of an image; None if the subgroup is in a column.
    """

    name: str
    pattern: re.Pattern[str] | None = None

    def of_path(self, path: str) -> str:
        """The subgroup of an image by its path; ``""`` if the named part is empty.

        Raises
        ------
        UdcError
            The pattern does not match.
        """
        assert self.pattern is not None
        match = self.pattern.search(path)
        if match is None:
            raise UdcError(f"data.subgroups: {self.pattern.pattern!r} does not match the path {printable(path)}")
        return match[self.name] or ""


def check_has_patterns(divisions: Sequence[Division]) -> None:
    """Raise :class:`UdcError` if a subgroup is in a column, for images that no table lists."""
    if columns := [division.name for division in divisions if division.pattern is None]:
        raise UdcError(f"data.subgroups: no table has a column {columns[0]!r}, because no table lists the images; a "
                       "pattern on their path has a name, as '(?P<site>[^/]+)/[^/]*$'")  # fmt: skip


def parse_divisions(entries: Sequence[str]) -> list[Division]:
    """The divisions that ``data.subgroups`` lists.

    Raises
    ------
    UdcError
        A pattern is no regular expression or has not exactly one name, or a name occurs twice.
    """
    divisions = [_division(entry.strip()) for entry in entries]
    names = [division.name for division in divisions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UdcError(f"data.subgroups: names {join_for_message(twice)} twice")
    return divisions


def _division(entry: str) -> Division:
    if "(?P<" not in entry:
        return Division(entry)
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise UdcError(f"data.subgroups: {entry!r} is not a regular expression: {error}") from None
    if len(pattern.groupindex) != 1:
        raise UdcError(f"data.subgroups: {entry!r} has {len(pattern.groupindex)} names; list one pattern for each")
    return Division(next(iter(pattern.groupindex)), pattern)


def check_divisions(names: Sequence[str], records: Sequence[ImageRecord]) -> None:
    """Raise :class:`UdcError` if no image has a subgroup in a division, or if its values are no subgroups."""
    for name, counts in zip(names, _counts(names, records), strict=True):
        values = sorted(counts.keys() - {""})
        if not values:
            raise UdcError(f"data.subgroups: no image has a value of {name!r}")
        if len(values) > _MOST_VALUES or max(map(len, values)) > _LONGEST_VALUE:
            raise UdcError(f"data.subgroups: {name!r} has {len(values):,} values ({join_for_message(values[:3])}, …); "
                           f"{_MOST_VALUES} of up to {_LONGEST_VALUE} characters are allowed: use a column of bands, "
                           "as age_band, instead of numbers")  # fmt: skip


def describe_divisions(names: Sequence[str], records: Sequence[ImageRecord]) -> list[str]:
    """One line for each division, as ``site: A 20, B 30; 2 images without``."""
    lines = []
    for name, counts in zip(names, _counts(names, records), strict=True):
        without = counts.pop("", 0)
        shown = [f"{value} {count:,}" for value, count in sorted(counts.items())[:_MOST_LISTED]]
        more = f", … and {len(counts) - _MOST_LISTED} more" if len(counts) > _MOST_LISTED else ""
        lines.append(f"{name}: {join_for_message(shown)}{more}" + (f"; {without:,} images without" if without else ""))
    return lines


def _counts(names: Sequence[str], records: Sequence[ImageRecord]) -> list[Counter[str]]:
    """Images of each subgroup, by division."""
    return [Counter(record.subgroups[k] for record in records) for k in range(len(names))]
