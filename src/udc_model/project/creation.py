"""Makes a project in a folder: repositories, files, images, parameters. A second call completes an interrupted one."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from udc_model.config import full_name, load_params, mapping_of, override_params
from udc_model.data.inspection import inspect
from udc_model.errors import UdcError
from udc_model.files import Workspace, has_contents, make_folder, only_writer, write_atomically
from udc_model.installed import PIN, check_pin, installed, read_pin
from udc_model.project.commands import (
    OF_DVC,
    command_to_use_git,
    commit,
    dvc_add,
    ensure_identity,
    git,
    git_root,
    has_commit,
    is_tracked,
    make_dvc_repository,
    untracked_files,
)
from udc_model.project.recipe import Change, Recipe, apply, find_recipe, parameter_values
from udc_model.project.recommendation import Recommendation, has_accelerator, recommend
from udc_model.project.templates import IGNORE, RAW_DATA, REQUIRED, extend_ignore, project_files, raw_data

PARAMS = "params.yaml"
_LONG = 100  # epochs, from which a first look needs fewer


@dataclass
class Creation:
    """What was done, for a person."""

    root: Path
    lines: list[str] = field(default_factory=list)
    epochs: int = 0

    def to_text(self) -> str:
        """The lines, and the command that trains."""
        here = Path.cwd().resolve()
        change = [] if self.root == here else [f"  cd {os.path.relpath(self.root, here)}"]
        first = [
            "",
            f"`dvc repro` trains all {self.epochs:,} epochs, and says at its start how long that takes. A shorter run:",
            *change,
            f"  udc run --name first -S train.epochs={max(1, self.epochs // 10)}",
        ]
        train = ["", "Train, and record the result:", *change, "  dvc repro"]
        return "\n".join([*self.lines, *train, *(first if self.epochs > _LONG else [])]) + "\n"


def create(
    folder: Path, images: Path | None = None, recipe: str | None = None, settings: Sequence[str] = ()
) -> Creation:
    """Make a project in a folder, or complete it; no existing file is overwritten.

    Parameters
    ----------
    images : folder or archive of images. In the project's folder DVC tracks them; elsewhere the project refers to them.
    recipe : name of the recipe; by default the recommended one, without images that of the demo.
    settings : parameters as ``data.encoding=latin-1``, with which the images are read and which are written.

    Raises
    ------
    UdcError
        The images are not recognised, files of the project exist already, another process writes to the folder, or git
        or DVC fail. Before the first error of git or DVC, nothing was written.
    """
    root = folder.resolve()
    chosen = find_recipe(recipe) if recipe else None
    recommendation = None
    values = _values(images, settings)
    if images is not None:
        path = _data_path(root, images)
        data = override_params(["data.source=auto", *settings]).data.model_copy(update={"path": str(images)})
        found = inspect(data)
        recommendation = recommend(found, recipe, has_gpu=has_accelerator())
        all_settings = recommendation.settings | {"data.source": "auto", "data.path": path} | values
        recommendation = replace(recommendation, settings=all_settings)
    files = project_files(root.name)
    _check_existing(root, files)
    _check_repositories(root)
    if images is not None:
        _is_tracked(root, path)
    make_folder(root)
    creation = Creation(root)
    with only_writer(Workspace(root)):
        has_dvc = _make_repositories(creation)
        written = _write_files(creation, files, has_dvc)
        if images is not None and recommendation is not None:
            creation.lines += [f"images: {path}", *(f"  {line}" for line in found.lines)]
            _write_params(creation, recommendation, values)  # before DVC runs: dvc.yaml refers to data.path
            written += _track(creation, path)
        elif chosen is not None or not (root / PARAMS).exists():
            changes = apply(root / PARAMS, chosen or find_recipe("digits"), {})
            note = "" if chosen else ", of handwritten digits; `udc init --images FOLDER` is for your own"
            creation.lines.append(f"recipe: {(chosen or find_recipe('digits')).name}{note}")
            creation.lines += [f"  {change}" for change in changes] if chosen else []
            written += _make_raw_data(root)
        _record(creation, [*written, PARAMS])
    creation.epochs = load_params(root / PARAMS).train.epochs
    return creation


def _data_path(root: Path, images: Path) -> str:
    """``data.path`` of images: relative to the project if they are in its folder, else absolute."""
    if not images.exists():
        raise UdcError(f"--images: {images} does not exist")
    path = images.absolute()
    target = path.resolve()
    if root.is_relative_to(target):
        raise UdcError(f"--images: {images} contains the project's folder {root}; make the project in a folder of its "
                       f"own: udc init FOLDER --images {images}")  # fmt: skip
    if target.is_relative_to(root):
        return target.relative_to(root).as_posix()
    is_link_of_project = (path.parent.resolve() / path.name).is_relative_to(root)  # DVC cannot track it
    return str(target if is_link_of_project else Path(os.path.normpath(path)))


def _check_existing(root: Path, files: Mapping[str, str]) -> None:
    """Check that the folder is a project of this version already, or has nothing that a project needs or replaces."""
    if (root / PIN).exists():
        check_pin(root)
        return
    needed = [*(name for name in files if name in REQUIRED), PARAMS]
    if existing := [name for name in needed if (root / name).exists()]:
        raise UdcError(f"{root}: has {', '.join(existing)} already, and is no project of udc init; nothing was "
                       "written. Make the project in another folder: udc init FOLDER")  # fmt: skip
    if outputs := [path.relative_to(root).as_posix() for path in Workspace(root).outputs if has_contents(path)]:
        raise UdcError(f"{root}: has {', '.join(outputs)}, which the stages of a project would replace; nothing was "
                       "written. Rename it, or make the project in another folder: udc init FOLDER")  # fmt: skip


def _check_repositories(root: Path) -> None:
    """Check that git accepts the repository that the folder is in, if any, and that DVC uses git."""
    git_root(_existing(root))
    if command := command_to_use_git(root):
        raise UdcError(f"{root}: DVC's configuration has core.no_scm, and experiments need git; nothing was written. "
                       f"Run `{command}`, then udc init again")  # fmt: skip


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _make_repositories(creation: Creation) -> bool:
    """Make a git and a DVC repository, unless the folder is in one or is one; returns whether DVC's was there."""
    root, made = creation.root, []
    if (top := git_root(root)) is None:
        git(root, "init", "--quiet")
        made.append("git")
    has_dvc = (root / ".dvc/config").exists()
    if not has_dvc:
        make_dvc_repository(root, is_in_git_root=top in (None, root))
        made.append("DVC")
    creation.lines.append(f"project: {root}" + (f" (new {' and '.join(made)} repository)" if made else ""))
    return has_dvc and bool((root / ".dvc/config").read_bytes().strip())


