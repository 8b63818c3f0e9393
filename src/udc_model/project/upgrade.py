"""Moves a project to the installed version of this package, and reports what changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from udc_model.config import Params, load_params
from udc_model.config.reference import parameters, to_yaml
from udc_model.config.yaml12 import read_yaml
from udc_model.errors import UdcError
from udc_model.files import Workspace, only_writer, write_atomically
from udc_model.installed import PIN, Pin, installed, read_pin, requirement
from udc_model.project.creation import PARAMS, digest_of, write_pin
from udc_model.project.recipe import with_values
from udc_model.project.templates import CORRECTIONS, IGNORE, REQUIRED, extend_ignore, project_files

_CHANGELOG = "what is new: https://github.com/udc-model/udc-model/blob/main/CHANGELOG.md"
_RUNS = "DVC runs all stages again at the next `dvc repro`; commit the changes first"
_ASIDE = Path(".udc/upgrade")  # new versions of files that the user has changed


def upgrade(folder: Path) -> str:
    """Move a project to the installed version; returns what changed, for a person.

    Files that ``udc init`` wrote and nobody has changed are replaced. Parameters keep their values; new ones are added
    with their defaults.

    Raises
    ------
    UdcError
        The folder has no project, a parameter of it is unknown to the installed version, or another process writes to
        it; nothing was written then.
    """
    root = folder.resolve()
    pin = read_pin(root)
    if pin is None:
        raise UdcError(f"{root / PIN}: no such file; run udc upgrade in the folder of a project that udc init made")
    added = _missing_parameters(root / PARAMS)
    with only_writer(Workspace(root)):
        return _upgrade(root, pin, added)


def _upgrade(root: Path, pin: Pin, added: Mapping[str, object]) -> str:
    files = project_files(root.name)
    names, lines = [], []
    for name, text in files.items():
        state = _update(root, name, text, pin)
        if state != "left":
            names.append(name)
        if state in _REPORTS:
            lines.append(_REPORTS[state].format(name=name, aside=_ASIDE / name))
    if added:
        text = (root / PARAMS).read_text(encoding="utf-8")
        write_atomically(root / PARAMS, with_values(text, added))
        lines += [f"  {PARAMS}: new {name}: {to_yaml(value) or 'null'}" for name, value in added.items()]
        lines.append(f"  (`udc params --write` rewrites {PARAMS} with all descriptions)")
    is_same = pin.installed == installed()
    if is_same and not lines:
        return f"this project uses {installed()} already; nothing changed\n"
    write_pin(root, files, names)
    runs = [] if is_same else [_CHANGELOG, _RUNS]
    return "\n".join([f"{pin.installed} -> {installed()}, installed as {requirement()}", *lines, *runs]) + "\n"


_REPORTS = {
    "replaced": "  {name}: replaced",
    "written": "  {name}: new",
    "changed": "  {name}: you have changed it, so it stays; the new one is {aside}",
}


def _update(root: Path, name: str, text: str, pin: Pin) -> str:
    """Bring a file up to date. Returns what was done: replaced, written, same, changed (by the user) or left."""
    path, recorded = root / name, pin.files.get(name)
    if not path.exists():
        if recorded is not None and name not in (*REQUIRED, CORRECTIONS):
            return "left"  # the user has deleted it
        write_atomically(path, text)
        return "written"
    if name == CORRECTIONS:
        return "same"  # the user's from its second line on
    if name == IGNORE:
        return "replaced" if extend_ignore(path, text) else "same"
    current = path.read_text(encoding="utf-8", errors="replace")  # what is not UTF-8 differs from all that was written
    if current == text:
        return "same"
    if recorded is None:
        return "left"  # the user's, from before udc init
    if digest_of(current) == recorded:
        write_atomically(path, text)
        return "replaced"
    if digest_of(text) == recorded:
        return "same"  # this version has no newer one
    write_atomically(root / _ASIDE / name, text)
    return "changed"


def _missing_parameters(path: Path) -> dict[str, object]:
    """The parameters that a file lacks, by full name, with their defaults."""
    load_params(path)
    present = read_yaml(path.read_text(encoding="utf-8")) or {}
    defaults = dict(_leaves(Params().model_dump(), {parameter.name for parameter in parameters()}))
    return {name: value for name, value in defaults.items() if not _has(present, name)}


def _leaves(sections: Mapping[str, object], names: set[str], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in sections.items():
        name = f"{prefix}{key}"
        if name in names:
            yield name, value
        elif isinstance(value, Mapping):
            yield from _leaves(value, names, f"{name}.")


def _has(sections: object, name: str) -> bool:
    """Whether nested sections contain a name; an empty section has the values of a new one."""
    for key in name.split("."):
        if not isinstance(sections, Mapping) or key not in sections:
            return False
        sections = sections[key]
    return True
