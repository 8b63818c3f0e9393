"""What git and DVC do in the folder of a project; their errors become one line."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from udc_model.errors import UdcError, without_credentials

_NO_REPOSITORY = "not a git repository (or any"  # of the folders above; a damaged one has other words
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
OF_DVC = (".dvc/.gitignore", ".dvcignore")  # written by `dvc init`, which stages them


def git_root(folder: Path) -> Path | None:
    """The git repository that a folder is in; None if there is none.

    Raises
    ------
    UdcError
        git refuses the repository, for example because it belongs to another user.
    """
    command = ["git", "rev-parse", "--show-toplevel"]
    done = _run(command, folder)
    if done.returncode and _NO_REPOSITORY in done.stderr:
        return None
    return Path(_output(command, folder, done)).resolve()


def has_commit(folder: Path) -> bool:
    """Whether the git repository of a folder has a commit."""
    return _run(["git", "rev-parse", "--verify", "--quiet", "HEAD"], folder).returncode == 0


def git(folder: Path, *arguments: str) -> str:
    """Run a git command and return its output; :class:`UdcError` if it fails."""
    return _checked(["git", *arguments], folder)


def make_dvc_repository(folder: Path, *, is_in_git_root: bool) -> None:
    """``dvc init`` in a folder. What is in its ``.dvc`` stays: the cache is there, also if git has no configuration."""
    from dvc.repo import Repo

    with redirect_stdout(io.StringIO()), _one_line_errors("dvc init", folder):
        if (folder / ".dvc").exists():
            _complete_dvc_repository(folder)
        else:
            Repo.init(str(folder), subdir=not is_in_git_root).close()


def _complete_dvc_repository(folder: Path) -> None:
    """Write the files of ``dvc init`` that are missing, and stage them; ``dvc init --force`` would delete the cache."""
    from dvc.config import Config
    from dvc.ignore import init
    from dvc.repo import Repo

    Config.init(str(folder / ".dvc"))
    init(str(folder))
    Repo(str(folder)).close()  # writes .dvc/.gitignore
    git(folder, "add", "--force", "--", ".dvc/config", *(name for name in OF_DVC if (folder / name).exists()))


def command_to_use_git(folder: Path) -> str | None:
    """The command after which DVC uses git in a folder; None if its configuration says so already."""
    from dvc.config import Config

    with _one_line_errors("dvc config", folder):
        config = Config(str(folder / ".dvc"))
        if not config["core"].get("no_scm"):
            return None
        levels = ("local", "repo", "global", "system")  # the first one that has the value decides
        level = next(level for level in levels if "no_scm" in config.load_one(level)["core"])
    return f"dvc config{'' if level == 'repo' else f' --{level}'} --unset core.no_scm"


def check_stages(folder: Path) -> None:
    """Read all ``dvc.yaml`` and ``.dvc`` files of a repository; :class:`UdcError` if DVC cannot read one."""
    from dvc.repo import Repo

    with _one_line_errors("dvc status", folder), Repo(str(folder)) as repository:
        repository.index.check_graph()


def dvc_add(folder: Path, path: str) -> None:
    """``dvc add`` of a file or folder of the project."""
    from dvc.repo import Repo

    with redirect_stdout(io.StringIO()), _one_line_errors("dvc add", folder), Repo(str(folder)) as repository:
        repository.add([str(folder / path)])


@contextmanager
def _one_line_errors(command: str, folder: Path) -> Iterator[None]:
    """Let DVC log nothing; its errors become one line."""
    from dvc.exceptions import DvcException

    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except DvcException as error:
        reason = " ".join(_COLOURS.sub("", f"{error}: {error.__cause__ or ''}").split()).rstrip(": ")
        raise UdcError(f"`{command}` failed in {folder}: {without_credentials(reason)}") from None
    finally:
        logger.setLevel(level)


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


def untracked_files(folder: Path, path: Path) -> list[str]:
    """The files at or below a path that git neither tracks nor ignores."""
    return git(folder, "ls-files", "--others", "--exclude-standard", "--", str(path)).splitlines()


def commit(folder: Path, paths: Sequence[str], message: str) -> str:
    """Commit these files and nothing else; returns the short name of the commit."""
    git(folder, "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "-m", message, "--only", "--", *paths)
    return git(folder, "rev-parse", "--short", "HEAD")


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # the settings of a hook that started this process are those of another folder
    foreign = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    env = {key: value for key, value in os.environ.items() if key not in foreign} | {"LC_ALL": "C"}  # English messages
    try:
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UdcError(f"the {command[0]} command is not on the PATH; install it") from None


def _checked(command: Sequence[str], folder: Path) -> str:
    return _output(command, folder, _run(command, folder))


def _output(command: Sequence[str], folder: Path, done: subprocess.CompletedProcess[str]) -> str:
    """What a command has printed; :class:`UdcError` if it has failed."""
    if done.returncode:
        lines = [line for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
        reason = without_credentials(" ".join(lines[:3])) or f"status {done.returncode}"
        raise UdcError(f"`{' '.join(command[:2])}` failed in {folder}: {reason}")
    return done.stdout.strip()
