"""What ``training/record.json`` may contain, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from udc_model.checksums import Sha256
from udc_model.config.model import ModelType
from udc_model.config.train import MAX_MEMBERS
from udc_model.files import Workspace, parse_json, read_bytes, remove_oldest, write_atomically
from udc_model.records import Record, validated

TRAINING_RECORD = "record.json"
_SECONDS, _NUM_SECONDS = Path(".udc") / "seconds", 10_000
ADVICE = "run `dvc repro` first, or restore the folder with `dvc checkout training`"
_MAX_BYTES = 16 * 2**20  # with a parameter for each of 10,000 classes

_Epoch = Annotated[int, Field(ge=1, lt=2**31)]


class _DataSection(Record):
    source: str
    path: str
    image_size: Annotated[int, Field(ge=1)]


class _ModelSection(Record):
    model_type: ModelType
    preset: str | None = None
    weights: str | None = None
    resnet: dict[str, Any] | None = None
    convnext: dict[str, Any] | None = None
    timm: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_architecture(self) -> _ModelSection:
        if getattr(self, self.model_type) is None:
            raise ValueError(f"{self.model_type}: is missing")
        return self


class _LossSection(Record):
    name: str


class _TrainSection(Record):
    optimizer: str
    learning_rate: float | None
    monitor: str


class _ParamsRecord(Record):
    """The parameters that reports name; all are recorded."""

    seed: int
    data: _DataSection
    model: _ModelSection
    loss: _LossSection
    train: _TrainSection


class _DataSet(Record):
    name: str
    digest: Sha256
    source: dict[str, str | None]


class _FinalMetrics(Record):
    best_epoch: _Epoch
    epochs: _Epoch
    __pydantic_extra__: dict[str, float | None]

    model_config = Record.model_config | {"extra": "allow"}


class _Member(Record):
    best_epoch: _Epoch
    epochs: _Epoch
    temperature: Annotated[float, Field(gt=0)]


class TrainingRecord(Record):
    """The fields of ``training/record.json``; only ensembles have ``members``, and earlier versions no ``margins``.

    ``learned_prior`` is `TrainingFrequencies.learned`, if it is not None.
    """

    params: _ParamsRecord
    data: _DataSet
    hardware: dict[str, str]
    best_epoch: _Epoch
    margins: Annotated[str, Field(max_length=1000)] | None = None
    learned_prior: list[Annotated[float, Field(gt=0, le=1)]] | None = None
    final_metrics: _FinalMetrics
    members: list[_Member] = Field([], min_length=2, max_length=MAX_MEMBERS)


def read_training_record(workspace: Workspace) -> dict[str, Any]:
    """The contents of ``training/record.json``.

    Raises
    ------
    UdcError
        The file is missing or damaged, or a value is not allowed.
    """
    path: Path = workspace.training / TRAINING_RECORD
    values = parse_json(read_bytes(path, ADVICE, _MAX_BYTES), str(path), ADVICE)
    validated(values, TrainingRecord, str(path), ADVICE)
    return values


def write_seconds(root: Path, model_sha256: str, seconds: float) -> None:
    """Store how long the epochs of a model's training run took.

    In the folder of the clone, not in ``training/``: outputs of equal training runs are equal files.
    """
    write_atomically(root / _SECONDS / model_sha256, f"{seconds!r}\n")
    remove_oldest(root / _SECONDS, "*", _NUM_SECONDS)


def read_seconds(root: Path, model_sha256: str | None) -> float | None:
    """How long the epochs of a model's training run took; None if it was trained in another clone."""
    path = root / _SECONDS / str(model_sha256)
    return float(path.read_text(encoding="utf-8")) if path.is_file() else None
