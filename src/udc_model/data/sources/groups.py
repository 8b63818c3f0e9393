"""The group of an image by a pattern on its file name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from udc_model.errors import UdcError


def group_pattern(pattern: str | None) -> Callable[[str], str | None]:
    """Return a function from a path to its group: the first capture group of ``pattern``, searched in the file name.

    Raises
    ------
    UdcError
        The pattern is no regular expression with a group; by the function: the pattern does not match.
    """
    if pattern is None:
        return lambda path: None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UdcError(f"data.group: {pattern!r} is not a regular expression: {error}") from None
    if compiled.groups < 1:
        raise UdcError(
            f"data.group: {pattern!r} must be a column of the CSV file, or a regular expression with (…) around the "
            "part of the file name that identifies the group"
        )

    def group_of(path: str) -> str | None:
        name = PurePosixPath(path).name
        match = compiled.search(name)
        if match is None or match.group(1) is None:
            raise UdcError(f"data.group: {pattern!r} does not match the file name {name}")
        return match.group(1)

    return group_of
