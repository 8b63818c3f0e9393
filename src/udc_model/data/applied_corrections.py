"""Applies corrections to the images of a source, and records what they changed."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from udc_model.data.assignment import UsableImage
from udc_model.data.corrections import MAX_BYTES, Correction, csv_text
from udc_model.data.dataset_file import ADVICE
from udc_model.data.sources import ImageSource, LeftOut, Rejection, join_for_message, printable
from udc_model.errors import UdcError
from udc_model.files import read_bytes

DROPPED = "dropped by data/corrections.csv"
APPLIED = "corrections.csv"  # in the prepared folder: what was applied, without author, date and reason
_DONE = {"relabel": "relabelled", "drop": "dropped", "group": "put into another group"}


@dataclass(frozen=True)
class AppliedCorrection:
    """What a correction changed in the prepared data.

    Parameters
    ----------
    split : of the image, also if it was dropped from it; empty if the image is in none.
    before, after : label, of ``group`` the group; of ``drop`` and ``keep`` the label twice.
    """

    path: str
    action: str
    split: str
    before: str
    after: str


@dataclass(frozen=True)
class Corrected:
    """The images after corrections.

    Attributes
    ----------
    images : those to assign to splits, with the labels and groups of the corrections.
    rejected : unusable images, without dropped ones.
    left_out : dropped images.
    applied : sorted by path.
    """

    images: list[UsableImage]
    rejected: list[Rejection]
    left_out: list[LeftOut]
    applied: list[AppliedCorrection]

    def counts(self) -> dict[str, int]:
        """Number of images that corrections changed, by action; without ``keep``, which changes nothing."""
        counts = Counter(each.action for each in self.applied)
        return {action: counts[action] for action in _DONE if counts[action]}

    def notes(self) -> list[str]:
        """A sentence about the corrections, if they changed something."""
        changed = ", ".join(f"{count:,} {_DONE[action]}" for action, count in self.counts().items())
        return [f"corrected by data/corrections.csv: {changed}"] if changed else []


def check_corrections(corrections: Sequence[Correction], source: ImageSource, path: Path) -> None:
    """Check what can be checked before images are decoded: their paths and the new labels.

    Parameters
    ----------
    path : of the file, for messages.

    Raises
    ------
    UdcError
        There is no such image, or a label is no class; the message lists all of them.
    """
    paths = {record.path for record in source.records} | {item.path for item in source.rejected}
    problems = []
    for each in corrections:
        if each.path and not {each.path, each.path.rpartition("#")[0]} & paths:  # name#2 is a frame of a file
            problems.append(_missing(each))
        elif each.action == "relabel" and each.value not in source.classes:
            problems.append(f"{each.image}: {printable(each.value)} is no class; the classes are "
                            f"{join_for_message(source.classes)}")  # fmt: skip
    _raise(problems, path)


def _missing(correction: Correction) -> str:
    return f"{correction.image}: there is no such image in data.path; restore it, or remove the line"


def _raise(problems: Sequence[str], path: Path) -> None:
    if problems:
        raise UdcError(f"{path}: {len(problems)} correction(s) do not fit the images:\n  "
                       + join_for_message(problems, "\n  "))  # fmt: skip


def correct(
    images: Sequence[UsableImage],
    rejected: Sequence[Rejection],
    corrections: Sequence[Correction],
    path: Path,
) -> Corrected:
    """Apply corrections to images before they get a split.

    Parameters
    ----------
    path : of the file, for messages.

    Raises
    ------
    UdcError
        An image is missing or has other pixels; the message lists all of them.
    """
    positions, by_pixels = {image.record.path: k for k, image in enumerate(images)}, defaultdict(list)
    for k, image in enumerate(images):
        by_pixels[image.checked.sha256].append(k)
    reasons = {item.path: item.reason for item in rejected}
    corrected, problems, applied, dropped = list(images), [], [], set()
    decided: set[tuple[int, bool]] = set()
    for correction in corrections:
        chosen = [positions[correction.path]] if correction.path in positions else []
        if not correction.path:
            chosen = by_pixels.get(correction.sha256, [])
        elif not chosen and correction.path in reasons and correction.action == "drop":
            dropped.add(correction.path)
            applied.append(AppliedCorrection(correction.path, "drop", "", "", ""))
            continue
        problem = _mismatch(correction, [images[k] for k in chosen], reasons)
        keys = {(k, correction.action == "group") for k in chosen}
        if problem is None and keys & decided:
            problem = f"{correction.image}: is corrected twice, by its path and by its pixels; remove one line"
        decided |= keys
        if problem is not None:
            problems.append(problem)
            continue
        for k in chosen:
            before = images[k].record
            corrected[k] = _corrected(corrected[k], correction)
            old = (before.group or "") if correction.action == "group" else before.label
            applied.append(AppliedCorrection(before.path, correction.action, "", old, correction.value or old))
    _raise(problems, path)
    paths = sorted(dropped | {image.record.path for image in corrected if image.is_dropped})
    remaining = [item for item in rejected if item.path not in dropped]
    applied.sort(key=lambda each: (each.path, each.action))
    return Corrected(corrected, remaining, [LeftOut(each, DROPPED) for each in paths], applied)


def _mismatch(correction: Correction, images: Sequence[UsableImage], reasons: Mapping[str, str]) -> str | None:
    """Why a correction does not fit its images; None if it does."""
    if not images and correction.path in reasons:
        return f"{correction.image}: cannot be used ({reasons[correction.path]}); drop it, or remove the line"
    if not images:
        return _missing(correction)
    sha256 = images[0].checked.sha256
    if correction.sha256 not in ("", sha256):
        return (f"{correction.image}: has changed since it was corrected (sha256 {sha256}, was {correction.sha256}); "
                "look at it again, and write its new sha256 or remove the line")  # fmt: skip
    return None


def _corrected(image: UsableImage, correction: Correction) -> UsableImage:
    match correction.action:
        case "relabel":
            return replace(image, record=replace(image.record, label=correction.value))
        case "group":
            return replace(image, record=replace(image.record, group=correction.value))
        case "drop":
            return replace(image, is_dropped=True)
    return image


def write_applied(folder: Path, corrected: Corrected, splits: Mapping[str, str]) -> None:
    """Write what was applied into the prepared folder, if anything was.

    Parameters
    ----------
    splits : of each image, dropped ones included, by path.
    """
    if corrected.applied:
        rows = (replace(each, split=splits.get(each.path, "")) for each in corrected.applied)
        names = [field.name for field in fields(AppliedCorrection)]
        (folder / APPLIED).write_text(csv_text(names, map(astuple, rows)), encoding="utf-8")


def read_applied(folder: Path) -> list[AppliedCorrection]:
    """What `write_applied` wrote; :class:`UdcError` if it is damaged."""
    path = folder / APPLIED
    if not path.exists():
        return []
    try:
        rows = list(csv.reader(io.StringIO(read_bytes(path, ADVICE, MAX_BYTES).decode(), newline=""), strict=True))
        return [AppliedCorrection(*row) for row in rows[1:]]
    except (UnicodeDecodeError, csv.Error, TypeError) as error:
        raise UdcError(f"{path}: is damaged ({error}); {ADVICE}") from None
