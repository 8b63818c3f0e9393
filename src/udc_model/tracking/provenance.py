"""The origin of a run: commit, changes and DVC experiment as tags; packages, host, command and locks as a table."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from udc_model.errors import UdcError, one_line, without_credentials
from udc_model.tracking.tags import ATTEMPT, BASELINE, COMMIT, DATA, DIRTY, EXPERIMENT_NAME, FOLD, STUDY

STUDY_KEY = "UDC_STUDY_KEY"  # environment variable: key of the study whose run the runs of stages are below
STUDY_PART = "UDC_STUDY_PART"  # environment variable: the fold of a cross-validation
STUDY_ATTEMPT = "UDC_STUDY_ATTEMPT"  # environment variable: number of the attempt at a trial of a shared study
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow", "dvc", "mlflow")


def provenance(stage: str) -> dict[str, str]:
    """The tags of a run that starts now in the current folder."""
    tags = {"mlflow.source.name": f"udc {stage}", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if name := os.environ.get("DVC_EXP_NAME"):
        tags[EXPERIMENT_NAME] = name
    if baseline := os.environ.get("DVC_EXP_BASELINE_REV"):
        tags[BASELINE] = baseline
    if study := os.environ.get(STUDY_KEY):
        tags[STUDY] = study
    if part := os.environ.get(STUDY_PART):
        tags[FOLD] = part
    if attempt := os.environ.get(STUDY_ATTEMPT):
        tags[ATTEMPT] = attempt
    if commit := git("rev-parse", "HEAD"):
        tags |= {COMMIT: commit, DIRTY: str(bool(_changed())).lower()}
    deps = locked_stages(Path("dvc.lock")).get("prepare", {}).get("deps", ())
    if data := {dep["path"]: dep["md5"] for dep in deps if "md5" in dep and not dep["path"].startswith("src/")}:
        tags[DATA] = json.dumps(data)
    return tags


def environment() -> dict[str, Any]:
    """What a run that starts now in the current folder runs with, as JSON values.

    ``versions`` of packages, ``host``, ``command``, and SHA-256 of what determines the data: each ``.dvc`` file and
    ``dvc.lock`` (``files``), and the locked entry of each stage (``stages``).
    """
    # .dvc files of raw data are beside the data; no recursive search, which may meet millions of files
    files = [path for path in (*Path().glob("*.dvc"), *Path("data").glob("*.dvc"), Path("dvc.lock")) if path.is_file()]
    locked = locked_stages(Path("dvc.lock"))
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "command": without_credentials(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "files": {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)},
        "stages": {name: hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
                   for name, entry in locked.items()},
    }  # fmt: skip


def identity(tags: Mapping[str, str]) -> dict[str, str]:
    """What the tags say about a run's origin, with readable names: commit, DVC experiment; and the versions."""
    names = {COMMIT: "commit", DIRTY: "with uncommitted changes", EXPERIMENT_NAME: "DVC experiment",
             BASELINE: "baseline"}  # fmt: skip
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    return {title: tags[tag] for tag, title in names.items() if tag in tags} | {"versions": ", ".join(versions)}


