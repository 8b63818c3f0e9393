"""Characters of class names that the usual font of plots lacks: other installed fonts, or a note."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache

logger = logging.getLogger(__name__)

BOXES = "boxes"  # in a PNG: the number of characters that no font had
_MISSING = re.compile(r"Glyph (\d+) .*missing from")  # a warning of Matplotlib
_MOST_SHOWN = 10  # characters of the note
# Fonts without serifs that Linux, macOS and Windows have: first Chinese, Japanese and Korean, then other scripts.
_FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Heiti TC",
    "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Noto Sans", "Noto Sans Arabic",
    "Noto Sans Bengali", "Noto Sans Devanagari", "Noto Sans Hebrew", "Noto Sans Tamil", "Noto Sans Thai", "Nirmala UI",
    "Leelawadee UI", "Segoe UI", "Arial Unicode MS", "FreeSans", "Unifont",
)  # fmt: skip


@contextmanager
def missing_characters() -> Iterator[set[str]]:
    """The characters for which nothing but a box is drawn meanwhile; other warnings are given as usual."""
    found: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    for each in caught:
        if match := _MISSING.match(str(each.message)):
            found.add(chr(int(match[1])))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


@cache
def fallback_fonts() -> Sequence[str]:
    """Names of the fonts of `_FALLBACKS` that are installed, also of those that Matplotlib's list lacks so far."""
    from matplotlib import font_manager  # which a process that only waits for figures does not need

    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            with suppress(Exception):  # of many kinds, for a file that is no font
                manager.addfont(path)
    installed = {entry.name for entry in manager.ttflist}
    return [name for name in _FALLBACKS if name in installed]


def note_boxes(characters: Collection[str]) -> None:
    """Say that characters are boxes in plots; the same ones once."""
    _note("".join(sorted(characters)[:_MOST_SHOWN]) + ("…" if len(characters) > _MOST_SHOWN else ""))


@cache
def _note(shown: str) -> None:
    logger.warning("note: plots show characters of names as boxes (%s), because no font that is known to have them is "
                   "installed; install one, as the package fonts-noto-cjk or fonts-noto-core, and draw them again",
                   shown)  # fmt: skip
