"""Reads, overrides and validates a file of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from udc_model.config.messages import explain
from udc_model.config.params import Params, full_name, mapping_of
from udc_model.config.yaml12 import read_yaml
from udc_model.errors import UdcError
from udc_model.files import read_bytes

_ADVICE = "run from the project's root, or copy params.yaml there"
_MAX_BYTES = 2**24  # of a parameter file; a cost matrix of 1,000 classes has 8 million


def load_params(path: str | Path = "params.yaml", overrides: Sequence[str] = ()) -> Params:
    """Read and validate a ``params.yaml``.

    Parameters
    ----------
    overrides : ``full.name=value`` strings, as DVC's ``-S`` takes them; the value is YAML.

    Raises
    ------
    UdcError
        The file is missing or not YAML, or a parameter is unknown or not valid. One message names all of them.
    """
    path = Path(path)
    try:
        raw = read_yaml(read_bytes(path, _ADVICE, _MAX_BYTES).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UdcError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UdcError(f"{path}: not valid YAML: {error}") from None
    raw = raw if raw is not None else {}
    for override in overrides:
        _override(raw, override)
    return validate_params(raw, str(path))


def override_params(overrides: Sequence[str]) -> Params:
    """The defaults with ``full.name=value`` overrides; :class:`UdcError` if one is unknown or not valid."""
    raw: dict[str, Any] = {}
    for override in overrides:
        _override(raw, override)
    return validate_params(raw, "-S")


def _override(raw: Any, override: str) -> None:
    """Set one ``full.name=value`` in the parsed contents of a parameter file, unless a section of it is not valid."""
    name, equals, value = override.partition("=")
    if not equals:
        raise UdcError(f"{override}: must be name=value, as costs.refer=2")
    *sections, key = full_name(name).split(".")
    try:
        parsed = read_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UdcError(f"{override}: the value is not valid YAML: {error}") from None
    mapping = mapping_of(full_name(name))
    for depth, section in enumerate(sections):
        if not isinstance(raw, dict):
            break
        if depth and mapping is not None and raw.get(section) is None:
            raw[section] = {}
        raw = raw.setdefault(section, {})
    if isinstance(raw, dict):
        raw[key] = parsed
    elif mapping is not None:
        raise UdcError(f"{override}: the value there is {raw!r}, which has no keys; set all of {mapping}={{…}}")


def validate_params(raw: Any, origin: str) -> Params:
    """Validate the parsed contents of a parameter file; ``origin`` names it in error messages."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in explain(error.errors()))
        raise UdcError(f"{origin} is not valid:\n{lines}") from None
