"""A training run in several processes: their ranks, what they exchange, and how they are started.

Everything but the gradients is exchanged through gloo on the CPU, as plain numbers: objects would be pickled.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from udc_model.errors import INTERRUPTED, Interrupted, TemporaryError, UdcError
from udc_model.training.interruption import COMMAND, STOP_FILE, deferred_interrupt, this_command

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from udc_model.models.staged import ImageClassifier

logger = logging.getLogger(__name__)

LAUNCHED = "TORCHELASTIC_RUN_ID"  # environment variable, which torchrun sets
PARENT = "UDC_PARENT"  # environment variable: id of the process that started this one
_PR_SET_PDEATHSIG = 1  # of prctl.h
_TIMEOUT = timedelta(minutes=10)  # of a collective operation; one process may be writing a checkpoint meanwhile
_SHUTDOWN_SECONDS = 10  # for the other processes to end, once one has failed


@dataclass(frozen=True)
class Ranks:
    """Process ``rank`` of the ``world`` processes of a training run, number ``local`` on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This process's part of n items: consecutive, and of the same size in all processes to within one."""
        indices = np.array_split(np.arange(n), self.world)[self.rank]
        return slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(n, n)

    def sum(self, value: float) -> float:
        """The sum over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def gather(self, rows: NDArray[np.float32], n: int) -> NDArray[np.float32]:
        """All rows (N, K), in every process, of which each process has its ``part(n)``."""
        if self.world == 1:
            return rows
        longest = -(-n // self.world)
        padded = torch.zeros(longest, rows.shape[1])
        padded[: len(rows)] = torch.from_numpy(rows)
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        sizes = [part.stop - part.start for part in (Ranks(k, self.world).part(n) for k in range(self.world))]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).numpy()

    def from_first(self, data: bytes | None) -> bytes | None:
        """The data of the first process, in every process; ``data`` of the others is ignored."""
        if self.world == 1:
            return data
        size = torch.tensor(-1 if data is None else len(data))
        dist.broadcast(size, 0)
        if size < 0:
            return None
        if self.is_first and data is not None:
            # a copy: PyTorch warns of tensors on read-only bytes
            contents = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        else:
            contents = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(contents, 0)
        return contents.numpy().tobytes()

    def of_all(self, data: bytes) -> list[bytes]:
        """The data of each process, in every process."""
        if self.world == 1:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        lengths = [int(size) for size in sizes]
        padded = torch.from_numpy(np.frombuffer(data.ljust(max(lengths), b"\0"), np.uint8).copy())
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return [part.numpy().tobytes()[:length] for part, length in zip(parts, lengths, strict=True)]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def parallel(self, model: nn.Module, device: torch.device, example: Tensor) -> nn.Module:
        """The model with gradients that are averaged over all processes.

        ``example`` is a batch for the model. DistributedDataParallel changes the order of its gradients after the first
        pass, and sums of more than two numbers depend on their order. One pass of ``example`` without effect sets the
        final order, so that a resumed training run computes the same bits.
        """
        if self.world == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        parallel = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        parallel(example).logits.sum().backward()
        for module, training in modes.items():
            module.training = training
        model.zero_grad(set_to_none=True)
        return parallel

    def shard(self, model: ImageClassifier, device: torch.device) -> None:
        """Leave each process a shard of every parameter; a layer is gathered while it is in use.

        FSDP (Zhao et al. 2023): parameters become DTensors, and so do gradients, optimiser states and averages.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # nothing writes to one
        mesh = init_device_mesh(device.type, (self.world,))
        for layer in model.layers():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def without_sync(self, model: nn.Module) -> AbstractContextManager[object]:
        """Context of a backward pass whose gradients are not yet averaged over the processes."""
        if self.world == 1:
            return nullcontext()
        if hasattr(model, "set_requires_gradient_sync"):
            return _without_sharded_sync(model)
        parallel: DistributedDataParallel = model  # type: ignore[assignment]
        return parallel.no_sync()


ALONE = Ranks()


@contextmanager
def _without_sharded_sync(model: nn.Module) -> Iterator[None]:
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)  # type: ignore[operator]


def full_tensor(tensor: Tensor) -> Tensor:
    """The complete tensor, gathered if `Ranks.shard` has sharded it; then every process must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a complete tensor, sharded like ``like``; the tensor itself if ``like`` is complete."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def is_launched() -> bool:
    """Whether torchrun, `launch` or Ray started this process."""
    return LAUNCHED in os.environ


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that were started together, until the block ends; `ALONE` if there are none.

    Within the block, another one joins the same processes.

    Raises
    ------
    TemporaryError
        Another process has ended.
    """
    if not is_launched():
        yield ALONE
        return
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if dist.is_initialized():
        yield ranks
        return
    _die_with_parent()
    if not ranks.is_first:
        logging.getLogger("udc_model").setLevel(logging.WARNING)
    backend = "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        torch.cuda.set_device(ranks.local % gpus)
        if int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world)) <= gpus:  # NCCL refuses two processes on one GPU
            backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield ranks
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            raise TemporaryError(f"process {ranks.rank} of {ranks.world}: another process of this training run has "
                                 "ended; start it again, and it resumes from its last checkpoint"
                                 ) from error  # fmt: skip
        raise
    finally:
        dist.destroy_process_group()


def launch(module: str, arguments: Sequence[str], processes: int, scratch: Path) -> None:
    """Run a module in several processes on this machine, like ``torchrun --nproc-per-node``, until all have ended.

    They have sessions of their own, which Ctrl-C does not reach: the first one creates the file `STOP_FILE`, the second
    one ends them.

    Parameters
    ----------
    scratch : folder for that file.

    Raises
    ------
    UdcError
        One of them failed; the others were terminated.
    Interrupted
        The first process has ended after Ctrl-C, and printed the message.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are reported below and by the process itself
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    with deferred_interrupt((scratch / "stop").touch) as was_interrupted:
        config = LaunchConfig(
            1, 1, processes, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
            run_id=f"udc-{socket.gethostname()}-{os.getpid()}", max_restarts=0, monitor_interval=0.1,
            shutdown_timeout=_SHUTDOWN_SECONDS, logs_specs=DefaultLogsSpecs(),
            signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        )  # fmt: skip
        os.environ |= {COMMAND: this_command(), STOP_FILE: str(scratch / "stop"), PARENT: str(os.getpid())}
        try:
            elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as error:
            rank, first = error.get_first_failure()
            raise failure(rank, processes, first.exitcode, was_interrupted()) from None
        finally:
            for name in (COMMAND, STOP_FILE, PARENT):
                del os.environ[name]


def failure(rank: int, processes: int, status: int, was_interrupted: bool) -> UdcError | Interrupted:
    """What to raise for a process that has ended with an exit status, or by a signal (negative).

    Parameters
    ----------
    was_interrupted : whether Ctrl-C was pressed.
    """
    if status == INTERRUPTED and was_interrupted:
        return Interrupted()
    if status > 0:
        return UdcError(f"process {rank} of {processes} failed, and the others were terminated; its error is above")
    return UdcError(f"process {rank} of {processes} ended by signal {-status}, and the others were "
                    "terminated; start the training run again, and it resumes from its last checkpoint")  # fmt: skip


def _die_with_parent() -> None:
    """Let the system kill this process when the launching process dies.

    Signals to the group of the launching process do not reach this one, which has a session of its own. On several
    machines, the others notice the end of this process, not that of torchrun on its machine.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):  # it died before
            os.kill(os.getpid(), signal.SIGKILL)
