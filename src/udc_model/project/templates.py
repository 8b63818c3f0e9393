"""The files of a project, from the templates that the repository of this package uses too."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from udc_model.data.corrections import EMPTY
from udc_model.files import atomic_file
from udc_model.installed import PIN, requirement
from udc_model.stages.code import STAGES

IGNORE = ".gitignore"
CORRECTIONS = "data/corrections.csv"
RAW_DATA = "data/raw/README.md"  # git keeps no empty folder, and DVC needs the one that data.path names
_FOLDER = Path(__file__).parent / "templates"
_TEMPLATES = {
    "dvc.yaml": "dvc.yaml.j2",
    "MLproject": "MLproject.j2",
    "python_env.yaml": "python_env.yaml.j2",
    "Makefile": "Makefile.j2",
    "README.md": "README.md.j2",
    IGNORE: "gitignore",
    ".dvc/config": "dvc/config",
    ".dvc/plots.html": "dvc/plots.html",
    ".dvc/plots/reliability.json": "dvc/plots/reliability.json",
    ".github/workflows/udc.yml": "workflow.yml.j2",
}
_RAW_DATA_TEMPLATE = "raw_data.md"
REQUIRED = ("dvc.yaml", "MLproject", "python_env.yaml")  # a project needs these as they are; others may be the user's


def project_files(name: str) -> dict[str, str]:
    """The texts of the files of a project, by path, except ``params.yaml`` and the pin.

    Parameters
    ----------
    name : of the project.
    """
    python_version = ".".join(platform.python_version_tuple()[:2])
    values = {"name": _plain(name), "python_version": python_version, "requirement": requirement()}
    pin = f"      - {PIN}:\n          - version\n          - code\n"
    texts = {path: _render(template, python="python", pin=pin, code=dict.fromkeys(STAGES, ""), **values)
             for path, template in _TEMPLATES.items()}  # fmt: skip
    return texts | {CORRECTIONS: EMPTY}


def repository_files() -> dict[str, str]:
    """The texts of the files of this package's repository that are made from the same templates, by path."""
    values: dict[str, object] = {"name": "udc-model", "python_version": "3.11", "requirement": "-r requirements.lock"}
    code = {stage: "".join(f"      - src/udc_model/{path}\n" for path in paths) for stage, paths in STAGES.items()}
    values |= {"is_repository": True, "python": "PYTHONPATH=src python", "pin": "", "code": code}
    names = ("dvc.yaml", "MLproject", "python_env.yaml", ".dvc/config")
    texts = {path: _render(_TEMPLATES[path], **values) for path in names}
    return texts | {RAW_DATA: raw_data(), CORRECTIONS: EMPTY}


def raw_data() -> str:
    """The text of ``data/raw/README.md``, of a project that has no images yet."""
    return _render(_RAW_DATA_TEMPLATE)


def _render(template: str, **values: object) -> str:
    text = (_FOLDER / template).read_text(encoding="utf-8")
    if not template.endswith(".j2"):
        return text
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(text).render({"is_repository": False} | values)


def _plain(name: str) -> str:
    """A name that YAML and Markdown read as it is."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "project"


def extend_ignore(path: Path, text: str) -> bool:
    """Add the lines of a text that a ``.gitignore`` lacks; returns whether there were any. Its other bytes stay."""
    current = path.read_bytes().decode("utf-8", "surrogateescape")
    extended = with_lines(current, text)
    if extended == current:
        return False
    with atomic_file(path) as scratch:
        scratch.write_bytes(extended.encode("utf-8", "surrogateescape"))
    return True


def with_lines(text: str, other: str) -> str:
    """A text with those lines of another one at its end that it lacks, except comments and empty lines."""
    present = set(text.splitlines())
    missing = [line for line in other.splitlines() if line and not line.startswith("#") and line not in present]
    if not missing:
        return text
    return "\n".join([*([text.rstrip("\n"), ""] if text.strip() else []), *missing]) + "\n"
