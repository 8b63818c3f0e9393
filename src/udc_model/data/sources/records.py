"""What a source consists of: images, files that cannot be used, and files that are left out."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udc_model.config import SPLITS

_MAX_LISTED = 50  # entries of a list in a message
SPLIT_NAMES = {
    "train": "train", "training": "train", "trainval": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "calibration": "calibration", "calib": "calibration",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image as its source describes it; ``path`` is relative to the source's folder and uses ``/``."""

    path: str
    label: str
    split: str | None = None
    group: str | None = None
    subgroups: tuple[str, ...] = ()  # one for each entry of data.subgroups; "" for none


@dataclass(frozen=True, slots=True)
class Rejection:
    """An image that cannot be used, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that is not used, and the reason, which is the same text for all files of one kind."""

    path: str
    reason: str


@dataclass
class ImageSource:
    """The images of a source.

    Attributes
    ----------
    root : folder that all paths are relative to.
    layout : one line that says how the images were found.
    classes : class names, sorted.
    records : the images, sorted by path.
    rejected : images that cannot be used.
    left_out : files and folders that are no images of the source.
    notes : lines about what was recognised or is suspicious.
    pixels : (N, H, W) uint8 grey images of a source without files; None for files.
    divisions : names of the entries of ``data.subgroups``.
    """

    root: Path
    layout: str
    classes: list[str]
    records: list[ImageRecord]
    rejected: list[Rejection] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pixels: NDArray[np.uint8] | None = None
    divisions: list[str] = field(default_factory=list)


def split_of_name(name: str) -> str | None:
    """The split that a folder, file or cell is named after, in any case (``Val`` is ``validation``), or None."""
    return SPLIT_NAMES.get(name.strip().casefold())


def split_in_words(name: str) -> str | None:
    """The only split among the words of a name, as ``train`` in ``train_labels`` and ``Training Set``, or None."""
    splits = {split_of_name(word) for word in words_of(name)} - {None}
    return splits.pop() if len(splits) == 1 else None


def words_of(name: str) -> list[str]:
    """The words of a name, between spaces, ``_`` and other signs."""
    return re.split(r"[\W_]+", name)


def accepted_split_names() -> str:
    """The names that `split_of_name` accepts, for a message."""
    names = {split: [name for name in SPLIT_NAMES if SPLIT_NAMES[name] == split] for split in SPLITS}
    return "; ".join(f"{split} ({', '.join(synonyms[1:])})" for split, synonyms in names.items())


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC); macOS names files in the decomposed form."""
    return unicodedata.normalize("NFC", text)


def printable(text: str) -> str:
    """The text with escapes instead of line breaks, control characters and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def join_for_message(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first 50 items for a message, followed by the number of further items."""
    more = f"{separator}… and {len(items) - _MAX_LISTED:,} more" if len(items) > _MAX_LISTED else ""
    return separator.join(printable(item) for item in items[:_MAX_LISTED]) + more


def count_by_reason(left_out: Sequence[LeftOut]) -> dict[str, int]:
    """Number of files by reason, the most frequent first."""
    return dict(sorted(Counter(item.reason for item in left_out).items(), key=lambda pair: (-pair[1], pair[0])))
