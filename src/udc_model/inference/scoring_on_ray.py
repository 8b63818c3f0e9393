"""The engine of ``udc score --engine ray``: each part of the output is a task of Ray.

Ray distributes the tasks, and runs those of killed processes and lost machines again. A task returns the bytes of its
part, and the command alone writes the output, so that a part that was computed twice is there once. The machines share
the images, at the same paths; model and policy are sent to them.
"""

from __future__ import annotations

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
from udc_model.ray_cluster import ray_cluster, result_of, slots, task

if TYPE_CHECKING:
    from udc_model.inference.classifier import TrainedClassifier
    from udc_model.inference.stored_model import StoredModel

_AHEAD = 2  # tasks for each one that can run at once: their inputs are in memory
_PROCESSES = 2  # that decode for a task: an image that crashes its decoder must not end the task

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
        with ray_cluster(self.address) as ray:
            yield from _results(ray, missing)


def _results(ray: Any, missing: MissingParts) -> Iterator[PartCounts]:
    """Yield what each part contains, in the order in which they are ready; a bounded number of tasks waits."""
    import torch

    threads = torch.get_num_threads()  # the last bits of logits depend on their number
    use_gpu = missing.record.device.startswith("cuda")
    most_waiting = _AHEAD * slots(ray, threads, use_gpu=use_gpu)
    scored = task(ray, score_part, threads, use_gpu=use_gpu)
    call = partial(scored.remote, ray.put(missing.stored), processes=missing.processes or _PROCESSES)
    inputs, waiting = missing.inputs(), {}
    for number, size in missing.sizes().items():
        waiting[call(number, [_anywhere(each) for each in islice(inputs, size)])] = number
        if len(waiting) >= most_waiting:
            yield _first_ready(ray, waiting, missing)
    while waiting:
        yield _first_ready(ray, waiting, missing)


def _first_ready(ray: Any, waiting: dict[Any, int], missing: MissingParts) -> PartCounts:
    """Write the first part whose task has ended, remove it from ``waiting``, and return what it contains."""
    (ready,), _ = ray.wait(list(waiting))
    number = waiting.pop(ready)
    result: tuple[bytes, PartCounts, str, dict[str, str]] = result_of(ray, ready, f"part {number}")
    contents, counts, place, machine = result
    here = {name: getattr(missing.record, name) for name in machine}
    if differing := [f"{name} {machine[name]} (here {here[name]})" for name in here if machine[name] != here[name]]:
        raise UdcError(f"Ray: {place} has {', '.join(differing)}; install the same versions on all machines")
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