def _write_files(creation: Creation, files: Mapping[str, str], has_dvc: bool) -> list[str]:
    """Write the files that are missing, the pin first; returns the names of all files of the project."""
    root, kept = creation.root, []
    if not (root / PIN).exists():
        write_pin(root, files, [name for name in files if _is_missing(root, name, has_dvc)])
    pin = read_pin(root)
    assert pin is not None
    for name, text in files.items():
        if name == IGNORE and (root / name).exists():
            extend_ignore(root / name, text)
        elif _is_missing(root, name, has_dvc) and name in pin.files:
            write_atomically(root / name, text)
        elif name not in pin.files:
            kept.append(name)
    if kept:
        creation.lines.append(f"not written, because they exist: {', '.join(kept)}")
    return [str(PIN), *(name for name in files if name in pin.files or name == IGNORE)]


def _make_raw_data(root: Path) -> list[str]:
    """Make the folder of the default ``data.path``, if it is missing; returns the names of its files."""
    if (root / RAW_DATA).parent.exists():
        return []
    make_folder((root / RAW_DATA).parent)
    write_atomically(root / RAW_DATA, raw_data())
    return [RAW_DATA]


def _is_missing(root: Path, name: str, has_dvc: bool) -> bool:
    """Whether ``udc init`` writes a file; the configuration that ``dvc init`` has just made is empty."""
    return not (root / name).exists() or (name == ".dvc/config" and not has_dvc)


