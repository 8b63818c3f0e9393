"""Reads and writes YAML as DVC does, which follows YAML 1.2; PyYAML follows YAML 1.1.

In YAML 1.2 ``1e-05`` and ``0o17`` are numbers, and ``no``, ``on`` and ``12:30`` are texts.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

# A number with an exponent: 1e-05.
FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$")

_BASES = {"0x": 16, "0o": 8, "0b": 2}
_INT = re.compile(r"^[-+]?(0x[0-9a-fA-F][0-9a-fA-F_]*|0o[0-7][0-7_]*|0b[01][01_]*|[0-9][0-9_]*)$")
_RESOLVERS = (
    ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", FLOAT, "-+.0123456789"),
    ("float", re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)$"), "-+.0123456789"),
    ("float", re.compile(r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"), "-+."),
    ("null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("timestamp", re.compile(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].*)?$"), "0123456789"),
)


class IntScalar(int):
    """An integer that is written in another way than Python writes it, as 01 or 0x10.

    Attributes
    ----------
    text : the characters in the file.
    """

    text: str


class FloatScalar(float):
    """A number with a fraction or an exponent, with the characters in the file as ``text``."""

    text: str


class DateScalar(str):
    """The characters of a date in the file. No parameter is a date, and DVC changes a class name that is one."""


class Yaml12Loader(yaml.SafeLoader):
    """A SafeLoader that reads scalars as YAML 1.2 does and refuses duplicate keys.

    A key is a text or a plain integer, which is read as a text: parameters and classes have texts as names.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # without those of YAML 1.1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping, with texts as keys; ConstructorError with the line for any other key."""
        keys = [self.construct_object(key_node, deep=True) for key_node, _ in node.value]
        are_integers = all(type(key) is int for key in keys)  # DVC fails if only some are
        seen: set[str] = set()
        for (key_node, _), key in zip(node.value, keys, strict=True):
            if not are_integers and (not isinstance(key, str) or isinstance(key, DateScalar)):
                _refuse_key(key_node)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """An integer; an `IntScalar` if its characters are not those of the number."""
        text = str(self.construct_scalar(node))
        digits = text.replace("_", "").lower()
        sign, digits = (-1 if digits[0] == "-" else 1), digits.lstrip("+-")
        base = _BASES.get(digits[:2], 10)
        value = sign * (int(digits, 10) if base == 10 else int(digits[2:], base))
        if str(value) == text:
            return value
        scalar = IntScalar(value)
        scalar.text = text
        return scalar

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """A number with a fraction or an exponent."""
        scalar = FloatScalar(self.construct_yaml_float(node))
        scalar.text = str(self.construct_scalar(node))
        return scalar

    def construct_date(self, node: yaml.ScalarNode) -> DateScalar:
        """A date, as its characters."""
        return DateScalar(self.construct_scalar(node))


def _refuse_key(node: yaml.Node) -> None:
    problem = f"the key {node.value} is not read as a text; put it in quotes: '{node.value}'"
    if node.value == "true":
        problem += " (in costs.entries, `actual` is another name of it)"
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class Yaml12Dumper(yaml.SafeDumper):
    """A SafeDumper that puts a text in quotes if YAML 1.1 or YAML 1.2 would read it as something else."""


for _tag, _pattern, _first in _RESOLVERS:
    Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
    if _tag in ("int", "float"):
        Yaml12Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
Yaml12Loader.add_constructor("tag:yaml.org,2002:int", Yaml12Loader.construct_integer)
Yaml12Loader.add_constructor("tag:yaml.org,2002:float", Yaml12Loader.construct_number)
Yaml12Loader.add_constructor("tag:yaml.org,2002:timestamp", Yaml12Loader.construct_date)


def read_yaml(text: str) -> Any:
    """The value of a YAML document; yaml.YAMLError if it is not valid."""
    return yaml.load(text, Loader=Yaml12Loader)


def as_yaml(value: Any, *, is_compact: bool = False) -> str:
    """A value as a YAML document that `read_yaml`, PyYAML and DVC read alike.

    Parameters
    ----------
    is_compact : whether a list or mapping of plain values is written on one line, as ``{a: 1, b: 2}``.
    """
    return yaml.dump(value, Dumper=Yaml12Dumper, sort_keys=False, allow_unicode=True,
                     default_flow_style=None if is_compact else False, width=120 if is_compact else None)  # fmt: skip
