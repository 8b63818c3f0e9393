"""Connects to Ray, the engine of ``udc score``, ``udc tune`` and training on several machines."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from udc_model.errors import UdcError, one_line
from udc_model.files import make_folder

RETRIES = 5  # of a task whose process or machine was lost
STREAMS = ("stdout", "stderr")  # files to which processes append what they print, see `printed`
POLL = 0.2  # seconds between two looks at them
_ADDRESS = "RAY_ADDRESS"  # environment variable, Ray's own name
_PASSED_ON = ("UDC_KERNELS", "OMP_WAIT_POLICY")  # environment variables on which the last bits of results depend
_OF_RAY = ("RAY_", "CUDA_VISIBLE_DEVICES")  # environment variables that Ray sets for each process
_ENVIRONMENT = "environment.json"


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster until the block ends.

    Parameters
    ----------
    address : as ``auto`` or ``ray://HOST:10001``; None for that in the environment variable ``RAY_ADDRESS``, without
        which Ray is started on this machine.

    Raises
    ------
    UdcError
        Ray is not installed or cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's developers
    try:
        import ray
    except ImportError:
        raise UdcError("Ray is not installed; pip install 'udc-model[ray]'") from None
    address = address or os.environ.get(_ADDRESS) or "local"
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, ConnectionError, ValueError, RuntimeError) as error:
        place = "a cluster on this machine" if address == "local" else address
        raise UdcError(f"Ray: {place} cannot be used: {one_line(error)[:300]}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def has_gpus(ray: Any) -> bool:
    """Whether a machine of the cluster has a GPU; that of the command may have none."""
    return any(each.get("GPU", 0.0) >= 1 for each in _resources(ray))


def slots(ray: Any, threads: int, *, use_gpu: bool) -> int:
    """How many processes of so many threads, with a GPU each if ``use_gpu``, the cluster can run at once.

    Raises
    ------
    UdcError
        No machine has room for one.
    """
    number = sum(int(min(each.get("CPU", 0.0) // threads, each.get("GPU", 0.0) if use_gpu else math.inf))
                 for each in _resources(ray))  # fmt: skip
    if not number:
        needed = f"{threads} threads, as this machine would{', and a GPU' if use_gpu else ''}"
        advice = "set OMP_NUM_THREADS to a smaller number" + (", or the device to cpu" if use_gpu else "")
        raise UdcError(f"Ray: a process uses {needed}, and no machine of the cluster has room for one; {advice}")
    return number


def _resources(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def task(ray: Any, function: Callable[..., Any], threads: int, *, use_gpu: bool) -> Any:
    """A function as a task of Ray, which runs again if its process is killed or its machine is lost."""
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return ray.remote(function).options(
        num_cpus=threads, num_gpus=int(use_gpu), max_retries=RETRIES,
        runtime_env={"env_vars": variables | {"OMP_NUM_THREADS": str(threads)}},
    )  # fmt: skip


def result_of(ray: Any, reference: Any, name: str) -> Any:
    """Wait for the result of a task.

    Parameters
    ----------
    name : of the task, for messages.

    Raises
    ------
    UdcError
        The task raised it, or its processes were killed or their machines lost more than `RETRIES` times.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UdcError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise UdcError(f"Ray: {name} was lost {RETRIES + 1} times ({one_line(error)[:300]}); run the same command "
                       "again to continue") from None  # fmt: skip


def share_environment(folder: Path, **changes: str) -> None:
    """Write the environment variables of this process, with changes, to a folder that all machines share.

    They may have passwords, which Ray would show where it shows the options of tasks.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_OF_RAY)} | changes
    (folder / _ENVIRONMENT).touch(mode=0o600)
    (folder / _ENVIRONMENT).write_text(json.dumps(variables), encoding="utf-8")


def shared_environment(folder: Path) -> dict[str, str]:
    """What `share_environment` wrote."""
    variables: dict[str, str] = json.loads((folder / _ENVIRONMENT).read_text(encoding="utf-8"))
    return variables


@contextmanager
def shared_folder(root: Path) -> Iterator[Path]:
    """A folder in ``.udc`` of a project, which all machines share; deleted at the end of the block.

    ``udc gc`` deletes that of a killed process.
    """
    place = make_folder(root / ".udc")
    with tempfile.TemporaryDirectory(dir=place, prefix=".ray.", suffix=f".{os.getpid()}.partial") as folder:
        yield Path(folder)


@contextmanager
def printed(folder: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that prints what was appended to the files `STREAMS` in a folder since the last call.

    It is called at the end of the block too.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("w+", encoding="utf-8", errors="replace"))
                 for name in STREAMS}  # fmt: skip

        def print_new() -> None:
            for name, file in files.items():
                stream = getattr(sys, name)
                stream.write(file.read())
                stream.flush()

        try:
            yield print_new
        finally:
            print_new()
