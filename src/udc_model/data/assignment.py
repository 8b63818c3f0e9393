"""Decides which of the usable images are used, and in which split: copies, groups, splits of the user, the rest."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.config import SPLITS, DataParams
from udc_model.data.audit import Audit
from udc_model.data.copies import copies_across_groups, copies_across_splits, duplicate_sets
from udc_model.data.scratch import Checked
from udc_model.data.sources import ImageRecord, LeftOut, join_for_message
from udc_model.data.splits import (
    assign_splits,
    connected_components,
    missing_splits,
    of_several_splits,
    with_splits_of_groups,
    without_train,
)
from udc_model.errors import UdcError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UsableImage:
    """A valid image, and what was found out about it.

    Attributes
    ----------
    record : with the label and the group after corrections.
    source_label : label in the source. Splits are drawn by it, so that a corrected label moves no image.
    is_dropped : whether a correction leaves the image out, after all images got a split for the same reason.
    """

    record: ImageRecord
    checked: Checked
    source_label: str
    is_dropped: bool = False

    def manifest_row(self) -> dict[str, Any]:
        """The entries of the image in ``manifest.csv``, except split and row; subgroups; ``scratch_row``."""
        return {
            "path": self.record.path,
            "label": self.record.label,
            "group": self.record.group or "",
            "width": self.checked.width,
            "height": self.checked.height,
            "sha256": self.checked.sha256,
            "subgroups": self.record.subgroups,
            "scratch_row": self.checked.scratch_row,
        }


def usable_images(audit: Audit) -> list[UsableImage]:
    """Pair the records of checked images with their outcomes, without the rejected ones."""
    pairs = zip(audit.records, audit.outcomes, strict=True)
    return [UsableImage(record, outcome, record.label) for record, outcome in pairs if isinstance(outcome, Checked)]


@dataclass
class SplitAssignment:
    """The split of each image that remains, and what is reported about copies.

    Attributes
    ----------
    assigned : pairs of an image and the name of its split, sorted by path; dropped images are among them.
    copies : images left out because an image of another split has the same pixels.
    notes : sentences for the report, the most important first.
    n_duplicates : images beyond the first of each set with the same pixels.
    conflicting : path and label of the images of each set that has several labels.
    prescribed : names of the splits that the data prescribes for some image.
    """

    assigned: list[tuple[UsableImage, str]] = field(default_factory=list)
    copies: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_duplicates: int = 0
    conflicting: list[list[list[str]]] = field(default_factory=list)
    prescribed: list[str] = field(default_factory=list)


def assign_images(usable: list[UsableImage], classes: list[str], data: DataParams, seed: int) -> SplitAssignment:
    """Leave out copies of images in later splits, and assign the other images to splits.

    Parameters
    ----------
    usable : N images, sorted by path, with those that corrections drop.
    classes : class names, sorted.
    seed : of the splits, unless ``data.split_seed`` is set.

    Raises
    ------
    UdcError
        A group is in several splits of the user, a split is missing, or a split lacks a class.
    """
    result = SplitAssignment()
    _report_duplicates([image for image in usable if not image.is_dropped], result)
    usable = _without_copies(usable, data, result)
    usable, components = _units(usable, data, result)
    groups = [image.record.group for image in usable]
    fixed = [image.record.split for image in usable]
    result.prescribed = [name for name in SPLITS if name in fixed]
    number = {name: k for k, name in enumerate(classes)}
    labels = np.array([number[image.source_label] for image in usable], dtype=np.intp)
    if missing := missing_splits(fixed, data.splits):
        _check_carving(missing, fixed, data)
        fixed = without_train(fixed)
        result.notes.append(f"the data has no split {' and '.join(missing)}: carved from train, by data.splits")
    splits = assign_splits(labels, components, fixed, data.splits, seed if data.split_seed is None else data.split_seed)
    labels = np.array([-1 if image.is_dropped else number[image.record.label] for image in usable], dtype=np.intp)
    _check_classes_in_splits(labels, splits, classes, groups, data)
    result.assigned = [(image, SPLITS[k]) for image, k in zip(usable, splits, strict=True)]
    return result


def _without_copies(usable: list[UsableImage], data: DataParams, result: SplitAssignment) -> list[UsableImage]:
    """The images that remain of copies across the splits that the data prescribes; reports the others."""
    across = copies_across_splits([image.checked.sha256 for image in usable], [image.record.split for image in usable],
                                  [image.is_dropped for image in usable])  # fmt: skip
    n_copies = len(across.split_of_original)
    parts = ", ".join(f"{name} {count:,}" for name, count in across.counts().items())
    pixels = f"the pixels of images in a later split ({parts})"
    if data.copies == "keep":
        result.notes += [f"{n_copies:,} image(s) have {pixels} and remain, so the result looks better "
                         "than it is"] if n_copies else []  # fmt: skip
        return usable
    result.copies = [LeftOut(usable[i].record.path, across.reason(i)) for i in across.split_of_original]
    result.notes += [f"{n_copies:,} image(s) are left out, because they have {pixels}"] if n_copies else []
    return [image for i, image in enumerate(usable) if i not in across.original]


def _units(
    usable: list[UsableImage], data: DataParams, result: SplitAssignment
) -> tuple[list[UsableImage], NDArray[np.intp]]:
    """The images that remain, and the unit of each, which no split divides: groups and copies, connected by chains.

    An image without a split may be in a group of one split and have the pixels of an image in another one. It would
    make both splits one unit, so it is left out and reported.

    Raises
    ------
    UdcError
        A group is in several splits of the user.
    """
    groups, digests = [image.record.group for image in usable], [image.checked.sha256 for image in usable]
    fixed = [image.record.split for image in usable]
    _check_groups_have_one_split(groups, fixed)
    is_kept = data.copies == "keep"
    # Copies that remain in different splits of the user are not connected; other copies stay together.
    keys = [f"{digest} {split or ''}" for digest, split in zip(digests, fixed, strict=True)] if is_kept else digests
    components = connected_components(len(usable), [groups, keys])
    linked = np.flatnonzero(of_several_splits(components, fixed))
    if not linked.size:
        return usable, components
    with_groups = with_splits_of_groups(groups, fixed)
    across = copies_across_groups([digests[i] for i in linked], [fixed[i] for i in linked],
                                  [with_groups[i] for i in linked],
                                  [usable[i].is_dropped for i in linked])  # fmt: skip
    n_copies = len(across.split_of_original)
    about = "image(s) without a split have the pixels of images in another split than their group"
    if is_kept:
        for i in linked:
            keys[i] = f"{digests[i]} {with_groups[i] or ''}"
        result.notes += [f"{n_copies:,} {about} and remain, so the result looks better than it is"] if n_copies else []
        return usable, connected_components(len(usable), [groups, keys])
    left_out = {int(linked[k]) for k in across.original}
    result.copies += [LeftOut(usable[linked[k]].record.path, across.reason(k)) for k in across.split_of_original]
    result.notes += [f"{n_copies:,} {about} and are left out"] if n_copies else []
    remaining = [i for i in range(len(usable)) if i not in left_out]
    return [usable[i] for i in remaining], connected_components(
        len(remaining), [[groups[i] for i in remaining], [digests[i] for i in remaining]]
    )


def _check_carving(missing: list[str], fixed: list[str | None], data: DataParams) -> None:
    if "train" in missing:
        raise UdcError(f"the data prescribes the splits {join_for_message(sorted({str(name) for name in fixed}))}, "
                       "but no train split")  # fmt: skip
    if not data.carve:
        raise UdcError(f"the data has no split {' and '.join(missing)}; add it, set its share in data.splits to 0 "
                       "(calibration only), or set data.carve: true to take it from train")  # fmt: skip


def _report_duplicates(usable: list[UsableImage], result: SplitAssignment) -> None:
    """Count images with the same pixels, and warn about those with different labels."""
    sets = [[usable[i].record for i in indices] for indices in duplicate_sets([u.checked.sha256 for u in usable])]
    result.n_duplicates = sum(len(records) - 1 for records in sets)
    conflicting = [records for records in sets if len({record.label for record in records}) > 1]
    result.conflicting = [[[record.path, record.label] for record in records] for records in conflicting]
    if sets:
        logger.warning("%d image(s) have the pixels of another one; no copy is in another split than its original",
                       result.n_duplicates)  # fmt: skip
    if conflicting:
        lines = [" = ".join(f"{r.path} ({r.label})" for r in records) for records in conflicting]
        logger.warning("identical images with different labels:\n  %s", join_for_message(lines, "\n  "))
        result.notes.append(f"{len(conflicting):,} set(s) of identical images have different labels "
                            "(conflicting_labels in data/prepared/dataset.json)")  # fmt: skip


def _check_groups_have_one_split(groups: list[str | None], fixed: list[str | None]) -> None:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, fixed, strict=True):
        if group is not None and split is not None:
            splits_of[group].add(split)
    divided = sorted(f"{group} ({', '.join(sorted(names))})" for group, names in splits_of.items() if len(names) > 1)
    if divided:
        raise UdcError(f"the data puts {len(divided)} group(s) into several splits: {join_for_message(divided)}; give "
                       "each group one split, or change data.group")  # fmt: skip


def _check_classes_in_splits(
    labels: np.ndarray[Any, Any],
    splits: np.ndarray[Any, Any],
    classes: list[str],
    groups: list[str | None],
    data: DataParams,
) -> None:
    """Raise an error unless every class occurs in every split: otherwise it cannot be trained or evaluated."""
    used_splits = [k for k, name in enumerate(SPLITS) if getattr(data.splits, name) > 0 or (splits == k).any()]
    problems = []
    for index, name in enumerate(classes):
        in_class = labels == index
        missing = [SPLITS[k] for k in used_splits if not (in_class & (splits == k)).any()]
        if missing:
            class_groups = {groups[i] for i in np.flatnonzero(in_class)} - {None}
            in_groups = f" in {len(class_groups)} group(s)" if class_groups else ""
            problems.append(f"{name}: {in_class.sum()} image(s){in_groups}, none for {', '.join(missing)}")
    if problems:
        raise UdcError(
            f"too few images for {len(used_splits)} splits (each needs an image, or group, of every class):\n  "
            + join_for_message(problems, "\n  ")
            + "\nAdd images, remove the class, or change data.splits."
        )
