"""Stage ``prepare``: checks the raw images, assigns splits and writes packed arrays."""

from __future__ import annotations

import csv
import logging
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udc_model.config import SPLITS, DataParams, Params, load_params
from udc_model.data.audit import Checked, check_images, raise_for_rejections
from udc_model.data.packed import write_packed
from udc_model.data.source_record import read_source_record
from udc_model.data.sources import ImageRecord, ImageSource, Rejection, join_for_message, open_source
from udc_model.data.splits import assign_splits, connected_components
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.checks import check_classes
from udc_model.errors import UdcError
from udc_model.files import Workspace, atomic_folder, exit_status

logger = logging.getLogger("udc_model.stages.prepare")  # __name__ is __main__ when DVC runs the stage


def prepare(params: Params, workspace: Workspace) -> dict[str, Any]:
    """Check, split and pack the images into ``workspace.prepared``.

    Returns
    -------
    The contents of ``dataset.json``.

    Raises
    ------
    UdcError
        The source or an image is invalid, a parameter contradicts the classes, or a class has too few images.
    """
    data = params.data
    with atomic_folder(workspace.prepared) as folder:
        source = open_source(data)
        fetched = read_source_record(Path(data.path)) if data.source != "digits" else None
        if source.ignored:
            logger.warning("ignored %d file(s) without the suffix of an image: %s",
                           len(source.ignored), join_for_message(source.ignored[:10]))  # fmt: skip
        check_classes(params, source.classes)
        preprocessing = Preprocessing(data.image_size, data.resize, data.crop_pct, data.resample)
        scratch = folder / "scratch"
        outcomes = check_images(source, preprocessing, data.max_pixels, scratch)
        usable = _usable(source, outcomes)
        rejected = sorted(source.rejected + [o for o in outcomes if isinstance(o, Rejection)], key=lambda r: r.path)
        raise_for_rejections(rejected, data.on_bad_image, len(usable) + len(rejected))
        splits, duplicates = _split(usable, source.classes, data, params.seed)
        _write_rejected(folder / "rejected.csv", rejected)
        info = write_packed(
            folder,
            scratch,
            [{**image.manifest_row(), "split": SPLITS[k]} for image, k in zip(usable, splits, strict=True)],
            preprocessing,
            {
                "source": data.source,
                "classes": source.classes,
                "rejected": len(rejected),
                "ignored": source.ignored,
                **({"fetched": fetched} if fetched else {}),
                **duplicates,
            },
        )
        scratch.unlink()
    _log_summary(info)
    return info


@dataclass(frozen=True)
class _UsableImage:
    record: ImageRecord
    checked: Checked
    scratch_row: int

    def manifest_row(self) -> dict[str, Any]:
        return {
            "path": self.record.path,
            "label": self.record.label,
            "group": self.record.group or "",
            "width": self.checked.width,
            "height": self.checked.height,
            "sha256": self.checked.sha256,
            "scratch_row": self.scratch_row,
        }


def _usable(source: ImageSource, outcomes: list[Checked | Rejection]) -> list[_UsableImage]:
    pairs = enumerate(zip(source.records, outcomes, strict=True))
    return [_UsableImage(record, outcome, i) for i, (record, outcome) in pairs if isinstance(outcome, Checked)]


def _split(
    usable: list[_UsableImage], classes: list[str], data: DataParams, seed: int
) -> tuple[list[int], dict[str, Any]]:
    """Return the split index of each image, and the entries of ``dataset.json`` about duplicates."""
    groups = [image.record.group for image in usable]
    hashes = [image.checked.sha256 for image in usable]
    fixed = [image.record.split for image in usable]
    _check_groups_have_one_split(groups, fixed)
    components = connected_components(len(usable), [groups, hashes])
    labels = np.array([classes.index(image.record.label) for image in usable], dtype=np.intp)
    splits = assign_splits(labels, components, fixed, data.splits, seed)
    _check_classes_in_splits(labels, splits, classes, groups, data)
    moved = sum(name is not None and SPLITS[k] != name for name, k in zip(fixed, splits, strict=True))
    return [int(k) for k in splits], _duplicates(usable, moved)


def _check_groups_have_one_split(groups: list[str | None], fixed: list[str | None]) -> None:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, fixed, strict=True):
        if group is not None and split is not None:
            splits_of[group].add(split)
    divided = sorted(f"{group} ({', '.join(sorted(names))})" for group, names in splits_of.items() if len(names) > 1)
    if divided:
        raise UdcError(f"the column split assigns {len(divided)} group(s) to more than one split: "
                       f"{join_for_message(divided)}")  # fmt: skip


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


def _duplicates(usable: list[_UsableImage], moved: int) -> dict[str, Any]:
    by_pixels: dict[str, list[ImageRecord]] = defaultdict(list)
    for image in usable:
        by_pixels[image.checked.sha256].append(image.record)
    sets = [records for records in by_pixels.values() if len(records) > 1]
    conflicting = [records for records in sets if len({record.label for record in records}) > 1]
    if sets:
        logger.warning("%d image(s) are exact copies of others; copies are assigned to one split (%d moved)",
                       sum(len(records) - 1 for records in sets), moved)  # fmt: skip
    if conflicting:
        lines = [" = ".join(f"{r.path} ({r.label})" for r in records) for records in conflicting]
        logger.warning("identical images with different labels:\n  %s", join_for_message(lines, "\n  "))
    return {
        "duplicates": {"copies": sum(len(records) - 1 for records in sets), "moved": moved},
        "conflicting_labels": [[[record.path, record.label] for record in records] for records in conflicting],
    }


def _write_rejected(path: Path, rejected: list[Rejection]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows([item.path, item.reason] for item in rejected)


def _log_summary(info: dict[str, Any]) -> None:
    sizes = ", ".join(f"{name} {sum(info['counts'][name].values()):,}" for name in SPLITS)
    logger.info("prepared %s images of %d classes: %s%s", f"{info['images']:,}", len(info["classes"]), sizes,
                f"; {info['rejected']} rejected" if info["rejected"] else "")  # fmt: skip


def main() -> None:
    """Run the stage with the parameters and files of the current folder."""
    prepare(load_params(), Workspace())


if __name__ == "__main__":
    sys.exit(exit_status(main))
