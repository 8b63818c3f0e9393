"""Patterns of file names that number several images of one object, and the groups that they form."""

from __future__ import annotations

import re
from collections.abc import Sequence

PATTERNS = (
    r"^(.+)[ _.-]\(?[0-9]{1,4}\)?\.[^.]+$",  # tile012_3.jpg, tile012 (3).jpg
    r"^(.+)[ _.-][A-Za-z]{1,8}[0-9]*\.[^.]+$",  # tile012_left.jpg
    r"^(.*[0-9])[a-z]\.[^.]+$",  # tile012c.jpg
    r"^([^ _.-]+[ _.-][^ _.-]+)[ _.-].*\.[^.]+$",  # patient3_slide1_17_2.jpg
    r"^([^ _.-]+)[ _.-].*\.[^.]+$",  # patient3_slide1_2.jpg
    r"(?i)((?:patient|subject|person|case|slide|plate|tile|plot|specimen|object)[ _-]?[0-9]+)",
)


def groups_by_name(pattern: str, paths: Sequence[str]) -> list[str] | None:
    """The group of each image by one of `PATTERNS`, or None if a file name does not match."""
    compiled = re.compile(pattern)
    names = (path.rpartition("/")[2].rpartition("#")[0] or path.rpartition("/")[2] for path in paths)
    matches = [compiled.search(name) for name in names]
    groups = [match.group(1) for match in matches if match is not None]
    return groups if len(groups) == len(matches) else None
