"""What all sections of ``params.yaml`` share: strict validation, and types that several of them use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SPLITS = ("train", "validation", "calibration", "test")

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base class of all sections: refuses unknown keys and type conversions; instances are immutable."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_by_name=True, serialize_by_alias=True
    )
