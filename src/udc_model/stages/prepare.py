"""Stage ``prepare``: checks the raw images, assigns splits and writes packed arrays."""

from __future__ import annotations

import csv
import logging
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from udc_model.config import SPLITS, DataParams, Params, load_params
from udc_model.config.limits import check_timm_channels
from udc_model.data.applied_corrections import check_corrections, correct, write_applied
from udc_model.data.assignment import assign_images
from udc_model.data.audit import Audit, check_images, raise_for_rejections
from udc_model.data.corrections import Correction, read_corrections
from udc_model.data.packed import write_packed
from udc_model.data.preflight import SHARE_OF_PIXELS, check_space, estimate, packed_form
from udc_model.data.quality.data_report import DATA_REPORT, write_data_report
from udc_model.data.quality.examination import Examination
from udc_model.data.quality.units import apply_near_duplicates, near_duplicates_notes, near_duplicates_record
from udc_model.data.scratch import PixelScratch, Scratch
from udc_model.data.shards.writing import ShardScratch
from udc_model.data.source_record import read_source_record
from udc_model.data.sources import (
    ImageSource,
    LeftOut,
    Rejection,
    count_by_reason,
    describe_source,
    open_source,
    printable,
)
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.decisions.checks import check_classes
from udc_model.files import Workspace, atomic_folder, only_writer
from udc_model.installed import check_pin
from udc_model.program import exit_status

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
    check_timm_channels(params.model)
    with only_writer(workspace), atomic_folder(workspace.prepared) as folder:
        unpacked = folder / "unpacked"
        corrections = read_corrections(workspace.corrections)
        source = open_source(data, unpacked)
        if source.pixels is None:
            for line in describe_source(source):
                logger.info("%s", line)
        check_classes(params, source.classes)
        check_corrections(corrections, source, workspace.corrections)
        decoding = Decoding(params.model.architecture.num_channels, data.frames, max_pixels=data.max_pixels)
        preprocessing = Preprocessing(data.image_size, data.resize, data.crop_pct, data.resample, decoding=decoding)
        form = packed_form(data.packed, len(source.records), preprocessing)
        scratch = _scratch(form, folder, workspace, preprocessing, data)
        disk_bytes = check_space(folder, len(source.records), preprocessing, SHARE_OF_PIXELS[form])
        if forecast := estimate(source, preprocessing, disk_bytes):
            logger.info("%s", forecast)
        audit = check_images(source, preprocessing, data, scratch)
        info = _write_prepared(folder, params, source, audit, scratch, corrections, workspace.corrections)
        scratch.remove()
        shutil.rmtree(unpacked, ignore_errors=True)
    _log_summary(info)
    return info


def _scratch(form: str, folder: Path, workspace: Workspace, preprocessing: Preprocessing, data: DataParams) -> Scratch:
    """Where the prepared images are until their splits are known."""
    interim = workspace.root / ".udc" / "prepare"
    if form == "raw":
        shutil.rmtree(interim, ignore_errors=True)  # of earlier shards
        return PixelScratch(folder / "scratch")
    return ShardScratch(interim, preprocessing, {"intensity": data.model_dump()["intensity"]})


def _write_prepared(
    folder: Path,
    params: Params,
    source: ImageSource,
    audit: Audit,
    scratch: Scratch,
    corrections: list[Correction],
    path: Path,
) -> dict[str, Any]:
    """Correct, review and divide the images that were checked, and write everything; returns ``dataset.json``.

    Parameters
    ----------
    path : of the file with the corrections, for messages.
    """
    data = params.data
    fetched = read_source_record(Path(data.path)) if source.pixels is None else None
    examined = Examination.of(audit)
    unusable = [outcome for outcome in audit.outcomes if isinstance(outcome, Rejection)]
    unusable = sorted(source.rejected + unusable, key=lambda rejection: rejection.path)
    corrected = correct(examined.usable, unusable, corrections, path)
    rejected = corrected.rejected
    raise_for_rejections(rejected, data.on_bad_image, len(examined.usable) + len(rejected))
    units = apply_near_duplicates(corrected.images, examined.near, data.near_duplicates)
    split = assign_images(units.usable, source.classes, data, params.seed)
    left_out = source.left_out + split.copies + units.dropped + corrected.left_out
    _write_left_out(folder / "left_out.csv", [*left_out, *rejected])
    split_of_path = {image.record.path: name for image, name in split.assigned}
    examined = examined.corrected(corrected.images)
    splits = [split_of_path.get(image.record.path, "") for image in examined.usable]
    clusters = near_duplicates_record(examined.usable, examined.near, splits)
    found = examined.review(splits, data)
    write_data_report(folder / DATA_REPORT, examined.report(
        source, audit, scratch, found, splits, rejected, left_out, Path(data.path).name))  # fmt: skip
    info = write_packed(
        folder,
        scratch,
        [{**image.manifest_row(), "split": name} for image, name in split.assigned if not image.is_dropped],
        audit.preprocessing,
        {
            "source": data.source,
            "layout": source.layout,
            "classes": source.classes,
            "rejected": len(rejected),
            "left_out": count_by_reason(left_out),
            **({"fetched": fetched} if fetched else {}),
            **({"prescribed_splits": split.prescribed} if split.prescribed else {}),
            "notes": near_duplicates_notes(clusters, data.near_duplicates, len(units.dropped), splits.count("test"))
            + split.notes + corrected.notes() + found.notes() + source.notes,
            **({"corrections": corrected.counts()} if corrected.counts() else {}),
            "duplicates": {"copies": split.n_duplicates, "left_out": len(split.copies)},
            "conflicting_labels": split.conflicting,
            "near_duplicates": clusters,
            "shortcuts": [asdict(shortcut) for shortcut in found.shortcuts],
            **({"group_proposal": found.proposal.pattern} if found.proposal else {}),
        },
        source.divisions,
    )  # fmt: skip
    write_applied(folder, corrected, split_of_path)
    return info


def _write_left_out(path: Path, items: list[LeftOut | Rejection]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows(sorted((printable(item.path), item.reason) for item in items))


def _log_summary(info: dict[str, Any]) -> None:
    sizes = ", ".join(f"{name} {sum(info['counts'][name].values()):,}" for name in SPLITS)
    counts = {"rejected": info["rejected"], "left out as copies": info["duplicates"]["left_out"]}
    more = "".join(f"; {count:,} {what}" for what, count in counts.items() if count)
    logger.info("prepared %s images of %d classes: %s%s", f"{info['images']:,}", len(info["classes"]), sizes, more)
    for note in info["notes"]:
        logger.info("%s", note)


def main() -> None:
    """Run the stage with the parameters and files of the current folder."""
    check_pin()
    prepare(load_params(), Workspace())


if __name__ == "__main__":
    sys.exit(exit_status(main))
