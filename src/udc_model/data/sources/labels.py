"""Class names from the labels that a source contains: merged by ``data.merge_labels``, similar ones reported."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from udc_model.data.sources.records import composed, join_for_message
from udc_model.errors import UdcError


class Labels:
    """Converts labels to class names and remembers how each class was written.

    Parameters
    ----------
    merge : class name by label, from ``data.merge_labels``.
    """

    def __init__(self, merge: Mapping[str, str]) -> None:
        self._merge = {composed(label.strip()): name for label, name in merge.items()}
        self._spellings: defaultdict[str, set[str]] = defaultdict(set)

    def merged(self, label: str) -> str:
        """The class of a label: without surrounding spaces, in composed Unicode, renamed by ``data.merge_labels``."""
        plain = composed(label.strip())
        return self._merge.get(plain, plain)

    def class_of(self, label: str) -> str:
        """The class of the label of an image, which is remembered."""
        name = self.merged(label)
        self._spellings[name].add(label)
        return name

    def check_merged(self) -> None:
        """Raise :class:`UdcError` if ``data.merge_labels`` names a label that does not occur."""
        seen = {composed(label.strip()) for labels in self._spellings.values() for label in labels}
        missing = sorted(self._merge.keys() - seen)
        if missing:
            raise UdcError(f"data.merge_labels: the data has no label {join_for_message(missing)}; "
                           f"its labels are {join_for_message(sorted(seen))}")  # fmt: skip

    def notes(self) -> list[str]:
        """A line for each class written in several ways, and for each set of classes with similar names."""
        merged = set(self._merge)
        lines = []
        for name, labels in sorted(self._spellings.items()):
            unmerged = sorted(repr(label) for label in labels if composed(label.strip()) not in merged)
            if len(unmerged) > 1:
                lines.append(f"the class {name} is written in several ways: {join_for_message(unmerged)}")
        by_form = defaultdict(list)
        for name in sorted(self._spellings):
            by_form[_similar_form(name)].append(name)
        for names in by_form.values():
            if len(names) > 1:
                lines.append(f"these labels may be one class: {join_for_message([repr(name) for name in names])}; "
                             f"if so, set data.merge_labels: {{{names[0]!r}: {names[1]!r}}}")  # fmt: skip
        return lines


def _similar_form(name: str) -> str:
    """A text that is equal for labels which differ in case, spaces, ``_``, ``-``, or the form of a number only."""
    form = re.sub(r"[\s_-]+", " ", name.casefold()).strip()
    try:
        return f"{float(form):g}" if re.fullmatch(r"[+-]?\d+(\.\d*)?", form) else form
    except OverflowError:
        return form
