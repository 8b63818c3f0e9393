"""What ``dataset.json`` may contain, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from udc_model.checksums import Sha256, read_checksums
from udc_model.config import SPLITS
from udc_model.data.quality.group_patterns import PATTERNS
from udc_model.data.stored_preprocessing import PreprocessingRecord
from udc_model.files import MAX_JSON, parse_json, read_bytes
from udc_model.records import Record, validated

DATASET = "dataset.json"
ADVICE = "run `dvc repro prepare` first, or restore the folder with `dvc checkout data/prepared`"

_Count = Annotated[int, Field(ge=0, lt=2**53)]


class ShortcutRecord(Record):
    """The fields of a shortcut in ``dataset.json`` that stage evaluate uses."""

    trait: str
    balanced_accuracy: Annotated[float, Field(ge=0, le=1)]


class DatasetRecord(Record):
    """The fields of ``dataset.json`` that other stages use."""

    classes: Annotated[list[str], Field(min_length=1, max_length=2**16)]
    digest: Sha256
    images: _Count
    counts: dict[str, dict[str, _Count]]
    preprocessing: PreprocessingRecord
    left_out: dict[str, _Count] = Field(default_factory=dict)
    rejected: _Count = 0
    notes: list[str] = Field(default_factory=list)
    corrections: dict[str, _Count] = Field(default_factory=dict)
    fetched: dict[str, Any] = Field(default_factory=dict)
    packed: Literal["raw", "shards"] = "raw"
    decoders: Annotated[dict[str, str], Field(max_length=20)] = Field(default_factory=dict)
    prescribed_splits: list[str] = Field(default_factory=list)
    shortcuts: list[ShortcutRecord] = Field(default_factory=list)
    group_proposal: str | None = None

    @field_validator("group_proposal")
    @classmethod
    def _is_known(cls, pattern: str | None) -> str | None:
        if pattern is not None and pattern not in PATTERNS:  # another regular expression may not end in any time
            raise ValueError("is no pattern that stage prepare proposes")
        return pattern

    @model_validator(mode="after")
    def _counts_all(self) -> DatasetRecord:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: must be distinct")
        for split in SPLITS:
            if set(self.counts.get(split, {})) != set(self.classes):
                raise ValueError(f"counts.{split}: must have a number for each class")
        return self


def read_dataset(folder: Path) -> dict[str, Any]:
    """The contents of ``dataset.json`` in a prepared folder.

    Raises
    ------
    UdcError
        The file is missing or damaged, or a value is not allowed.
    """
    path = folder / DATASET
    contents = read_bytes(path, ADVICE, MAX_JSON)
    read_checksums(folder, ADVICE).check(path, contents, ADVICE)
    values = parse_json(contents, str(path), ADVICE)
    validated(values, DatasetRecord, str(path), ADVICE)
    return values
