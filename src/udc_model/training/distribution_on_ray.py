"""Starts the processes of a training run on a Ray cluster (``train.engine: ray``).

Ray Train places the processes, and starts all of them again if one is killed or its machine is lost; the training run
then resumes from its last checkpoint. Each one is a program of its own, as those of torchrun, and computes the same
bits. The machines share the folder of the project, at the same path, through which output and results travel too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from udc_model.errors import TRY_AGAIN, UdcError, one_line
from udc_model.ray_cluster import (
    POLL,
    RETRIES,
    STREAMS,
    has_gpus,
    printed,
    ray_cluster,
    share_environment,
    shared_environment,
    slots,
)
from udc_model.training.distribution import LAUNCHED, PARENT, failure
from udc_model.training.interruption import COMMAND, STOP_FILE, deferred_interrupt, this_command

_FAILED = "failed.json"  # file in the folder of a training run: rank and exit status of a process that would fail again


def launch_on_ray(
    module: str, arguments: Sequence[str], processes: int, scratch: Path, device: str = "auto"
) -> None:  # fmt: skip
    """Run a module in several processes of a Ray cluster until all have ended, see `launch`.

    Parameters
    ----------
    scratch : empty folder that all machines share.
    device : of the processes; each has a GPU of its own unless it is ``cpu`` or the cluster has none.

    Raises
    ------
    UdcError
        Ray is missing or cannot be reached, the cluster is too small, a process failed, or processes were killed more
        than `RETRIES` times.
    Interrupted
        The first process has ended after Ctrl-C, and printed the message.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, torch.get_num_threads() // processes)))
    own = {COMMAND: this_command(), STOP_FILE: str(scratch / "stop")}
    share_environment(scratch, OMP_NUM_THREADS=str(threads), **own)
    config = {"module": module, "arguments": list(arguments), "scratch": str(scratch), "folder": str(Path.cwd())}
    with deferred_interrupt((scratch / "stop").touch) as was_interrupted, ray_cluster() as ray:
        _check_ray_train()
        use_gpu = device != "cpu" and has_gpus(ray)
        if (most := slots(ray, threads, use_gpu=use_gpu)) < processes:
            raise UdcError(f"train.processes: got {processes}, but the cluster has room for {most}, of "
                           f"{threads} threads{' and a GPU' if use_gpu else ''} each")  # fmt: skip
        with printed(scratch) as print_new:
            _Attempts(config, processes, threads, use_gpu=use_gpu).complete(print_new)
        if (scratch / _FAILED).exists():
            rank, status = json.loads((scratch / _FAILED).read_text(encoding="utf-8"))
            raise failure(rank, processes, status, was_interrupted())


def _check_ray_train() -> None:
    """Raise :class:`UdcError` if Ray is installed without Ray Train."""
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise UdcError(f"Ray Train is not installed ({one_line(error)}); pip install 'udc-model[ray]'") from None


class _Attempts(threading.Thread):
    """Ray Train's loop: all processes, again if one is lost. In a thread, since it replaces handlers of Ctrl-C."""

    def __init__(self, config: dict[str, Any], processes: int, threads: int, *, use_gpu: bool) -> None:
        super().__init__(daemon=True)
        self.config, self.processes, self.threads, self.use_gpu = config, processes, threads, use_gpu
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._fit()
        except Exception as error:
            self.error = error

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        resources = {"CPU": self.threads} | ({"GPU": 1} if self.use_gpu else {})
        scaling = ScalingConfig(num_workers=self.processes, use_gpu=self.use_gpu, resources_per_worker=resources)
        storage = str(Path(self.config["scratch"], "ray"))  # by default in the home folder
        run = RunConfig(name="train", storage_path=storage, failure_config=FailureConfig(max_failures=RETRIES))
        TorchTrainer(run_process, train_loop_config=self.config, torch_config=TorchConfig(backend="gloo"),
                     scaling_config=scaling, run_config=run).fit()  # fmt: skip

    def complete(self, on_wait: Callable[[], None]) -> None:
        """Run until all processes have ended; ``on_wait`` is called again and again meanwhile."""
        self.start()
        while self.is_alive():
            self.join(POLL)
            on_wait()
        if self.error is not None:
            raise UdcError(f"Ray: the training run was stopped after {RETRIES + 1} attempts "
                           f"({one_line(self.error)[:300]}); start it again, and it resumes from its last checkpoint"
                           ) from None  # fmt: skip


def run_process(config: dict[str, Any]) -> None:
    """One process of the training run, in a worker of Ray Train; ``config`` is that of `launch_on_ray`.

    Raises
    ------
    RuntimeError
        The process was killed, or another one was: Ray starts all of them again.
    """
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    scratch, context = Path(config["scratch"]), get_context()
    rank = context.get_world_rank()
    port = broadcast_from_rank_zero(_free_port() if rank == 0 else None)
    if (scratch / _FAILED).exists():  # in the last attempt, another process was noticed first
        return
    variables = os.environ | shared_environment(scratch) | {
        LAUNCHED: "ray", PARENT: str(os.getpid()), "RANK": str(rank), "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()), "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": os.environ["MASTER_ADDR"],  # from Ray: the machine of the first process
        "MASTER_PORT": str(port),  # Ray's own is in use by its processes
    }  # fmt: skip
    stdout, stderr = ((scratch / name).open("ab") for name in STREAMS)
    command = [sys.executable, "-u", "-m", config["module"], *config["arguments"]]
    with stdout, stderr:
        status = subprocess.run(command, env=variables, cwd=config["folder"], stdout=stdout, stderr=stderr).returncode
    if status > 0 and status != TRY_AGAIN:
        (scratch / _FAILED).write_text(json.dumps([rank, status]), encoding="utf-8")
    elif status:
        raise RuntimeError(f"process {rank} ended with status {status}")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return int(server.getsockname()[1])
