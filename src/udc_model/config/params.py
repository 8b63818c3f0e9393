"""All sections of ``params.yaml`` together, the rules between them, and the names of their parameters."""

from __future__ import annotations

import difflib
from typing import Annotated

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
        if self.evaluate.decision == "recall_floor":
            raise ValueError("evaluate.decision: recall_floor needs images to prove the recall on, "
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


def full_name(name: str) -> str:
    """The full name of a parameter given by its last part, if only one has it: ``epochs`` is ``train.epochs``.

    Raises
    ------
    UdcError
        No parameter has that name, or several do.
    """
    names = parameter_names()
    if name in names:
        return name
    matches = [full for full in names if full.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UdcError(f"{name}: could be any of {', '.join(matches)}; give the full name")
    close = difflib.get_close_matches(name, [*names, *(full.rpartition(".")[2] for full in names)], n=1)
    raise UdcError(f"{name}: no such parameter" + (f"; did you mean {close[0]}?" if close else ""))