def write_pin(root: Path, files: Mapping[str, str], names: list[str]) -> None:
    """Write the pin of a project for the installed version and the files of these names."""
    digests = {name: digest_of(files[name]) for name in names}
    pin = {"version": installed().version, "code": installed().code, "files": digests}
    write_atomically(root / PIN, json.dumps(pin, indent=2) + "\n")


def digest_of(text: str) -> str:
    """SHA-256 of a text file."""
    return hashlib.sha256(text.encode()).hexdigest()


def _is_tracked(root: Path, path: str) -> bool:
    """Whether DVC or git tracks the images; :class:`UdcError` if git tracks a part of them."""
    if Path(path).is_absolute() or git_root(root) is None:
        return False
    if (root / f"{path}.dvc").exists():
        return True
    if not is_tracked(root, root / path):
        return False
    if untracked := untracked_files(root, root / path):
        raise UdcError(f"--images: git tracks a part of {path}, and not {untracked[0]} ({len(untracked)} file(s)). "
                       f"Let DVC track all of it: `git rm -r --cached {shlex.quote(path)}`; or git: "
                       f"`git add {shlex.quote(path)}`. Then run udc init again")  # fmt: skip
    return True


def _track(creation: Creation, path: str) -> list[str]:
    """Let DVC track the images unless they are outside, or tracked; returns the files of git that this makes."""
    root = creation.root
    if Path(path).is_absolute():
        creation.lines.append("images: outside of the project, which refers to them; they stay where they are")
        return []
    owner = root / f"{path}.dvc"
    if _is_tracked(root, path):
        creation.lines.append("images: tracked already")
    else:
        dvc_add(root, path)
        creation.lines.append("images: tracked by DVC now")
    ignore = owner.with_name(IGNORE)
    return [each.relative_to(root).as_posix() for each in (owner, ignore) if each.exists()]


def _values(images: Path | None, settings: Sequence[str]) -> dict[str, Any]:
    """The values of parameters that ``-S`` sets, by full name."""
    names = [full_name(setting.partition("=")[0]) for setting in settings]
    if settings and images is None:
        raise UdcError("-S: is for the images; add --images, or set the parameters in params.yaml")
    if "data.path" in names:
        raise UdcError("-S data.path: is that of --images; leave it out")
    values = parameter_values(override_params(settings))
    return {name: values[name] for name in (mapping_of(each) or each for each in names)}


def _write_params(creation: Creation, recommendation: Recommendation, values: Mapping[str, Any]) -> None:
    """Write the recipe and the place of the images into the parameters, unless they have the place already.

    ``values`` are those of ``-S``, which the settings of the recommendation contain.
    """
    file = creation.root / PARAMS
    current = parameter_values(load_params(file)) if file.exists() else {}
    if current.get("data.path") == recommendation.settings["data.path"]:
        differing = [name for name, value in values.items() if current[name] != value]
        advice = f"; set {', '.join(differing)} there" if differing else ""
        creation.lines.append(f"{PARAMS}: uses these images already; it stays as it is{advice}")
        return
    changes = apply(file, recommendation.recipe, recommendation.settings)
    creation.lines += recommendation.to_text().splitlines()
    creation.lines.append(f"  {PARAMS}: " + _summary(changes, recommendation.recipe))


def _summary(changes: list[Change], recipe: Recipe) -> str:
    return f"{len(changes)} parameters set; `udc recipe {recipe.name} --dry-run` explains them"


def _record(creation: Creation, names: list[str]) -> None:
    """Put the files into git's index; commit them if the repository has no commit, which a run needs as its origin."""
    root = creation.root
    is_first = not has_commit(root)
    names = [name for name in (*dict.fromkeys(names), *(OF_DVC if is_first else ())) if (root / name).exists()]
    git(root, "add", "--force", "--", *names)
    if not is_first:
        if git(root, "diff", "--cached", "--name-only", "--", *names):
            creation.lines.append(f"git: the files are staged in the repository {git_root(root)}; commit them")
        return
    if ensure_identity(root):
        creation.lines.append("git: you have no user.name or user.email; this repository got `udc`, change it with "
                              "`git config user.name NAME` and `git config user.email ADDRESS`")  # fmt: skip
    creation.lines.append(f"git: first commit {commit(root, names, 'Make the project (udc init)')}")
