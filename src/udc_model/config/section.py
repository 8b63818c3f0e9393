"""What all sections of ``params.yaml`` share: strict validation, and types that several of them use."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from udc_model.config.yaml12 import DateScalar

SPLITS = ("train", "validation", "calibration", "test")

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _class_name(value: Any) -> Any:
    """A class name as text. YAML reads 3 as an integer, which is the name '3'; other values may have lost digits."""
    if type(value) is int:
        return str(value)
    if value is None or isinstance(value, bool | int | float | DateScalar):
        text = value if isinstance(value, str) else getattr(value, "text", None) or json.dumps(value)
        raise ValueError(f"{text} is not read as a text; write the name of the class in quotes: '{text}'")
    return value


ClassName = Annotated[str, BeforeValidator(_class_name)]


class Section(BaseModel):
    """Base class of all sections: refuses unknown keys and type conversions; instances are immutable."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_by_name=True, serialize_by_alias=True
    )
