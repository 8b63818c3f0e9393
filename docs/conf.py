"""Sphinx configuration. Pages are Markdown (MyST); reference tables and the API come from the code at build time."""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))
os.environ |= {"COLUMNS": "100", "NO_COLOR": "1", "UDC_KERNELS": "off", "HF_HUB_OFFLINE": "1"}

from udc_model.cli import COMMANDS, build_parser  # noqa: E402
from udc_model.config.presets import PRESETS  # noqa: E402
from udc_model.config.reference import parameters_markdown  # noqa: E402

REPOSITORY = "https://github.com/udc-model/udc-model"
PACKAGES = ("config", "data", "fetch", "models", "decisions", "training", "inference", "evaluation", "tracking",
            "experiments", "stages", "project", "maintenance")  # fmt: skip

project = "UDC-Model"
author = "UDC-Model contributors"
copyright = f"2026, {author}"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # signatures stay short; the docstrings give shapes and units
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # docstrings of torch and pydantic are not written for this site
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = f"UDC-Model {release}"
html_theme_options = {
    "icon_links": [
        {"name": "Repository", "url": "https://github.com/udc-model/udc-model", "icon": "fa-brands fa-github"}
    ],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False


def commands_markdown() -> str:
    """The help text of each ``udc`` command, as Markdown."""
    parts = ["## udc", _as_text(build_parser().format_help())]
    for command in COMMANDS:
        parser = argparse.ArgumentParser(prog=f"udc {command.name}", description=f"{command.help}.")
        command.add_arguments(parser)
        parts += [f"## udc {command.name}", _as_text(parser.format_help())]
    return "\n\n".join(parts)


def _as_text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def api_markdown(package: str) -> str:
    """A section with the documented members of each module of a package, as Markdown."""
    folder = ROOT / "src" / package.replace(".", "/")
    names = sorted(info.name for info in pkgutil.iter_modules([str(folder)]) if not info.ispkg)
    directive = "```{{eval-rst}}\n.. automodule:: {}\n   :members:\n```"
    return "\n\n".join(f"## {name}\n\n{directive.format(f'{package}.{name}')}" for name in names)


def presets_markdown() -> str:
    """A Markdown table of the published sizes."""
    lines = ["| `model.preset` | `model_type` | stages | image size in pixels |", "| --- | --- | --- | --- |"]
    for name, preset in PRESETS.items():
        sizes = ", ".join(map(str, preset.settings["hidden_sizes"]))
        lines.append(f"| `{name}` | {preset.model_type} | blocks {preset.settings['depths']}, channels [{sizes}] | "
                     f"{preset.image_size} |")  # fmt: skip
    return "\n".join(lines)


GENERATED: dict[str, Callable[[], str]] = {
    "<!-- parameters -->": parameters_markdown,
    "<!-- presets -->": presets_markdown,
    "<!-- commands -->": commands_markdown,
    **{f"<!-- api {name} -->": partial(api_markdown, f"udc_model.{name}") for name in PACKAGES},
}


def fill(app: Any, page: str, source: list[str]) -> None:
    """Replace the markers of a page by what the code says."""
    for marker, text in GENERATED.items():
        if marker in source[0]:
            source[0] = source[0].replace(marker, text())


def setup(app: Any) -> None:
    """Connect `fill` to each page that Sphinx reads."""
    app.connect("source-read", fill)
