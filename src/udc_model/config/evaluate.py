"""Section ``evaluate``: how logits become decisions, and how decisions are scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from udc_model.config.costs import LARGEST_COST
from udc_model.config.section import ClassName, Section


class RecallFloor(Section):
    """The recall of a class, or of several, that decisions must reach, and the one-sided confidence that they do."""

    name: ClassName | Annotated[list[ClassName], Field(min_length=1)] = Field(
        alias="class",
        description="The class, or a list of classes: of their images, the share that is decided as any of them.",
    )
    floor: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="Lowest recall of the class.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="One-sided confidence of the floor.")

    @property
    def classes(self) -> list[str]:
        """The classes."""
        return [self.name] if isinstance(self.name, str) else self.name


class CostCeiling(Section):
    """The mean cost, referrals included, that decisions must not exceed, and the confidence that they do not."""

    ceiling: Annotated[float, Field(gt=0, le=LARGEST_COST)] = Field(description="Highest mean cost per image.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="One-sided confidence of the ceiling.")


class EvaluateParams(Section):
    """How logits become decisions, and how decisions are scored."""

    calibration: Literal["temperature", "vector", "dirichlet", "isotonic", "none", "auto"] = Field(
        "temperature",
        description="Calibration of the probabilities; auto takes the method of least cross-validated log loss.",
    )
    decision: Literal["min_expected_cost", "argmax", "recall_floor", "cost_ceiling"] = Field(
        "min_expected_cost",
        description="min_expected_cost, argmax (most probable class), recall_floor (least expected cost at a proven "
        "recall), or cost_ceiling (fewest referrals at a proven mean cost).",
    )
    recall_floor: RecallFloor | Annotated[list[RecallFloor], Field(min_length=1)] | None = Field(
        None,
        description="Floor of decision recall_floor, as {class: a, floor: 0.95, confidence: 0.95}, or a list of them; "
        "class may be a list of classes.",
    )
    cost_ceiling: CostCeiling | None = Field(
        None, description="Ceiling of decision cost_ceiling, as {ceiling: 0.2, confidence: 0.95}."
    )
    recall_of: list[ClassName] = Field([], description="Classes whose recall and miss rate are reported as metrics.")
    resamples: Annotated[int, Field(ge=100, le=100_000)] = Field(2000, description="Resamples behind each interval.")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="Level of the intervals.")
    ece_bins: Annotated[int, Field(ge=2, le=100)] = Field(
        15, description="Bins of equal mass of the expected calibration error."
    )
    flip_averaging: bool = Field(False, description="Average the logits of an image and its mirror image.")
    precision: Literal["auto", "fp32", "fp32_fused", "bf16"] = Field(
        "auto",
        description="Precision of predictions: fp32 runs every layer as it is, fp32_fused folds norms into "
        "convolutions, bf16 also computes in bfloat16; auto is bf16 for a model trained in it, else fp32_fused.",
    )
    batch_size: Annotated[int, Field(gt=0, le=65_536)] = Field(256, description="Images per forward pass.")

    @model_validator(mode="after")
    def _has_floor(self) -> EvaluateParams:
        if self.decision == "recall_floor" and self.recall_floor is None:
            raise ValueError(
                "decision: recall_floor needs the class and its floor, "
                "as recall_floor: {class: venomous, floor: 0.95, confidence: 0.95}"
            )
        if self.decision == "cost_ceiling" and self.cost_ceiling is None:
            raise ValueError(
                "decision: cost_ceiling needs the mean cost, as cost_ceiling: {ceiling: 0.2, confidence: 0.95}"
            )
        return self

    @property
    def recall_floors(self) -> list[RecallFloor]:
        """The floors, whether or not the decision uses them."""
        if self.recall_floor is None:
            return []
        return [self.recall_floor] if isinstance(self.recall_floor, RecallFloor) else self.recall_floor
