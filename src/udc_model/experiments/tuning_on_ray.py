"""The engine of ``udc tune --engine ray``: each worker of a shared study is a task of Ray.

Ray places the workers, and starts another one for each that is killed or whose machine is lost; the study's database
decides which of them runs which trial, see `udc_model.experiments.shared_study`. The machines share the folder of the
project, at the same path.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from udc_model.errors import UdcError
from udc_model.experiments.tuning import tune
from udc_model.experiments.tuning_plan import TuningPlan
from udc_model.ray_cluster import (
    POLL,
    STREAMS,
    has_gpus,
    printed,
    ray_cluster,
    result_of,
    share_environment,
    shared_environment,
    shared_folder,
    slots,
    task,
)
from udc_model.tracking.store import repository_root


def tune_on_ray(plan: TuningPlan, address: str | None = None) -> str:
    """Run the remaining trials of a study on a Ray cluster; returns a table of all trials, the best first.

    Parameters
    ----------
    address : of the cluster, see `ray_cluster`.

    Raises
    ------
    UdcError
        As `tune`; or the study has no ``--storage``, Ray cannot be used, or a worker was lost six times.
    """
    import torch

    if plan.storage is None:
        raise UdcError("--engine ray: needs --storage, a database through which its workers share the trials")
    plan.check()
    threads = torch.get_num_threads()  # of a trial; the last bits of its result depend on their number
    with shared_folder(repository_root()) as folder, ray_cluster(address) as ray, printed(folder) as print_new:
        share_environment(folder)
        use_gpu = has_gpus(ray)
        number = min(slots(ray, threads, use_gpu=use_gpu), plan.limit)
        worker = task(ray, run_worker, threads, use_gpu=use_gpu)
        waiting = {worker.remote(plan, str(Path.cwd()), str(folder)): k for k in range(number)}
        while waiting:
            for ready in ray.wait(list(waiting), timeout=POLL)[0]:
                result_of(ray, ready, f"worker {waiting.pop(ready)}")
            print_new()
    return tune(plan)  # complete: only prints the table


def run_worker(plan: TuningPlan, project: str, scratch: str) -> None:
    """Run trials in a process of Ray until the study is complete.

    Parameters
    ----------
    project : folder in which the command was started.
    scratch : from `shared_folder`.
    """
    log = Path(scratch, STREAMS[1])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", filename=log, force=True)
    logging.getLogger("udc_model").setLevel(logging.INFO)
    os.environ.update(shared_environment(Path(scratch)))
    os.chdir(project)
    tune(plan)
