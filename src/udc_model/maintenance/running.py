"""What is running in a project: stages, deliveries, and commands of DVC, also in temporary copies of the project."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

from udc_model.files import Workspace, running_writer
from udc_model.tracking.journal import is_written, pending_journals

_COPIES = Path(".dvc") / "tmp" / "exps"  # where DVC runs experiments of its queue, and those with --temp


def running_stages(root: Path) -> list[str]:
    """The stages that write outputs of the project or log to its journals now, each as a text."""
    stages = [f"stage of journal {folder.name}" for folder in pending_journals(root) if is_written(folder)]
    writer = running_writer(Workspace(root))
    return [*([writer] if writer else []), *stages]


def running_processes(root: Path) -> list[str]:
    """The processes of this machine and user that run DVC in the project, or anything in its temporary copies.

    DVC has no lock for this: it releases that of the project while a stage runs, and an experiment in a copy has
    another one. Processes of other machines are not seen.
    """
    copies, found = (root / _COPIES).resolve(), []
    excluded = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid in excluded or process.status() == psutil.STATUS_ZOMBIE:
                continue
            folder = Path(process.cwd())
            if not folder.is_relative_to(root.resolve()):
                continue
            command = process.cmdline()
            if folder.is_relative_to(copies) or _is_dvc(command):
                found.append(f"{' '.join(command)[:100]} (process {process.pid})")
    return found


def _is_dvc(command: list[str]) -> bool:
    """Whether a command line is that of DVC: ``dvc …``, ``python …/bin/dvc …`` or ``python -m dvc …``."""
    names = [Path(part).name for part in command[:4]]
    return "dvc" in names
