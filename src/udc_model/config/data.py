"""Section ``data``: which images there are, and how they are checked, resized and split."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from udc_model.config.section import ClassName, Section, Share


class SplitShares(Section):
    """Share of the images, or of their groups, in each split; the shares add up to 1."""

    train: Annotated[float, Field(gt=0, lt=1)] = Field(0.6, description="Share of the images that train the model.")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="Share that chooses the epoch.")
    calibration: Share = Field(0.1, description="Share that fits the calibration and the recall floor.")
    test: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="Share that only stage evaluate uses.")

    @model_validator(mode="after")
    def _adds_up(self) -> SplitShares:
        total = self.train + self.validation + self.calibration + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares add up to {total:g}; they must add up to 1")
        return self


class CsvFile(Section):
    """A CSV file of the ``csv`` source."""

    file: str = Field(description="Path inside data.path.")
    split: Literal["train", "validation", "calibration", "test"] | None = Field(
        None, description="Split of the rows that name none."
    )


class IntensityRange(Section):
    """Which values of images deeper than 8 bits become black and white: bits, percentiles, or values."""

    bits: Annotated[int, Field(ge=8, le=16)] | None = Field(None, description="White is 2 ** bits - 1, black is 0.")
    low: Annotated[float, Field(ge=0, lt=100)] | None = Field(
        None, description="Percentile of all pixels of the deep images that becomes black."
    )
    high: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Percentile of all pixels of the deep images that becomes white."
    )
    min: float | None = Field(None, description="Value that becomes black.")
    max: float | None = Field(None, description="Value that becomes white.")

    @model_validator(mode="after")
    def _one_kind(self) -> IntensityRange:
        names = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if names not in ({"bits"}, {"low", "high"}, {"min", "max"}):
            raise ValueError("must be {bits: 12}, {low: 0.5, high: 99.5} (percentiles) or {min: 0, max: 4095} (values)")
        for low, high in ((self.low, self.high), (self.min, self.max)):
            if low is not None and high is not None and low >= high:
                raise ValueError(f"{low:g} must be less than {high:g}")
        return self


class DataParams(Section):
    """Where the images are, and how they are checked, resized and split."""

    source: Literal["auto", "digits", "folder", "csv"] = Field(
        "digits",
        description="Source of the images: auto recognises class folders, split folders, tables and archives; folder "
        "and csv (tables) prescribe one; digits are those of scikit-learn.",
    )
    path: str = Field("data/raw", description="Folder or archive of the images and their tables.")
    csv_files: list[str | CsvFile] = Field(
        ["labels.csv"],
        min_length=1,
        description="Tables of source csv (CSV, TSV, Parquet, JSON lines, COCO, Excel) with columns of images and "
        "classes, optionally split and group. An entry may be {file: test.csv, split: test}.",
    )
    path_column: str | None = Field(
        None, description="Column of a table that contains the image; null finds it by its name."
    )
    path_pattern: Annotated[str, Field(pattern=r"\{\}")] | None = Field(
        None, description="Path of an image, with {} for the cell of the table, as 'images/{}.jpg'."
    )
    label_column: str | None = Field(
        None,
        description="Column of a table that contains the class; null finds it by its name, or one column of 0 and 1 "
        "for each class.",
    )
    encoding: str | None = Field(
        None, description="Encoding of text tables, as latin-1; null takes that of the byte order mark, or UTF-8."
    )
    classes: list[ClassName] | None = Field(
        None,
        min_length=2,
        description="Class names that are allowed; null allows those found (tables: in the first table).",
    )
    merge_labels: dict[ClassName, ClassName] | None = Field(
        None, description="Class of labels that are written otherwise, as {Ant: ant, '1.0': '1'}."
    )
    group: str | None = Field(
        None,
        description="Images of one group stay in one split: a column of the CSV, or a pattern on the file name whose "
        "first (…) is the group, as '^(.+)_[^_]*$'.",
    )
    subgroups: list[str] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="What to report cost, recall and calibration by: columns of the table, or patterns on the path "
        "with a name, as ['site', '(?P<camera>cam[0-9]+)_'].",
    )
    image_size: Annotated[int, Field(ge=8, le=2048)] = Field(
        32, description="Side of the model's input in pixels; images are stored at this size."
    )
    resize: Literal["crop", "squash"] = Field(
        "crop",
        description="crop scales the short side to image_size / crop_pct and crops the centre (from 384 px on the "
        "whole image is squashed); squash scales both sides.",
    )
    crop_pct: Annotated[float, Field(gt=0.1, le=1)] = Field(
        1.0, description="Share of the scaled image's side that the centre crop keeps."
    )
    resample: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bicubic", description="Interpolation for resizing images."
    )
    packed: Literal["auto", "raw", "shards"] = Field(
        "auto",
        description="Form of the prepared images: raw is one array of pixels per split; shards are tar files of "
        "images encoded without loss, of the same pixels; auto takes shards if the pixels have more than 32 GiB.",
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error",
        description="error lists every unusable image and stops; skip leaves them out and lists them in "
        "data/prepared/left_out.csv.",
    )
    max_pixels: Annotated[int, Field(gt=0, le=10**10)] = Field(
        100_000_000, description="Largest number of pixels of an image; larger ones are refused before decoding."
    )
    frames: Literal["error", "first", "each"] = Field(
        "error",
        description="Files with several frames or pages (GIF, TIFF, DICOM, …): error refuses them, first uses the "
        "first frame, each makes every frame an image and keeps those of a file in one split.",
    )
    intensity: Literal["auto"] | IntensityRange = Field(
        "auto",
        description="Values that become black and white in images deeper than 8 bits: auto takes 8, 10, 12, 14 or 16 "
        "bits by the largest value of them all; or {bits: 12}, {low: 0.5, high: 99.5} (percentiles), "
        "{min: -1000, max: 400} (values, as in float images).",
    )
    splits: SplitShares = Field(SplitShares(), description="Share of the images in each split.")
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="Seed of the splits; null takes seed."
    )
    carve: bool = Field(
        True,
        description="If all images have a split and a split has none, it is taken from train, by the shares; "
        "false raises an error.",
    )
    copies: Literal["leave_out", "keep"] = Field(
        "leave_out",
        description="Training images with the pixels of an image in a later split that the data prescribes: "
        "left out, or kept, which makes the result look better than it is.",
    )
    near_duplicates: Literal["report", "group", "drop"] = Field(
        "report",
        description="Images that show the same in another size, compression, crop, brightness or orientation: report "
        "counts and shows them, group makes those that belong together one group, drop keeps one of them.",
    )

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"class names must be distinct, got {names}")
        return names
