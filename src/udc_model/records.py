"""Reads JSON that anyone may have written: bounded in size, then typed and bounded by a pydantic model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from udc_model.config.messages import explain
from udc_model.errors import UdcError
from udc_model.files import MAX_JSON, read_json

_SHOWN = 3  # errors in a message


class Record(BaseModel):
    """Base class of what is read: no type conversions, no NaN or infinity; unknown keys are ignored."""

    model_config = ConfigDict(
        extra="ignore", strict=True, frozen=True, allow_inf_nan=False, validate_by_name=True, protected_namespaces=()
    )


Kind = TypeVar("Kind", bound=BaseModel)


def read_record(path: Path, kind: type[Kind], advice: str, max_bytes: int = MAX_JSON) -> Kind:
    """The contents of a JSON file.

    Parameters
    ----------
    kind : the fields of the file, with their types and bounds.
    advice : what to do if the file is missing, damaged or not valid; the end of the message.

    Raises
    ------
    UdcError
        One line with the file, the field, its value and what is allowed.
    """
    return validated(read_json(path, advice, max_bytes), kind, str(path), advice)


def validated(values: Any, kind: type[Kind], origin: str, advice: str) -> Kind:
    """JSON values as a record; ``origin`` names the file in messages. See `read_record`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = explain(error.errors(include_url=False), kind)
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        text = "; ".join(lines[:_SHOWN]).replace("\n", " ")
        raise UdcError(f"{origin}: {text}{more}; {advice}") from None
