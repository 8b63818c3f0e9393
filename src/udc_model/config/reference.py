"""Describes every parameter from its pydantic field: for ``udc params``, ``params.yaml`` and the documentation."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from udc_model.config.loss import LOSS_OPTIONS
from udc_model.config.messages import type_words
from udc_model.config.params import Params, full_name
from udc_model.config.train import WITHOUT_EFFECT
from udc_model.config.yaml12 import Yaml12Dumper
from udc_model.errors import UdcError

_WIDTH = 116  # of a comment line in params.yaml, without its indentation
_STAGES = {
    "data": "prepare",
    "model": "train",
    "loss": "train",
    "train": "train",
    "costs": "evaluate; train too if the loss or train.monitor uses the costs",
    "evaluate": "evaluate; train too if train.monitor is normalised_cost",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Parameters
    ----------
    name : full name, as ``train.epochs``.
    description : what it does, one or more sentences.
    values : the values that it takes, in words.
    default : its value if the file does not set it; None may be the default too.
    stages : which stages depend on it.
    """

    name: str
    description: str
    values: str
    default: Any
    stages: str

    @property
    def key(self) -> str:
        """The last part of the name: the key in ``params.yaml``."""
        return self.name.rpartition(".")[2]


def parameters(section: type[BaseModel] = Params, prefix: str = "") -> Iterator[Parameter]:
    """All parameters, in the order of ``params.yaml``; sections themselves are left out."""
    for field_name, field in ordered_fields(section):
        name = prefix + field_name
        if is_section(field):
            yield from parameters(field.annotation, f"{name}.")  # type: ignore[arg-type]
        else:
            yield Parameter(name, _description(field), _values(field), _default(field), _stages(name))


