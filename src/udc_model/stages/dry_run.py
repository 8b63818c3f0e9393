"""A rehearsal of stage ``train``: its checks, ten steps, and an estimate of its time. Nothing is written."""

from __future__ import annotations

import os
import sys
import time

import psutil

from udc_model.config import Params
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.program import exit_status
from udc_model.stages.train import is_to_launch, launch_stage, parse_arguments
from udc_model.tracking.store import repository_root
from udc_model.training.checkpoints import CHECKPOINTS
from udc_model.training.distribution import is_launched, process_group
from udc_model.training.rehearsal import Rehearsal, rehearse
from udc_model.training.setup import check_disk, set_up
from udc_model.training.timing import clock_text, duration_text

_END_SECONDS = 1.0  # after the last epoch: curves, examples of augmented images, the end of the MLflow run


def dry_run(params: Params, workspace: Workspace) -> str:
    """Check what a training run checks before its first epoch, and estimate its time from ten steps.

    Parameters
    ----------
    params : as of `train`.

    Returns
    -------
    The result as text; empty in processes other than the first, and where those print it.

    Raises
    ------
    UdcError
        As `train`, or a folder cannot be written.
    """
    check_folders(workspace)
    if is_to_launch(params.train):
        launch_stage("udc_model.stages.dry_run", params, workspace)
        return ""
    with process_group() as ranks:
        session = set_up(params, PackedDataset.open(workspace.prepared), ranks)
        check_disk(session, workspace.root)
        before = time.time() - _start_of_the_command()
        rehearsal = rehearse(session)
        return _report(session.params, rehearsal, before + rehearsal.warm_up + _END_SECONDS) if ranks.is_first else ""


def check_folders(workspace: Workspace) -> None:
    """:class:`UdcError` if outputs or checkpoints could not be written."""
    for folder in (workspace.root.resolve(), workspace.root.resolve() / ".udc", repository_root() / CHECKPOINTS):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UdcError(f"{existing}: is no folder that this user can write to; a training run writes there")


def _start_of_the_command() -> float:
    """Time at which this process began, or the one that launched it; in seconds since 1970."""
    processes = [psutil.Process()]
    if is_launched() and (parent := processes[0].parent()):
        processes.append(parent)
    return float(min(process.create_time() for process in processes))


def _report(params: Params, rehearsal: Rehearsal, fixed: float) -> str:
    train, seconds = params.train, rehearsal.total + fixed
    members = f"{train.members} members × " if train.members > 1 else ""
    sizes = f"{train.batch_size} images" + (f" in {train.processes} processes" if train.processes > 1 else "")
    limits = [name for name in ("early_stopping_patience", "max_minutes") if getattr(train, name) is not None]
    less = f" (less if train.{' or train.'.join(limits)} ends it)" if limits else ""
    return "\n".join([
        "checked: parameters, data, weights, memory, disk space, folders",
        f"measured: {rehearsal.num_measured} steps of {sizes}, {1000 * rehearsal.step:.1f} ms each; "
        f"{rehearsal.rest:.2g} s of each epoch for validation and checkpoint",
        f"estimate: {members}{train.epochs} epochs × ({rehearsal.steps:,} steps × {1000 * rehearsal.step:.1f} ms + "
        f"{rehearsal.rest:.2g} s) + {fixed:.0f} s = {duration_text(seconds)}{less}; begun now, it ends at "
        f"{clock_text(seconds)}",
        "nothing was written",
    ]) + "\n"  # fmt: skip


def main() -> None:
    """Run in a process that `launch_stage` started."""
    params, _, workspace = parse_arguments("Rehearse stage train.")
    sys.stdout.write(dry_run(params, workspace))


if __name__ == "__main__":
    sys.exit(exit_status(main))
