"""The engine of ``udc score --engine ray``: each part of the output is a task of Ray.

Ray distributes the tasks, and runs those of killed processes and lost machines again. A task returns the bytes of its
part, and the command alone writes the output, so that a part that was computed twice is there once. The machines share
the images, at the same paths; model and policy are sent to them.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.data.sources.shards import ShardMember
from udc_model.errors import UdcError
from udc_model.inference.inputs import ImageInput, Input
from udc_model.inference.scored_parts import PartCounts, ScoredParts
from udc_model.inference.scoring import MissingParts, machine_record, write_parts
from udc_model.native.memory import keep_freed_memory

if TYPE_CHECKING:
    from udc_model.inference.classifier import TrainedClassifier
    from udc_model.inference.stored_model import StoredModel

_RETRIES = 5  # of a task whose process or machine was lost
_AHEAD = 2  # tasks for each one that can run at once: their inputs are in memory
_PROCESSES = 2  # that decode for a task: an image that crashes its decoder must not end the task
_PASSED_ON = ("UDC_KERNELS", "OMP_WAIT_POLICY")  # environment variables

_loaded: dict[str, TrainedClassifier] = {}  # in a process of Ray: the network of the last task, by its digest


@dataclass(frozen=True)
class ScoringOnRay:
    """An engine, see `udc_model.inference.scoring.Engine`; ``address`` is a cluster's, None starts Ray here."""

    address: str | None = None

    def __call__(self, missing: MissingParts) -> Generator[PartCounts, None, None]:
        """Compute the parts as tasks, and write each one as soon as it has arrived.

        Raises
        ------
        UdcError
            Ray is not installed or cannot be reached, the cluster has no machine that is large enough, a machine has
            other versions, or a task was lost six times.
        """
        ray = _import_ray()
        _connect(ray, self.address)
        try:
            yield from _results(ray, missing)
        finally:
            ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's developers
    try:
        import ray
    except ImportError:
        raise UdcError("--engine ray: ray is not installed; pip install 'udc-model[ray]'") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    options = {} if address else {"include_dashboard": False}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UdcError(f"--ray-address: {address or 'a local cluster'} cannot be used: {reason}") from None


def _results(ray: Any, missing: MissingParts) -> Iterator[PartCounts]:
    """Yield what each part contains, in the order in which they are ready; a bounded number of tasks waits."""
    import torch

    threads = torch.get_num_threads()  # the last bits of logits depend on their number
    slots = sum(int(cpus // threads) for cpus in _cpus(ray))
    if not slots:
        raise UdcError(f"--engine ray: a task uses {threads} threads, as this machine would, and no machine of the "
                       "cluster has as many CPUs; set OMP_NUM_THREADS to a smaller number")  # fmt: skip
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    task = ray.remote(score_part).options(
        num_cpus=threads, num_gpus=int(missing.record.device.startswith("cuda")), max_retries=_RETRIES,
        runtime_env={"env_vars": environment | {"OMP_NUM_THREADS": str(threads)}},
    )  # fmt: skip
    call = partial(task.remote, ray.put(missing.stored), processes=missing.processes or _PROCESSES)
    inputs, waiting = missing.inputs(), {}
    for number, size in missing.sizes().items():
        waiting[call(number, [_anywhere(each) for each in islice(inputs, size)])] = number
        if len(waiting) >= _AHEAD * slots:
            yield _first_ready(ray, waiting, missing)
    while waiting:
        yield _first_ready(ray, waiting, missing)


def _cpus(ray: Any) -> list[float]:
    """The number of CPUs of each machine."""
    return [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]


def _first_ready(ray: Any, waiting: dict[Any, int], missing: MissingParts) -> PartCounts:
    """Write the first part whose task has ended, remove it from ``waiting``, and return what it contains."""
    (ready,), _ = ray.wait(list(waiting))
    number = waiting.pop(ready)
    result: tuple[bytes, PartCounts, str, dict[str, str]]
    try:
        result = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UdcError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise UdcError(f"--engine ray: part {number} was lost {_RETRIES + 1} times ({reason}); run the same command "
                       "again to continue") from None  # fmt: skip
    contents, counts, place, machine = result
    here = {name: getattr(missing.record, name) for name in machine}
    if differing := [f"{name} {machine[name]} (here {here[name]})" for name in here if machine[name] != here[name]]:
        raise UdcError(f"--engine ray: {place} has {', '.join(differing)}; install the same versions on all machines")
    missing.parts.store(number, contents)
    missing.count(missing.listed.size_of_part(number))
    return counts


def _anywhere(each: Input) -> Input:
    """An input that a process with another current folder can read; its name stays as it is."""
    if not isinstance(each, ImageInput) or isinstance(each.source, bytes):
        return each
    if isinstance(each.source, ShardMember):
        return replace(each, source=replace(each.source, shard=each.source.shard.absolute()))
    return replace(each, source=each.source.absolute())


def score_part(
    stored: StoredModel, number: int, inputs: list[Input], processes: int
) -> tuple[bytes, PartCounts, str, dict[str, str]]:
    """Compute a part in a process of Ray.

    Returns
    -------
    The bytes of its file, what it contains, and name and `machine_record` of this machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        parts = ScoredParts(Path(folder), stored.policy)
        (counts,) = write_parts(parts, {number: len(inputs)}, inputs, _classifier(stored), processes)
        return parts.path(number).read_bytes(), counts, socket.gethostname(), machine_record(stored)


def _classifier(stored: StoredModel) -> TrainedClassifier:
    """The network, which is loaded once in each process."""
    key = f"{stored.model.weights_sha256} {stored.policy.to_json()}"
    if key not in _loaded:
        keep_freed_memory()
        _loaded.clear()
        _loaded[key] = stored.load()
    return _loaded[key]
