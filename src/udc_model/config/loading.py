"""Reads, overrides and validates a file of parameters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from udc_model.config.params import Params, full_name
from udc_model.errors import UdcError

# A number with an exponent, as YAML 1.2 and DVC write it: 1e-05.
FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$")

# Parameters of earlier versions, and what to write instead.
_REMOVED = {
    "loss.reads": "is no longer needed: stage resolve finds out what training depends on; remove the line",
    "train.reads": "is no longer needed: stage resolve finds out what training depends on; remove the line",
    "train.policy": "is called train.auto_augment since version 0.2.0; rename it",
}


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
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml12Loader)
    except FileNotFoundError:
        raise UdcError(f"{path}: no such file; run from the project's root, or copy params.yaml there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UdcError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
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


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one ``full.name=value`` in the parsed contents of a parameter file."""
    name, equals, value = override.partition("=")
    if not equals:
        raise UdcError(f"{override}: must be name=value, as costs.refer=2")
    *sections, key = full_name(name).split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    try:
        raw[key] = yaml.load(value, Loader=_Yaml12Loader)
    except yaml.YAMLError as error:
        raise UdcError(f"{override}: the value is not valid YAML: {error}") from None


def validate_params(raw: Any, origin: str) -> Params:
    """Validate the parsed contents of a parameter file; ``origin`` names it in error messages."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise UdcError(f"{origin} is not valid:\n{lines}") from None


def _explain(item: Any) -> str:
    """One validation error as ``full.name: what is wrong, got …``."""
    keys = [str(key) for key in item["loc"]]
    name = ".".join(keys) or "parameters"
    message = str(item["msg"]).removeprefix("Value error, ")
    if name in _REMOVED:
        return f"{name}: {_REMOVED[name]}"
    if item["type"] == "extra_forbidden":
        allowed = _fields_at(keys[:-1])
        close = difflib.get_close_matches(keys[-1], allowed, n=1)
        hint = f"; did you mean {'.'.join([*keys[:-1], close[0]])}?" if close else ""
        return f"{name}: no such parameter{hint} Allowed here: {', '.join(allowed)}"
    if item["type"] in ("value_error", "missing"):
        return f"{name}: {message}"
    return f"{name}: {message}, got {item['input']!r}"


def _fields_at(keys: list[str]) -> list[str]:
    """The names of the parameters in the section that ``keys`` leads to."""
    section: Any = Params
    for key in keys:
        field = section.model_fields.get(key) if hasattr(section, "model_fields") else None
        if field is None:
            break
        section = field.annotation
    return sorted(getattr(section, "model_fields", {}))


class _Yaml12Loader(yaml.SafeLoader):
    """A SafeLoader that reads numbers as YAML 1.2 does, and refuses duplicate keys and keys that are not strings.

    DVC follows YAML 1.2 and writes small numbers as ``1e-05``; in YAML 1.1, which PyYAML follows, that is a string.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"the key {key_node.value} is not read as a string; put it in quotes: '{key_node.value}'"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
