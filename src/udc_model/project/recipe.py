"""Recipes: sets of parameters for kinds of images, each with its page of reasons, and how they change a file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from udc_model.config import Params, load_params, parameter_names, validate_params
from udc_model.config.reference import params_yaml, to_yaml
from udc_model.config.yaml12 import read_yaml
from udc_model.errors import UdcError
from udc_model.files import write_atomically

_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """Values of some parameters over the defaults.

    Parameters
    ----------
    name : as ``photographs``.
    page : what it is for, and what was measured.
    values : by the full name of the parameter.
    """

    name: str
    page: str
    values: dict[str, Any]

    @property
    def title(self) -> str:
        """The first sentence of the page."""
        return self.page.partition("\n\n")[0].replace("\n", " ")


@dataclass(frozen=True)
class Change:
    """A parameter that gets another value."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {to_yaml(self.old) or 'null'} -> {to_yaml(self.new) or 'null'}"


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    return {path.stem: read_recipe(path) for path in sorted(_FOLDER.glob("*.yaml"))}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name; :class:`UdcError` that lists the names if there is none."""
    if name in recipes():
        return recipes()[name]
    close = difflib.get_close_matches(name, recipes(), n=1)
    advice = f"did you mean {close[0]}?" if close else f"there are: {', '.join(recipes())}"
    raise UdcError(f"{name}: no such recipe; {advice}")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe: the comment at its beginning is the page; :class:`UdcError` if a parameter is unknown."""
    text = path.read_text(encoding="utf-8")
    page = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        page.append(line[1:].removeprefix(" "))
    sections = read_yaml(text)
    values = _flat(validate_params(sections, str(path)).model_dump())
    return Recipe(path.stem, "\n".join(page), {name: values[name] for name in _flat(sections)})


def parameter_values(params: Params) -> dict[str, Any]:
    """The value of each parameter by full name."""
    return _flat(params.model_dump())


def _flat(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by full name."""
    names = parameter_names()
    flat: dict[str, Any] = {}
    for key, value in sections.items():
        name = f"{prefix}{key}"
        is_section = isinstance(value, Mapping) and any(each.startswith(f"{name}.") for each in names)
        flat |= _flat(value, f"{name}.") if is_section else {name: value}
    return flat


def followed(params: Params) -> Recipe | None:
    """The recipe whose values the parameters have: all of them, or more than half; None if there is none."""
    values = parameter_values(params)

    def share(recipe: Recipe) -> float:
        return sum(bool(values[name] == value) for name, value in recipe.values.items()) / len(recipe.values)

    best = max(recipes().values(), key=lambda recipe: (share(recipe), len(recipe.values)))
    return best if share(best) > 0.5 else None


def changes(params: Params, recipe: Recipe, settings: Mapping[str, Any]) -> list[Change]:
    """What a recipe changes.

    Values of the recipe that the parameters follow now, and that the new one does not set, return to their defaults.
    Any other parameter that the recipe does not set stays.

    Parameters
    ----------
    settings : values by full name that replace those of the recipe.
    """
    current, defaults = parameter_values(params), parameter_values(Params())
    former = followed(params)
    previous = {name: defaults[name] for name, value in (former.values if former else {}).items()
                if current[name] == value}  # fmt: skip
    new = previous | recipe.values | dict(settings)
    return [Change(name, value, new[name]) for name, value in current.items() if new.get(name, value) != value]


def apply(path: Path, recipe: Recipe, settings: Mapping[str, Any], *, is_dry_run: bool = False) -> list[Change]:
    """Write a recipe into a file of parameters and return what changed. Comments and other values stay.

    Without the file, one with all parameters is written.

    Raises
    ------
    UdcError
        The file, or what it would become, is not valid; it is not changed then.
    """
    exists = path.exists()
    params = load_params(path) if exists else Params()
    differing = changes(params, recipe, settings)
    text = path.read_text(encoding="utf-8") if exists else params_yaml(params)
    new = with_values(text, {change.name: change.new for change in differing}) if differing else text
    validate_params(read_yaml(new), f"{path} with recipe {recipe.name}")
    if not is_dry_run and not (exists and new == text):
        write_atomically(path, new)
    return differing


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """The text of a file of parameters with other values, and its comments, as DVC writes it."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    document = parse_yaml_for_update(text, "params.yaml")
    for name, value in values.items():
        *sections, key = name.split(".")
        section = document
        for each in sections:
            if section.get(each) is None:
                section[each] = {}
            section = section[each]
        section[key] = value
    return str(dumps_yaml(document))


def table(listed: Iterable[Recipe], current: Recipe | None) -> str:
    """Name and title of each recipe; the one that a file follows is marked."""
    lines = [f"{'*' if recipe == current else ' '} {recipe.name:<24}{recipe.title}" for recipe in listed]
    return "\n".join([*lines, *(["* params.yaml follows it"] if current else [])]) + "\n"
