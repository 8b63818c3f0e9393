"""Validation errors of parameters as messages: the parameter, its value, and what is allowed."""

from __future__ import annotations

import difflib
import reprlib
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel

from udc_model.config.params import Params

# Parameters of earlier versions, and what to write instead.
_REMOVED = {
    "loss.reads": "is no longer needed: stage resolve finds out what training depends on; remove the line",
    "train.reads": "is no longer needed: stage resolve finds out what training depends on; remove the line",
    "train.policy": "is called train.auto_augment since version 0.2.0; rename it",
}
_NUMBERS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_TYPES = {int: "integer", float: "number", bool: "true or false", str: "text"}
_SHORT = reprlib.Repr()  # a value of YAML aliases may be far longer than the file
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 2, 4, 8, 80, 80


def type_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The values that a type annotation with pydantic's constraints allows, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *extra = arguments
        bounds = [item for field in extra for item in getattr(field, "metadata", [field])]
        return type_words(inner, [*bounds, *metadata])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        kinds = [type_words(each, metadata if each is not type(None) else ()) for each in arguments
                 if each is not type(None)]  # fmt: skip
        return " or ".join([*kinds, *(["null"] if type(None) in arguments else [])])
    if origin is list:
        return f"list of: {type_words(arguments[0])}"
    if origin is dict:
        return f"mapping from text to: {type_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{" + ", ".join(field.alias or name for name, field in annotation.model_fields.items()) + "}"
    words = _TYPES.get(annotation, str(annotation))
    bounds = [f"{_NUMBERS[key]} {getattr(item, key):g}" for item in metadata for key in _NUMBERS if hasattr(item, key)]
    return " ".join([words, " and ".join(bounds)]).strip()


@dataclass(frozen=True)
class _Place:
    """Where an error is: keys from the top of the file, the type that is allowed there, and pydantic's constraints.

    Attributes
    ----------
    union : number of keys up to the last value that may have one of several types; None if there is none.
    section : the type of the whole file.
    """

    keys: tuple[str | int, ...]
    annotation: Any
    metadata: tuple[Any, ...]
    union: int | None
    section: Any

    @property
    def name(self) -> str:
        return ".".join(map(str, self.keys)) or "parameters"


def explain(errors: Sequence[Any], section: Any = Params) -> list[str]:
    """One line per parameter that is not valid, of pydantic's list of errors about values for ``section``."""
    places = [_locate(item["loc"], section) for item in errors]
    inside = {
        place.keys[: place.union] for place in places if place.union is not None and len(place.keys) > place.union
    }
    lines = []
    for item, place in zip(errors, places, strict=True):
        # an error inside of a value that may have one of several types belongs to the type that fits
        if item["type"] == "value_error" or len(place.keys) != place.union or place.keys not in inside:
            lines.append(_line(item, place))
    return list(dict.fromkeys(lines))


def _locate(location: Sequence[str | int], section: Any) -> _Place:
    """The place of pydantic's location, which has a label after the key of a value that may have several types."""
    annotation, metadata, union = section, (), None
    place = _Place((), annotation, metadata, union, section)
    keys: tuple[str | int, ...] = ()
    parts = list(location)
    while parts:
        kinds = _kinds(annotation)
        if len(kinds) > 1:
            parts.pop(0)  # the label
            union = len(keys)
            place = _Place(keys, annotation, metadata, union, section)
            container = list if parts and isinstance(parts[0], int) else dict
            annotation = next((kind for kind in kinds if _is_kind(kind, container)), kinds[0])
            continue
        keys = (*keys, parts.pop(0))
        annotation, metadata = _child(kinds[0], keys[-1])
        place = _Place(keys, annotation, metadata, union, section)
    return place


def _kinds(annotation: Any) -> list[Any]:
    """The types other than None that an annotation allows; several choices of literals are one type."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for each in get_args(annotation) if each is not type(None) for kind in _kinds(each)]
    return [annotation]


def _is_kind(annotation: Any, kind: type) -> bool:
    if kind is dict and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return get_origin(annotation) is kind


def _child(annotation: Any, key: str | int) -> tuple[Any, tuple[Any, ...]]:
    """Type and constraints of the value under a key of a section, mapping or list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            choices = field.validation_alias
            aliases = choices.choices if isinstance(choices, AliasChoices) else [choices]
            if key in (name, field.alias, *aliases):
                return field.annotation, tuple(field.metadata)
        return Any, ()
    arguments = get_args(annotation)
    return (arguments[-1], ()) if arguments and get_origin(annotation) in (list, dict) else (Any, ())


def _line(item: Any, place: _Place) -> str:
    """One error as ``full.name: what is wrong``."""
    name, value = place.name, item["input"]
    message = str(item["msg"]).removeprefix("Value error, ")
    if name in _REMOVED:
        return f"{name}: {_REMOVED[name]}"
    if item["type"] == "extra_forbidden":
        return f"{name}: {_unknown(place.keys, place.section)}"
    if item["type"] == "missing":
        return f"{name}: is missing; allowed: {type_words(place.annotation, place.metadata)}"
    if item["type"] == "value_error":
        return f"{name}: {message}" if place.keys else message
    if place.annotation is Any:
        return f"{name}: {message}, got {_SHORT.repr(value)}"
    kinds = _kinds(place.annotation)
    if _is_kind(kinds[0], dict) and isinstance(kinds[0], type) and len(kinds) == 1:
        return f"{name}: {_no_section(kinds[0], value)}"
    return f"{name}: got {_shown(value)}; allowed: {_allowed(item, place)}{_hint(kinds, value)}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(getattr(value, "text", None) or _SHORT.repr(value))


def _allowed(item: Any, place: _Place) -> str:
    words = type_words(place.annotation, place.metadata)
    if item["type"] == "too_short":
        return f"{words}; at least {item['ctx']['min_length']}"
    return words


def _hint(kinds: list[Any], value: Any) -> str:
    """How to write a text that YAML reads as a number, and a literal that is similar to the value."""
    if str in kinds and isinstance(value, bool | int | float):
        return f"; a text that looks like a number needs quotes: '{_shown(value)}'"
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"; did you mean {close[0]}?" if close else ""


def _no_section(section: type[BaseModel], value: Any) -> str:
    """What is wrong with a value where a section with parameters must be."""
    names = ", ".join(sorted(field.alias or name for name, field in section.model_fields.items()))
    if value is None:
        return f"is empty; remove the line to use the defaults, or set parameters below it: {names}"
    return f"got {_shown(value)}; allowed: a section with the parameters {names}"


def _unknown(keys: Sequence[str | int], section: Any) -> str:
    """That no parameter has a name, with one of a similar name and those that there are."""
    for key in keys[:-1]:
        kinds = _kinds(_child(section, key)[0])
        section = next((kind for kind in kinds if _is_kind(kind, dict) or _is_kind(kind, list)), Any)
    allowed = sorted(field.alias or name for name, field in getattr(section, "model_fields", {}).items())
    close = difflib.get_close_matches(str(keys[-1]), allowed, n=1)
    hint = f"; did you mean {'.'.join(map(str, [*keys[:-1], close[0]]))}?" if close else "."
    return f"no such parameter{hint} Allowed here: {', '.join(allowed)}"
