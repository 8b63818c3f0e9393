"""What ``policy.json`` may contain, typed and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from udc_model.config import MOST_ACTIONS
from udc_model.decisions.actions import REFER, unusable_name
from udc_model.decisions.familiarity import MOST_DISTANCES
from udc_model.records import Record

_MAX_CLASSES = 2**16
LARGEST_STORED_COST = 1e15  # of a surcharge, which is larger than the costs of the matrix
_MAX_FEATURES, _MAX_NETWORKS = 2**15, 1024

_Name = Annotated[str, Field(max_length=10_000)]
_Cost = Annotated[float, Field(ge=-LARGEST_STORED_COST, le=LARGEST_STORED_COST)]
_Number = Annotated[float, Field(ge=-1e12, le=1e12)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]


class _None(Record):
    """Parameters of ``none``."""


class _TemperatureRecord(Record):
    temperature: _Temperature


class _Vector(Record):
    weight: list[_Number]
    bias: list[_Number]


class _Dirichlet(Record):
    weight: list[list[_Number]]
    bias: list[_Number]


class _Isotonic(Record):
    x: list[Annotated[list[_Number], Field(min_length=1)]]
    y: list[Annotated[list[_Number], Field(min_length=1)]]


PARAMETERS: dict[str, type[Record]] = {
    "none": _None,
    "temperature": _TemperatureRecord,
    "vector": _Vector,
    "dirichlet": _Dirichlet,
    "isotonic": _Isotonic,
}


class _CalibrationRecord(Record):
    method: Literal["none", "temperature", "vector", "dirichlet", "isotonic"] = "none"
    parameters: dict[str, Any] = Field(default_factory=dict)


class RecallFloorRecord(Record):
    """The fitted recall floor."""

    name: _Name | Annotated[list[_Name], Field(min_length=1, max_length=_MAX_CLASSES)] = Field(alias="class")
    floor: _Share
    confidence: _Share
    surcharge: _Cost

    @property
    def classes(self) -> list[str]:
        """The classes."""
        return [self.name] if isinstance(self.name, str) else self.name


class CostCeilingRecord(Record):
    """The fitted ceiling of the mean cost."""

    ceiling: _Cost
    confidence: _Share
    threshold: _Cost


class FamiliarityRecord(Record):
    """The fields of `Familiarity`."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    features: Annotated[int, Field(ge=1, le=_MAX_FEATURES)]
    networks: Annotated[int, Field(ge=1, le=_MAX_NETWORKS)]
    distances: Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=MOST_DISTANCES)]
    unfamiliar: Literal["warn", "refer"] = "warn"
    level: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _is_ascending(self) -> FamiliarityRecord:
        if any(b < a for a, b in pairwise(self.distances)):
            raise ValueError("distances: must be in ascending order")
        return self


class PolicyRecord(Record):
    """The fields of `Policy`."""

    classes: Annotated[list[_Name], Field(min_length=1, max_length=_MAX_CLASSES)]
    class_costs: list[list[_Cost]]
    decision: Literal["min_expected_cost", "argmax", "recall_floor", "cost_ceiling"] = "min_expected_cost"
    calibration: _CalibrationRecord
    refer: _Cost | None = None
    training_prior: list[_Share] | None = None
    deployment_prior: list[_Share] | None = None
    learned_prior: list[Annotated[float, Field(gt=0, le=1)]] | None = None
    recall_floor: RecallFloorRecord | Annotated[list[RecallFloorRecord], Field(min_length=1)] | None = None
    flip_averaging: bool = False
    cost_ceiling: CostCeilingRecord | None = None
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    actions: dict[_Name, list[_Cost]] = Field(default_factory=dict)
    precision: Literal["fp32", "fp32_fused", "bf16"] = "fp32"
    familiarity: FamiliarityRecord | None = None

    @model_validator(mode="after")
    def _fits_the_classes(self) -> PolicyRecord:
        k = len(self.classes)
        if len(set(self.classes)) != k:
            raise ValueError("classes: must be distinct")
        _check_lengths("class_costs", self.class_costs, k)
        for row in self.class_costs:
            _check_lengths("class_costs", row, k)
        for name in ("training_prior", "deployment_prior", "learned_prior"):
            _check_lengths(name, getattr(self, name), k)
            if getattr(self, name) is not None and not sum(getattr(self, name)) > 0:
                raise ValueError(f"{name}: must have a share above 0")
        if self.learned_prior is not None and not all(self.training_prior or [0.0]):
            raise ValueError("training_prior: must be above 0 for each class if learned_prior is set")
        floors = self.recall_floor if isinstance(self.recall_floor, list) else [self.recall_floor]
        for name in (name for floor in floors if floor is not None for name in floor.classes):
            if name not in self.classes:
                raise ValueError(f"recall_floor.class: {name[:80]!r} is none of the classes")
        for guarantee in ("recall_floor", "cost_ceiling"):
            if (self.decision == guarantee) != (getattr(self, guarantee) is not None):
                raise ValueError(f"{guarantee}: is set exactly if decision is {guarantee}")
        if self.cost_ceiling is not None and self.refer is None:
            raise ValueError("refer: must be a number if decision is cost_ceiling")
        self._check_actions(k)
        self._check_unfamiliar()
        return self

    def _check_actions(self, k: int) -> None:
        if len(self.actions) > MOST_ACTIONS:
            raise ValueError(f"actions: has {len(self.actions)} actions; at most {MOST_ACTIONS} are possible")
        taken = {*self.classes, *([] if self.refer is None else [REFER])}
        for name, costs in self.actions.items():
            if reason := "is the name of another decision" if name in taken else unusable_name(name):
                raise ValueError(f"actions: the name {name[:80]!r} {reason}")
            _check_lengths(f"actions.{name[:80]}", costs, k)

    def _check_unfamiliar(self) -> None:
        if self.familiarity is None or self.familiarity.unfamiliar == "warn":
            return
        if self.refer is None or self.decision in ("recall_floor", "cost_ceiling"):
            raise ValueError("familiarity.unfamiliar: must be warn if refer is null or the decision has a guarantee")


def check_parameters(parameters: Any, k: int) -> None:
    """Check the sizes of a calibration's parameters for k classes; `ValueError` names the one that does not fit."""
    for name in ("weight", "bias", "x", "y"):
        _check_lengths(name, getattr(parameters, name, None), k)
    for row in getattr(parameters, "weight", []):
        if isinstance(row, list):
            _check_lengths("weight", row, k)
    for x, y in zip(getattr(parameters, "x", []), getattr(parameters, "y", []), strict=True):
        if len(x) != len(y) or any(b < a for a, b in pairwise(x)) or min(y) <= 0:
            raise ValueError("x, y: must be as many increasing values as values above 0, for each class")


def _check_lengths(name: str, values: Sequence[Any] | None, k: int) -> None:
    if values is not None and len(values) != k:
        raise ValueError(f"{name}: has {len(values)} values for {k} classes")
