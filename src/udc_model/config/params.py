"""All sections of ``params.yaml`` together, the rules between them, and the names of their parameters."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Field, model_validator

from udc_model.config.costs import CostParams
from udc_model.config.data import DataParams
from udc_model.config.evaluate import EvaluateParams
from udc_model.config.loss import COST_SENSITIVE_LOSSES, LossParams
from udc_model.config.model import ModelParams
from udc_model.config.section import Section
from udc_model.config.train import TrainParams
from udc_model.errors import UdcError


class Params(Section):
    """All of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(42, description="Seed of every random draw.")
    data: DataParams = Field(DataParams(), description=DataParams.__doc__)
    model: ModelParams = Field(ModelParams(), description=ModelParams.__doc__)
    loss: LossParams = Field(LossParams(), description=LossParams.__doc__)
    train: TrainParams = Field(TrainParams(), description=TrainParams.__doc__)
    costs: CostParams = Field(CostParams(), description=CostParams.__doc__)
    evaluate: EvaluateParams = Field(EvaluateParams(), description=EvaluateParams.__doc__)

    @model_validator(mode="after")
    def _calibration_has_data(self) -> Params:
        if self.data.splits.calibration or self.data.source != "digits":
            return self
        if self.evaluate.calibration != "none":
            raise ValueError(
                f"evaluate.calibration: {self.evaluate.calibration} needs images to calibrate on, "
                "but data.splits.calibration is 0; raise it or set evaluate.calibration: none"
            )
        if self.evaluate.decision in ("recall_floor", "cost_ceiling"):
            what = "recall" if self.evaluate.decision == "recall_floor" else "mean cost"
            raise ValueError(f"evaluate.decision: {self.evaluate.decision} needs images to prove the {what} on, "
                             "but data.splits.calibration is 0; raise it")  # fmt: skip
        return self

    @property
    def training_uses_costs(self) -> bool:
        """Whether the training result depends on the cost matrix."""
        return self.loss.name in COST_SENSITIVE_LOSSES or self.training_uses_policy

    @property
    def training_uses_policy(self) -> bool:
        """Whether the training result depends on the section ``evaluate``."""
        return self.train.monitor == "normalised_cost"


def parameter_names(section: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """Full names of all parameters and sections, as ``train.epochs``, in the order of ``params.yaml``."""
    names = []
    for key, field in section.model_fields.items():
        names.append(prefix + key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += parameter_names(field.annotation, f"{prefix}{key}.")
    return names


def with_json_mappings(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections in which each mapping by class name is one value, a JSON text: for a record with dotted names."""
    values: dict[str, Any] = {}
    for key, value in sections.items():
        if not isinstance(value, Mapping):
            values[key] = value
        elif _takes_mapping(f"{prefix}{key}"):
            values[key] = json.dumps(value, ensure_ascii=False)
        else:
            values[key] = with_json_mappings(value, f"{prefix}{key}.")
    return values


def _takes_mapping(name: str) -> bool:
    """Whether the keys of a parameter's value are class names."""
    section_name, _, key = name.partition(".")
    section = Params.model_fields.get(section_name)
    field = getattr(section.annotation, "model_fields", {}).get(key) if section else None
    return field is not None and any(
        get_origin(kind) is dict for kind in (field.annotation, *get_args(field.annotation))
    )


def mapping_of(name: str) -> str | None:
    """The parameter with a mapping by class name that a name is below: ``costs.prior`` of ``costs.prior.a``."""
    parameter = ".".join(name.split(".")[:2])
    return parameter if parameter != name and _takes_mapping(parameter) else None


def full_name(name: str) -> str:
    """The full name of a parameter given by its last part, if only one has it: ``epochs`` is ``train.epochs``.

    A name below a mapping by class name, as ``costs.prior.a``, is returned unchanged.

    Raises
    ------
    UdcError
        No parameter has that name, or several do.
    """
    names = parameter_names()
    if name in names or mapping_of(name) is not None:
        return name
    matches = [full for full in names if full.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UdcError(f"{name}: could be any of {', '.join(matches)}; give the full name")
    close = difflib.get_close_matches(name, [*names, *(full.rpartition(".")[2] for full in names)], n=1)
    raise UdcError(f"{name}: no such parameter" + (f"; did you mean {close[0]}?" if close else ""))
