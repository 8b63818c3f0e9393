"""Checks of a project on this machine: its files, its disk, what runs in it and what is pending."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from udc_model.errors import UdcError
from udc_model.files import Workspace, size_text
from udc_model.installed import check_pin, read_pin
from udc_model.maintenance.findings import Finding, Status
from udc_model.maintenance.holdings import size_of
from udc_model.maintenance.running import running_stages
from udc_model.project.commands import check_stages, command_to_use_git, git_root, has_commit
from udc_model.tracking.journal import is_written, pending_journals, sender_is_off

_LITTLE_DISK = 2e9  # bytes; an experiment with a small network takes about a tenth
_REMOTE_KINDS = ("nfs", "cifs", "smb", "fuse", "9p", "drvfs", "afs", "lustre", "gpfs")  # begin of a file system's name


def files(root: Path) -> list[Finding]:
    """The version of the project, its repository, and its parameters."""
    return [_pin(root), *_repository(root), _parameters(root)]


def _pin(root: Path) -> Finding:
    try:
        check_pin(root)
        pin = read_pin(root)
    except UdcError as error:
        return Finding("project", Status.FAILURE, str(error), "udc upgrade")
    of = "the repository of udc-model" if pin is None else "uses the installed udc-model"
    return Finding("project", Status.OK, f"{root}: {of}")


def _repository(root: Path) -> list[Finding]:
    if not (root / "dvc.yaml").is_file():
        return [Finding("stages", Status.FAILURE, "dvc.yaml is missing", "git checkout dvc.yaml, or udc init")]
    try:
        if git_root(root) is None:
            return [Finding("stages", Status.WARNING, "the folder is in no git repository: experiments need one",
                            "git init && git add . && git commit -m Start")]  # fmt: skip
        if not has_commit(root):
            return [Finding("stages", Status.WARNING, "git has no commit yet: experiments need one",
                            "git add . && git commit -m Start")]  # fmt: skip
    except UdcError as error:
        return [Finding("stages", Status.FAILURE, str(error))]
    return [Finding("stages", Status.OK, "dvc.yaml and a git repository with commits")]


def dvc_repository(root: Path) -> list[Finding]:
    """Whether DVC's commands work: its configuration, and the files of stages and data."""
    check = "dvc repository"
    if not (root / ".dvc/config").is_file():
        return [Finding(check, Status.FAILURE, ".dvc/config is missing: all commands of DVC fail",
                        "git checkout .dvc, or udc init")]  # fmt: skip
    try:
        if command := command_to_use_git(root):
            return [Finding(check, Status.FAILURE, "core.no_scm is set: DVC does not use git", command)]
        check_stages(root)
    except UdcError as error:
        return [Finding(check, Status.FAILURE, str(error), "correct the file, or git checkout it")]
    return [Finding(check, Status.OK, "its configuration, stages and .dvc files can be read")]


def _parameters(root: Path) -> Finding:
    from udc_model.config import load_params

    try:
        params = load_params(root / "params.yaml")
    except UdcError as error:
        return Finding("parameters", Status.FAILURE, str(error), "udc params NAME explains a parameter")
    path = root / params.data.path
    if params.data.source != "digits" and not path.exists():
        return Finding("parameters", Status.FAILURE, f"data.path: {params.data.path} does not exist",
                       f"dvc pull {params.data.path}, or set data.path to your images")  # fmt: skip
    return Finding("parameters", Status.OK, f"valid; data.source {params.data.source}")


def disk(root: Path) -> list[Finding]:
    """Free disk space against what the prepared images take: twice for a moment, when they are prepared again."""
    return disk_findings(shutil.disk_usage(root).free, 2 * size_of(Workspace(root).prepared))


def disk_findings(free: int, needed: int) -> list[Finding]:
    """Free bytes against those that preparing the images again needs; 0 if they have not been prepared."""
    text = f"{size_text(free)} free" + (f"; preparing the images again needs {size_text(needed)}" if needed else "")
    if free < max(needed, _LITTLE_DISK):
        return [Finding("disk", Status.WARNING, f"{text}: prepared images, checkpoints and models may not fit",
                        "udc gc lists what can go")]  # fmt: skip
    return [Finding("disk", Status.OK, text)]


def file_system(root: Path) -> list[Finding]:
    """Whether the project's file system has what the stages and DVC need: writing, locks, links."""
    place = root / ".udc"
    kind = _kind(root)
    try:
        with tempfile.TemporaryDirectory(prefix="doctor-", dir=place if place.is_dir() else root) as scratch:
            file = Path(scratch) / "file"
            file.write_bytes(b"")
            lacking = [name for name, works in _ABILITIES.items() if not works(file)]
    except OSError as error:
        return [Finding("file system", Status.FAILURE, f"{place} cannot be written: {error.strerror}",
                        f"chown -R $USER {root}, or free disk space (udc gc)")]  # fmt: skip
    return file_system_findings(kind, lacking)


def file_system_findings(kind: str, lacking: list[str]) -> list[Finding]:
    """What a file system of a kind lacks, of ``locks``, ``hard links`` and ``symbolic links``."""
    if "locks" in lacking:
        return [Finding("file system", Status.FAILURE, f"{kind}, without locks: each stage takes one",
                        "move the project to a local disk")]  # fmt: skip
    if lacking:
        return [Finding("file system", Status.WARNING, f"{kind}, without {' and '.join(lacking)}: DVC copies instead, "
                        "and data takes twice the space", "move the project to a local disk")]  # fmt: skip
    if kind.startswith(_REMOTE_KINDS):
        return [Finding("file system", Status.NOTE, f"{kind}, with locks and links; of a network or another system, so "
                        "slower than a local disk")]  # fmt: skip
    return [Finding("file system", Status.OK, f"{kind}, with locks and links")]


def _has_locks(file: Path) -> bool:
    """Whether a second lock of a file is refused while the first is held, also of another open file."""
    first, second = os.open(file, os.O_RDWR), os.open(file, os.O_RDWR)
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
    finally:
        os.close(first)
        os.close(second)
    return False  # both were granted


def _has_hard_links(file: Path) -> bool:
    return _works(lambda: file.with_name("hard").hardlink_to(file))


def _has_symbolic_links(file: Path) -> bool:
    return _works(lambda: file.with_name("symbolic").symlink_to(file))


def _works(action: Callable[[], None]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


_ABILITIES: dict[str, Callable[[Path], bool]] = {
    "locks": _has_locks, "hard links": _has_hard_links, "symbolic links": _has_symbolic_links,
}  # fmt: skip


def _kind(folder: Path) -> str:
    """The type of the file system that a folder is on."""
    path = folder.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)]
    return str(max(mounts, key=lambda mount: len(mount.mountpoint)).fstype) if mounts else "unknown type"


def activity(root: Path) -> list[Finding]:
    """What runs in the project, and journals that MLflow does not have."""
    running = running_stages(root)
    pending = [folder for folder in pending_journals(root) if not is_written(folder)]
    findings = [Finding("running", Status.NOTE, running[0] if running else "no stage")]
    if pending:
        off = " (UDC_SENDER is off)" if sender_is_off() else ""
        findings.append(Finding("journals", Status.WARNING, f"{len(pending)} not delivered to MLflow{off}", "udc sync"))
    return findings
