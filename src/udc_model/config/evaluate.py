"""Section ``evaluate``: how logits become decisions, and how decisions are scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from udc_model.config.section import ClassName, Section


class RecallFloor(Section):
    """The recall of a class that decisions must reach, and the one-sided confidence that they do."""

    name: ClassName = Field(alias="class", description="The class.")
    floor: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="Lowest recall of the class.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="One-sided confidence of the floor.")


class EvaluateParams(Section):
    """How logits become decisions, and how decisions are scored."""

    calibration: Literal["temperature", "vector", "dirichlet", "isotonic", "none", "auto"] = Field(
        "temperature",
        description="Calibration of the probabilities; auto takes the method of least cross-validated log loss.",
    )
    decision: Literal["min_expected_cost", "argmax", "recall_floor"] = Field(
        "min_expected_cost",
        description="min_expected_cost, argmax (most probable class), or recall_floor (least expected cost at a proven "
        "recall).",
    )
    recall_floor: RecallFloor | None = Field(
        None, description="Floor of decision recall_floor, as {class: a, floor: 0.95, confidence: 0.95}."
    )
    recall_of: list[ClassName] = Field([], description="Classes whose recall and miss rate are reported as metrics.")
    resamples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        2000, description="Bootstrap resamples behind each interval."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="Level of the intervals.")
    ece_bins: Annotated[int, Field(ge=2, le=100)] = Field(
        15, description="Bins of equal mass of the expected calibration error."
    )
    flip_averaging: bool = Field(False, description="Average the logits of an image and its mirror image.")
    batch_size: Annotated[int, Field(gt=0, le=65_536)] = Field(256, description="Images per forward pass.")

    @model_validator(mode="after")
    def _has_floor(self) -> EvaluateParams:
        if self.decision == "recall_floor" and self.recall_floor is None:
            raise ValueError(
                "decision: recall_floor needs the class and its floor, "
                "as recall_floor: {class: venomous, floor: 0.95, confidence: 0.95}"
            )
        return self
