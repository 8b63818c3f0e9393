"""Runs git and DVC in the folder of a project; their errors become one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from udc_model.errors import UdcError, without_credentials


def git_root(folder: Path) -> Path | None:
    """The git repository that a folder is in; None if there is none."""
    done = _run(["git", "rev-parse", "--show-toplevel"], folder)
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


def has_commit(folder: Path) -> bool:
    """Whether the git repository of a folder has a commit."""
    return _run(["git", "rev-parse", "--verify", "--quiet", "HEAD"], folder).returncode == 0


def git(folder: Path, *arguments: str) -> str:
    """Run a git command and return its output; :class:`UdcError` if it fails."""
    return _checked(["git", *arguments], folder)


def dvc(folder: Path, *arguments: str) -> str:
    """Run a DVC command and return its output; its progress is shown; :class:`UdcError` if it fails."""
    return _checked([sys.executable, "-m", "dvc", *arguments], folder)


def ensure_identity(folder: Path) -> bool:
    """Give the git repository of a folder a user if git knows none, without whom neither git nor DVC makes a commit.

    Returns whether it had none.
    """
    missing = [name for name in ("user.name", "user.email")
               if not _run(["git", "config", name], folder).stdout.strip()]  # fmt: skip
    for name in missing:
        git(folder, "config", name, {"user.name": "udc", "user.email": "udc@localhost"}[name])
    return bool(missing)


def is_tracked(folder: Path, path: Path) -> bool:
    """Whether git tracks a file, or files below a folder."""
    return bool(git(folder, "ls-files", "--", str(path)))


def commit(folder: Path, paths: Sequence[str], message: str) -> str:
    """Commit these files and nothing else; returns the short name of the commit."""
    git(folder, "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "-m", message, "--only", "--", *paths)
    return git(folder, "rev-parse", "--short", "HEAD")


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # the settings of an experiment or hook that started this process are those of another folder
    foreign = ("DVC_ROOT", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    env = {key: value for key, value in os.environ.items() if key not in foreign}
    env["DVC_NO_ANALYTICS"] = "true"
    try:
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UdcError(f"the {command[0]} command is not on the PATH; install it") from None


def _checked(command: Sequence[str], folder: Path) -> str:
    done = _run(command, folder)
    if done.returncode:
        words = command[2:] if command[1] == "-m" else command
        lines = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
        reason = without_credentials(" ".join(lines[:3])) or f"status {done.returncode}"
        raise UdcError(f"`{' '.join(words[:2])}` failed in {folder}: {reason}")
    return done.stdout.strip()
