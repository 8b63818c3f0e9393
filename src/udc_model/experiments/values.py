"""Parameters as a flat table of values: read from files, compared, and written as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from udc_model.config import with_json_mappings
from udc_model.config.yaml12 import read_yaml
from udc_model.tracking.run import flatten


def flat_values(text: str) -> dict[str, Any]:
    """The values of a file of parameters by full name, of any version; empty if it is not one.

    A mapping by class name is one value, a JSON text.
    """
    try:
        sections = read_yaml(text)
    except (yaml.YAMLError, ValueError):
        return {}
    return flat(sections) if isinstance(sections, Mapping) else {}


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections of parameters by full name."""
    return flatten(with_json_mappings(sections))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The parameters that differ, with both values; None for a parameter that one side does not have."""
    names = dict.fromkeys([*new, *old])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def value_text(value: Any) -> str:
    """A value as in params.yaml: null, true, 0.003, [1, 2], or a text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
