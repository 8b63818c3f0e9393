"""The images whose label a person should look at: suspects, near-duplicates with other labels, costly mistakes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated, NamedTuple

from pydantic import Field

from udc_model.data.dataset_file import ADVICE, DATASET
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.evaluation.label_review import read_suspects
from udc_model.evaluation.verdict import cost_text
from udc_model.files import Workspace
from udc_model.records import Record, validated

_MOST_MISTAKES = 50
_MOST_RELATED = 8  # images shown beside one

_Member = Annotated[list[str], Field(min_length=2, max_length=2)]  # path and label


class _NearDuplicates(Record):
    conflicting_labels: list[list[_Member]] = Field(default_factory=list)


class _Conflicts(Record):
    """Sets of images that show the same and have several labels, in ``dataset.json``."""

    near_duplicates: _NearDuplicates = _NearDuplicates()
    conflicting_labels: list[list[_Member]] = Field(default_factory=list)


class ImagePlace(NamedTuple):
    """Where the prepared image is."""

    split: str
    row: int


@dataclass(frozen=True)
class Related:
    """An image that shows the same."""

    path: str
    label: str
    place: ImagePlace


@dataclass(frozen=True)
class QueueItem:
    """An image to look at.

    Parameters
    ----------
    path, sha256, label, place : as prepared.
    suggestion : a class; empty if there is none.
    findings : why the image is in the queue, a sentence each.
    related : images that show the same.
    """

    path: str
    sha256: str
    label: str
    place: ImagePlace
    suggestion: str
    findings: list[str]
    related: list[Related] = field(default_factory=list)


@dataclass(frozen=True)
class _Finding:
    path: str
    suggestion: str
    text: str
    related: Sequence[tuple[str, str]] = ()  # paths and labels


def review_queue(workspace: Workspace, dataset: PackedDataset) -> list[QueueItem]:
    """The images to look at, each once: suspects, then near-duplicates with other labels, then the costliest mistakes.

    Images that are no longer in the prepared data are left out.

    Raises
    ------
    UdcError
        A table is missing or damaged.
    """
    manifest = dataset.manifest
    prepared = {
        path: QueueItem(path, sha256, label, ImagePlace(split, row), "", [])
        for path, sha256, label, split, row in zip(
            *(manifest[column].tolist() for column in ("path", "sha256", "label", "split", "row")), strict=True)
    }  # fmt: skip
    queue: dict[str, QueueItem] = {}
    for finding in (*_suspects(workspace), *_conflicts(dataset), *_mistakes(workspace)):
        item = queue.get(finding.path) or prepared.get(finding.path)
        if item is None:
            continue
        related = item.related or [Related(path, label, prepared[path].place) for path, label in finding.related
                                   if path in prepared][:_MOST_RELATED]  # fmt: skip
        suggestion = item.suggestion or (finding.suggestion if finding.suggestion != item.label else "")
        queue[item.path] = replace(
            item, suggestion=suggestion, findings=[*item.findings, finding.text], related=related
        )
    return list(queue.values())


def _suspects(workspace: Workspace) -> Iterator[_Finding]:
    for each in read_suspects(workspace.evaluation):
        yield _Finding(each.path, each.suggested_label,
                       f"Suspicious label: {each.suggested_label} is more likely. Probability of the label "
                       f"{each.score:.2g}, expected cost {cost_text(each.expected_cost)}.")  # fmt: skip


def _conflicts(dataset: PackedDataset) -> Iterator[_Finding]:
    """The images of each set that have another label than most of it; all of them if no label is the most frequent."""
    record = validated(dataset.info, _Conflicts, str(dataset.folder / DATASET), ADVICE)
    for members in (*record.near_duplicates.conflicting_labels, *record.conflicting_labels):
        counts = Counter(label for _, label in members).most_common(2)
        majority = counts[0][0] if len(counts) > 1 and counts[0][1] > counts[1][1] else ""
        for path, label in members:
            others = [(other, of_other) for other, of_other in members if other != path]
            if label != majority:
                different = majority or next((each for _, each in others if each != label), "")
                yield _Finding(path, different, f"{len(others):,} image(s) show the same, and not all have this label.",
                               others)  # fmt: skip


def _mistakes(workspace: Workspace) -> Iterator[_Finding]:
    """The first images of ``costliest_mistakes.csv``."""
    path = workspace.evaluation / "test" / "costliest_mistakes.csv"
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            for row in islice(csv.DictReader(handle), _MOST_MISTAKES):
                decided, probability, cost = row["decided"], float(row["probability"]), float(row["cost"])
                yield _Finding(row["path"], decided, f"Costly mistake in the test split: decided {decided}, "
                               f"probability {probability:.2g}, cost {cost_text(cost)}.")  # fmt: skip
    except FileNotFoundError:
        raise UdcError(f"{path}: no such file; run evaluate first (dvc repro)") from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UdcError(f"{path}: cannot be read as a table of mistakes: {error!r}") from None
