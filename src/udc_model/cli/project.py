"""Commands about a project of its own: make it, choose a recipe of parameters, move it to another version."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from udc_model.cli.command import Command, Parser, add_params_file, add_settings


def _init_arguments(parser: Parser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="FOLDER",
                        help="folder of the project (default: this folder)")  # fmt: skip
    parser.add_argument("--images", type=Path, metavar="PATH",
                        help="folder or archive of images: DVC tracks it if it is in FOLDER")  # fmt: skip
    parser.add_argument(
        "--recipe", metavar="NAME", help="parameters to begin with (default: recommended for the images)"
    )
    add_settings(parser, "a parameter to read the images with and to write, as data.encoding=latin-1")


def _init(options: argparse.Namespace) -> None:
    from udc_model.project.creation import create

    sys.stdout.write(create(options.folder, options.images, options.recipe, options.settings).to_text())


def _recipe_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to write into FILE (default: list all)")
    parser.add_argument("--dry-run", action="store_true", help="only print what would change")
    add_params_file(parser)


def _recipe(options: argparse.Namespace) -> None:
    from udc_model.config import load_params
    from udc_model.project.recipe import apply, find_recipe, followed, recipes, table

    has_params = options.params.exists()
    if options.name is None:
        current = followed(load_params(options.params)) if has_params else None
        sys.stdout.write(table(recipes().values(), current))
        return
    recipe = find_recipe(options.name)
    sys.stdout.write(f"{recipe.page}\n\n")
    if not has_params:
        load_params(options.params)  # raises the error
    changes = apply(options.params, recipe, {}, is_dry_run=options.dry_run)
    heading = "would change" if options.dry_run else "changed"
    lines = [f"{options.params}: {heading}", *(f"  {change}" for change in changes)]
    sys.stdout.write("\n".join(lines if changes else [f"{options.params}: has these values already"]) + "\n")


def _upgrade(options: argparse.Namespace) -> None:
    from udc_model.project.upgrade import upgrade

    sys.stdout.write(upgrade(Path()))


COMMANDS = (
    Command("Build", "init", "make a project of its own, here or in a folder", _init, _init_arguments),
    Command("Build", "recipe", "list sets of parameters for kinds of images, or write one into a file", _recipe,
            _recipe_arguments),
    Command("Build", "upgrade", "move a project that udc init made to the installed version", _upgrade),
)  # fmt: skip
