"""What ``preprocessor_config.json`` and ``dataset.json`` may contain about preprocessing, typed and bounded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from udc_model.records import Record

MAX_PIXELS = 10**10  # of an image, whatever a file says
_MAX_SIDE = 2048  # pixels of the model's input, as data.image_size
_MAX_VALUE = 1e12  # of a pixel of a deep image

Side = Annotated[int, Field(ge=1, le=_MAX_SIDE)]
CropShare = Annotated[float, Field(ge=0.1, le=1)]
Mean = Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(min_length=1, max_length=3)]
Deviation = Annotated[list[Annotated[float, Field(ge=1e-6, le=10)]], Field(min_length=1, max_length=3)]
_Value = Annotated[float, Field(ge=-_MAX_VALUE, le=_MAX_VALUE)]


class DecodingRecord(Record):
    """The fields of `Decoding`."""

    model_config = ConfigDict(extra="forbid")

    channels: Literal[1, 3] = 3
    frames: Literal["error", "first", "each"] = "error"
    intensity: Annotated[list[_Value], Field(min_length=2, max_length=2)] | None = None
    dicom_windows: bool = True
    max_pixels: Annotated[int, Field(gt=0, le=MAX_PIXELS)] = 100_000_000

    @model_validator(mode="after")
    def _rises(self) -> DecodingRecord:
        if self.intensity is not None and not self.intensity[0] < self.intensity[1]:
            raise ValueError(f"intensity: {self.intensity[0]:g} must be less than {self.intensity[1]:g}")
        return self


class PreprocessingRecord(Record):
    """The fields of `Preprocessing`, as in ``dataset.json``."""

    size: Side
    resize: Literal["crop", "squash"] = "crop"
    crop_pct: CropShare = 1.0
    resample: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: Mean
    std: Deviation
    decoding: DecodingRecord = DecodingRecord()

    @model_validator(mode="after")
    def _has_channels(self) -> PreprocessingRecord:
        _check_channels(self.decoding.channels, mean=self.mean, std=self.std)
        return self


class _Size(Record):
    shortest_edge: Side | None = None
    height: Side | None = None
    width: Side | None = None

    @model_validator(mode="after")
    def _is_square(self) -> _Size:
        if self.shortest_edge is None and (self.height is None or self.height != self.width):
            raise ValueError("must be {shortest_edge: S}, or {height: S, width: S} with two equal numbers")
        return self


class PreprocessorRecord(Record):
    """``preprocessor_config.json`` in the format of transformers; decoding is our own part of it."""

    size: _Size
    crop_pct: CropShare | None = None
    resample: Literal[1, 2, 3]
    image_mean: Mean
    image_std: Deviation
    udc_decoding: DecodingRecord | None = None

    @model_validator(mode="after")
    def _has_channels(self) -> PreprocessorRecord:
        channels = len(self.image_mean) if self.udc_decoding is None else self.udc_decoding.channels
        _check_channels(channels, image_mean=self.image_mean, image_std=self.image_std)
        return self


def _check_channels(channels: int, **values: list[float]) -> None:
    for name, numbers in values.items():
        if len(numbers) != channels or channels not in (1, 3):
            raise ValueError(f"{name}: has {len(numbers)} numbers for {channels} channel(s); 1 or 3 are possible")