def uncommitted() -> str:
    """A patch, with binary files, from the last commit to the working tree; empty if they are equal.

    Of new files only those in the index, as ``.dvc`` files after `dvc add`, and those in ``src`` are in it; others may
    contain secrets.
    """
    if not git("rev-parse", "HEAD") or not _changed():
        return ""
    with tempfile.TemporaryDirectory() as scratch:  # a separate index, so that the user's does not change
        env = os.environ | {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        git("read-tree", "HEAD", env=env)
        git("add", "--update", ".", env=env)
        git("add", "--", "src", env=env)
        staged = git(
            "diff",
            "--cached",
            "--name-only",
            "--diff-filter=A",
            "--no-renames",
            "--relative",
            "-z",
            "HEAD",
            strip=False,
        )
        if names := [name for name in staged.split("\0") if name and Path(name).is_file()]:
            git("add", "--force", "--", *names, env=env)
        # not `git diff`, whose output depends on the user's settings, as diff.noprefix
        options = ("--cached", "--patch", "--binary", "--find-renames", "--no-ext-diff", "--no-color")
        return git("diff-index", *options, "HEAD", env=env, strip=False)


def _changed() -> str:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return changed or git("status", "--porcelain", "--untracked-files=all", "--", "src")


def locked_stages(lock: Path) -> dict[str, dict[str, Any]]:
    """The stages in a ``dvc.lock`` file, by name; empty if there is no such file.

    Raises
    ------
    UdcError
        The file is damaged, as by a merge conflict.
    """
    try:
        contents = lock.read_bytes()
    except FileNotFoundError:
        return {}
    return stages_of(contents.decode("utf-8", errors="replace"), str(lock))


def stages_of(lock: str, origin: str) -> dict[str, dict[str, Any]]:
    """The stages in the text of a ``dvc.lock``, by name.

    Raises
    ------
    UdcError
        The text is damaged; the message begins with ``origin``.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
    try:
        stages = (yaml.load(lock, loader) or {}).get("stages") or {}
        if not all(isinstance(entry, dict) for entry in stages.values()):
            raise TypeError("a stage is no mapping")
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        conflicts = [number for number, line in enumerate(lock.splitlines(), 1) if line.startswith("<<<<<<<")]
        if conflicts:
            raise UdcError(f"{origin}: has a merge conflict in line {conflicts[0]}; resolve it, then run `dvc repro`"
                           ) from None  # fmt: skip
        raise UdcError(f"{origin}: is damaged ({one_line(error)[:200]}); restore the version of a commit, as by "
                       "`git checkout HEAD dvc.lock`") from None  # fmt: skip
    return dict(stages)


def absent_from_copies(path: Path) -> str | None:
    """What of a path the copies of the repository lack in which DVC runs queued and ``--temp`` experiments.

    A copy has what git's index has, and the data of the ``.dvc`` files in it.

    Returns
    -------
    That neither git nor DVC tracks a file or folder at or below the path, and the command that changes this. None if
    there is no such file, the path is outside of the repository, or there is no repository.
    """
    top = git("rev-parse", "--show-toplevel")
    absolute = path.absolute()
    if not top or not absolute.is_relative_to(top):
        return None
    status = ("status", "--porcelain", "-z", "--ignored", "--untracked-files=normal")
    for entry in git("-C", top, *status, "--", str(absolute)).split("\0"):
        each = Path(entry[3:])
        if entry[:2] not in ("??", "!!") or each.name.startswith(".") or each.suffix == ".dvc":
            continue
        owners = [*_dvc_files(each), *_dvc_files(absolute.relative_to(top))]
        if not git("-C", top, "ls-files", "--", *map(str, owners)):
            by_dvc = [owner for owner in owners if (Path(top) / owner).is_file()]
            command = f"git add {by_dvc[0].as_posix()}" if by_dvc else f"dvc add {each.as_posix()}"
            return f"git's index has neither {each.as_posix()} nor a .dvc file of it; run `{command}`"
    return None


def _dvc_files(path: Path) -> list[Path]:
    """The ``.dvc`` files that may track a path."""
    return [each.with_name(f"{each.name}.dvc") for each in (path, *path.parents) if each.name]


def dvc_hash(path: Path) -> str:
    """The hash of a file or folder in ``dvc.lock`` of DVC 3: MD5, of a folder that of the JSON list of its files."""
    if path.is_file():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    files = sorted((file.relative_to(path).parts, file) for file in path.rglob("*") if file.is_file())
    entries = [{"md5": dvc_hash(file), "relpath": "/".join(parts)} for parts, file in files]
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def git(*arguments: str, env: Mapping[str, str] | None = None, strip: bool = True) -> str:
    """The output of a git command in the current folder; empty if it fails (there may be no repository)."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=True, env=env)
    except (OSError, subprocess.CalledProcessError):
        return ""
    text = done.stdout.decode("utf-8", errors="surrogateescape")
    return text.strip() if strip else text