def ordered_fields(section: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """Keys and fields of a section in the order of ``params.yaml``.

    DVC rewrites the file at each ``-S`` and loses a comment or an empty line that follows a list. So lists come after
    the other parameters, and before the last of these or the first subsection, which has no comment of its own.
    """
    fields = [(field.alias or name, field) for name, field in section.model_fields.items()]
    sections = [item for item in fields if is_section(item[1])]
    lists = [item for item in fields if item not in sections and _takes_list(item[1].annotation)]
    others = [item for item in fields if item not in sections and item not in lists]
    if sections or not lists:
        return [*others, *lists, *sections]
    return [*others[:-1], *lists, others[-1]]


def is_section(field: FieldInfo) -> bool:
    """Whether a field is a section of its own."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def explain(name: str) -> str:
    """Everything about one parameter, or a line about each parameter of a section.

    Raises
    ------
    UdcError
        No parameter or section has that name; the message suggests a similar one.
    """
    name = full_name(name)
    matches = [parameter for parameter in parameters() if f"{parameter.name}.".startswith(f"{name}.")]
    if not matches:
        raise UdcError(f"{name}: no such parameter")
    if matches[0].name != name:
        return summary_table(matches)
    parameter = matches[0]
    lines = [parameter.name, f"  {parameter.description}", f"  values:  {parameter.values}",
             f"  default: {to_yaml(parameter.default) or 'null'}", f"  used by: {parameter.stages}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def summary_table(rows: list[Parameter] | None = None) -> str:
    """Name, default and first sentence of each parameter, as aligned text."""
    rows = list(parameters()) if rows is None else rows
    names = max(len(row.name) for row in rows)
    defaults = [to_yaml(row.default) or "null" for row in rows]
    width = min(24, max(map(len, defaults)))
    lines = [f"{row.name:<{names}}  {default:<{width}}  {first_sentence(row.description)}"
             for row, default in zip(rows, defaults, strict=True)]  # fmt: skip
    return "\n".join(lines) + "\n"


def parameters_markdown() -> str:
    """A Markdown table of each section's parameters, for the documentation."""
    parts = []
    for name, field in Params.model_fields.items():
        rows = [row for row in parameters() if row.name == name or row.name.startswith(f"{name}.")]
        title, about = (name, str(field.annotation.__doc__)) if is_section(field) else ("Top level", "")
        lines = [f"## {title}", "", " ".join(about.split()).replace("``", "`"), ""]
        lines += ["| parameter | values | default | description |", "| --- | --- | --- | --- |"]
        for row in rows:
            default = to_yaml(row.default) or "null"
            cells = (f"`{row.name}`", _escaped(row.values), f"`{default}`", _escaped(row.description))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """A text without Markdown's meaning of its characters."""
    return re.sub(r"([*_\[\]<`])", r"\\\1", text)


def params_yaml(params: Params) -> str:
    """The text of ``params.yaml`` with these values, each parameter under its description.

    The form is the one in which DVC writes the file: block lists, empty nulls, comments on lines of their own.
    """
    lines = ["# All parameters. `udc params NAME` explains one; `udc params --write` writes this form again.", ""]
    for key, field in ordered_fields(Params):
        lines += [*_yaml_lines(key, field, getattr(params, key), 0), ""]
    return "\n".join(lines[:-1]) + "\n"


def _yaml_lines(key: str, field: FieldInfo, value: Any, depth: int) -> list[str]:
    """Lines of one parameter or section, with the comments above."""
    indent = "  " * depth
    if not is_section(field):
        return [*_comments(field, indent), *_yaml_value(key, value, indent)]
    assert isinstance(field.annotation, type)
    fields = ordered_fields(field.annotation)
    first_list = next((k for k, (_, inner) in enumerate(fields) if _takes_list(inner.annotation)), len(fields))
    lines = [f"{indent}{key}:"]
    for k, (name, inner) in enumerate(fields):
        inner_value = getattr(value, next(n for n, f in type(value).model_fields.items() if f is inner))
        if k < first_list or is_section(inner):
            lines += _yaml_lines(name, inner, inner_value, depth + 1)
            continue
        if k == first_list:  # the comments of all lists, for none may follow a list
            group = [(n, f) for n, f in fields[k:] if not is_section(f)]
            lines += [line for n, f in group for line in _comments(f, f"{indent}  ", f"{n}: ")]
        lines += _yaml_value(name, inner_value, f"{indent}  ")
    return lines


def _comments(field: FieldInfo, indent: str, prefix: str = "") -> list[str]:
    """Comment lines with the first sentence of the description, and the allowed values if it does not name them."""
    text = prefix + first_sentence(_description(field))
    choices = _choices(field.annotation)
    named = len(choices) >= 8 or all(re.search(rf"\b{choice}\b", text) for choice in choices)
    return [*_comment(text, indent), *([] if named else _comment(" | ".join(choices), indent))]


def _comment(text: str, indent: str) -> list[str]:
    """A text as comment lines."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > _WIDTH - len(indent):
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [f"{indent}# {each}" for each in [*lines, line]]


def _yaml_value(key: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, list) and value:
        value = [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
    if isinstance(value, list | dict) and value:
        block = yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
        return [indent + line for line in block.rstrip("\n").split("\n")]
    return [f"{indent}{key}: {to_yaml(value)}".rstrip()]


def to_yaml(value: Any) -> str:
    """A value on one line, as DVC writes it; empty for null."""
    if value is None:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, list | tuple):
        value = [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


class _Dumper(Yaml12Dumper):
    """Writes floats as Python and DVC do (``1e-12``) and nulls as nothing."""


_Dumper.add_representer(float, lambda dumper, x: dumper.represent_scalar("tag:yaml.org,2002:float", repr(x)))
_Dumper.add_representer(type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", ""))


def first_sentence(text: str) -> str:
    """The text up to the first full stop that ends a sentence."""
    return text.split(". ")[0].removesuffix(".") + "."


def _description(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> Any:
    return None if field.default is PydanticUndefined else field.default


def _stages(name: str) -> str:
    section, _, key = name.partition(".")
    if name == "seed":
        return "prepare and train"
    if section == "loss" and key != "name":
        losses = [loss for loss, options in LOSS_OPTIONS.items() if key in options]
        return f"train, if loss.name is {' or '.join(losses)}"
    if key in ("model_type", "num_channels") or key.endswith(".num_channels"):
        return "prepare and train"
    if key in WITHOUT_EFFECT:
        return "train; a change does not train again"
    return _STAGES[section]


def _takes_list(annotation: Any) -> bool:
    """Whether an annotation allows a list."""
    if get_origin(annotation) is list:
        return True
    return any(_takes_list(inner) for inner in get_args(annotation) if get_origin(annotation) is not dict)


def _choices(annotation: Any) -> list[str]:
    """The literal values that an annotation allows, null included."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [_choices(each) for each in get_args(annotation) if each is not type(None)]
        return [choice for choices in inner for choice in choices] if all(inner) else []
    return []


def _values(field: FieldInfo) -> str:
    """The values that a field takes, in words."""
    return type_words(field.annotation, field.metadata)
