"""DVC's cache: what no commit, experiment, queue entry, stash or run names, found and deleted by DVC itself.

``dvc gc`` keeps what the workspace, commits and experiments name. This project has further names: entries of DVC's
queue and of git's stash, which are in no branch, and MLflow runs, which record the hashes of their data and outputs.
They are written into an empty DVC project that DVC is asked to consider too (its option ``--projects``).
"""

from __future__ import annotations

import io
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from udc_model.errors import UdcError, without_credentials
from udc_model.maintenance.holdings import Holding, Use, size_of
from udc_model.maintenance.running import running_processes
from udc_model.project.commands import git, make_dvc_repository

if TYPE_CHECKING:
    from dvc.repo import Repo

_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")
_COVERED = ("refs/heads/", "refs/tags/", "refs/remotes/")  # by DVC's --all-commits
_REMOVED = re.compile(r"Removing (?P<path>/.+)")


def holdings(root: Path, named_by_runs: Iterable[str]) -> list[Holding]:
    """The cache of a project, and what of it DVC would delete.

    Parameters
    ----------
    named_by_runs : hashes that MLflow runs and journals name.

    Raises
    ------
    UdcError
        It cannot be known what is named; nothing may be deleted then.
    """
    names = frozenset(named_by_runs)
    with _repository(root) as repo:
        cache = Path(repo.cache.local.path)
        if not cache.is_dir():
            return []
        total, num_objects = size_of(cache), sum(1 for _ in cache.glob("[0-9a-f][0-9a-f]/*"))
        if not cache.resolve().is_relative_to(root.resolve()):
            return [Holding("DVC's cache", num_objects, total, Use.NEEDED, f"{cache} is outside of the project, so "
                            "other projects may use it; `dvc gc --projects` takes them into account")]  # fmt: skip
        paths = _unused(repo, root, names, is_dry=True)
    unused = sum(map(size_of, paths))
    needed = Holding("objects in DVC's cache", num_objects - len(paths), total - unused, Use.NEEDED,
                     "named by the workspace, a commit, experiment, queue entry, stash or run")  # fmt: skip
    if not paths:
        return [needed]
    return [needed, Holding("objects in DVC's cache", len(paths), unused, Use.UNUSED,
                            "named by nothing",
                            lambda: _delete(root, names))]  # fmt: skip


def _delete(root: Path, names: frozenset[str]) -> None:
    with _repository(root) as repo:
        _unused(repo, root, names, is_dry=False)


@contextmanager
def _repository(root: Path) -> Iterator[Repo]:
    """The DVC repository of a project, whose lock is held: no other command of DVC starts meanwhile."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo
    from scmrepo.exceptions import SCMError

    try:
        with closing(Repo(str(root))) as repo, lock_repo(repo):
            yield repo
    except (DvcException, SCMError) as error:
        reason = " ".join(f"{error}: {error.__cause__ or ''}".split()).rstrip(": ")
        raise UdcError(f"DVC's cache: it cannot be known what is used ({without_credentials(reason)}); `dvc fetch "
                       "--all-commits` gets missing listings") from error  # fmt: skip


def _unused(repo: Repo, root: Path, names: frozenset[str], *, is_dry: bool) -> list[Path]:
    """The objects that nothing names, after they are deleted unless ``is_dry``; the lock of ``repo`` is held.

    ``force`` is off: DVC refuses if the listing of a named folder is missing, whose files it would not recognise.
    """
    if not is_dry and (running := running_processes(root)):
        raise UdcError(f"{running[0]}: may be using DVC's cache; wait until it has ended")
    removed = _Removed()
    loggers = [logging.getLogger(name) for name in ("dvc_data.hashfile.gc", "dvc")]
    levels = [each.level for each in loggers]
    loggers[0].addHandler(removed)
    loggers[0].propagate, propagates = False, loggers[0].propagate
    loggers[0].setLevel(logging.INFO)
    loggers[1].setLevel(logging.CRITICAL)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="udc-gc-") as folder,
            redirect_stdout(io.StringIO()),  # without a terminal, DVC asks nothing
            redirect_stderr(io.StringIO()),
        ):
            _write_names(Path(folder), repo, names | set(_stashed(root)))
            repo.gc(workspace=True, all_commits=True, all_experiments=True, repos=[folder], force=False, dry=is_dry)
    finally:
        loggers[0].removeHandler(removed)
        loggers[0].propagate = propagates
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
    return removed.paths


class _Removed(logging.Handler):
    """Collects the paths that a dry run of DVC would delete, which it reports only in its log."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[Path] = []

    def emit(self, record: logging.LogRecord) -> None:
        if match := _REMOVED.fullmatch(record.getMessage()):
            self.paths.append(Path(match["path"]))


def _write_names(folder: Path, repo: Repo, names: Iterable[str]) -> None:
    """Make an empty DVC project, with the same cache, that names those of the hashes whose objects are in the cache."""
    from dvc.repo import Repo

    git(folder, "init", "--quiet")
    make_dvc_repository(folder, is_in_git_root=True)
    with Repo(str(folder)) as other, other.config.edit() as config:
        config["cache"]["dir"] = str(Path(repo.cache.local.path).parents[1])  # above files/md5
    cache = repo.cache.local
    present = [name for name in sorted(names) if _HASH.fullmatch(name) and Path(cache.oid_to_path(name)).is_file()]
    if present:
        outs = [{"md5": name, "hash": "md5", "path": f"object-{name}"} for name in present]
        (folder / "names.dvc").write_text(json.dumps({"outs": outs}), encoding="utf-8")


def _stashed(root: Path) -> Iterator[str]:
    """The hashes in commits that only git's stash, DVC's queue or another reference of git names."""
    for line in git(root, "for-each-ref", "--format=%(objecttype) %(refname)").splitlines():
        kind, reference = line.split(" ", 1)
        if kind != "commit" or reference.startswith(_COVERED):
            continue
        earlier = git(root, "log", "--walk-reflogs", "--format=%H", reference, "--").split()  # entries of a stash
        for commit in dict.fromkeys([reference, *earlier]):
            yield from _hashes_of_commit(root, commit)


def _hashes_of_commit(root: Path, commit: str) -> Iterator[str]:
    for name in git(root, "ls-tree", "-r", "--name-only", "-z", commit).split("\0"):
        if name.endswith(".dvc") or Path(name).name == "dvc.lock":
            yield from hashes(git(root, "show", f"{commit}:./{name}"))


def hashes(listing: str) -> Iterator[str]:
    """The hashes in a ``.dvc`` file or a ``dvc.lock``; none if it is damaged."""
    try:
        content = yaml.safe_load(listing)
    except yaml.YAMLError:
        return
    if not isinstance(content, Mapping):
        return
    stages = content.get("stages")
    for entry in [content, *(stages.values() if isinstance(stages, Mapping) else ())]:
        yield from _of_entry(entry)


def _of_entry(entry: Any) -> Iterator[str]:
    if isinstance(entry, Mapping):
        for kind in ("outs", "deps"):
            for item in entry.get(kind) or ():
                if isinstance(item, Mapping) and isinstance(item.get("md5"), str):
                    yield item["md5"]
