"""One training run in several processes: their ranks, their communication, and how they are started.

Everything but the gradients is sent through gloo on the CPU as plain numbers, because objects would be pickled.
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
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from udc_model.errors import UdcError

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from udc_model.models.staged import ImageClassifier

logger = logging.getLogger(__name__)

_LAUNCHED = "UDC_LAUNCHED"  # environment variable of the processes that `launch` started
_PR_SET_PDEATHSIG = 1  # of prctl.h
_TIMEOUT = timedelta(minutes=10)  # of a collective operation; one process may be writing a checkpoint meanwhile
_SHUTDOWN_TIMEOUT = 10  # seconds that the other processes have to end after one has failed


@dataclass(frozen=True)
class Ranks:
    """Position of this process: ``rank`` of ``world`` processes, ``local`` on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This process's part of n items: consecutive, and as large as the parts of the others, to within one."""
        part = np.array_split(np.arange(n), self.world)[self.rank]
        return slice(int(part[0]), int(part[-1]) + 1) if len(part) else slice(n, n)

    def sum(self, value: float) -> float:
        """The sum over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def gather(self, rows: NDArray[np.float32], n: int) -> NDArray[np.float32]:
        """All rows (N, K), of which each process has its ``part(n)``."""
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
        """The argument of the first process, in all processes."""
        if self.world == 1:
            return data
        size = torch.tensor(-1 if data is None else len(data))
        dist.broadcast(size, 0)
        if size < 0:
            return None
        if self.is_first and data is not None:
            # a copy, because torch warns about read-only bytes
            contents = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        else:
            contents = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(contents, 0)
        return contents.numpy().tobytes()

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def parallel(self, model: nn.Module, device: torch.device, example: Tensor) -> nn.Module:
        """Wrap the model so that its gradients are the mean over all processes.

        DistributedDataParallel changes the order of gradients after its first pass, and sums of more than two numbers
        depend on their order. So one pass of ``example``, a valid input batch, is run here without effect; a resumed
        run then uses the same order from its first step.
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
        """Split every parameter over the processes; a layer's full parameters exist only while it computes.

        FSDP (Zhao et al. 2023): parameters become DTensors, and so do gradients, optimiser state and averages.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # no code writes to it
        mesh = init_device_mesh(device.type, (self.world,))
        for layer in model.layers():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def without_sync(self, model: nn.Module) -> AbstractContextManager[object]:
        """Context of a backward pass that does not average gradients yet."""
        if self.world == 1:
            return nullcontext()
        if hasattr(model, "set_requires_gradient_sync"):
            return _unsynchronised(model)
        parallel: DistributedDataParallel = model  # type: ignore[assignment]
        return parallel.no_sync()


ALONE = Ranks()


@contextmanager
def _unsynchronised(model: nn.Module) -> Iterator[None]:
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)  # type: ignore[operator]


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of one that `Ranks.shard` may have split; if it did, every process must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Split a full tensor over the processes as ``like`` is split; unchanged if ``like`` is not split."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def is_launched() -> bool:
    """Whether this process is one of several that torchrun, or `launch`, started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the other processes that torchrun started, for the duration of the block; `ALONE` without torchrun.

    Raises
    ------
    UdcError
        Another process ended, so this one cannot continue.
    """
    if not is_launched():
        yield ALONE
        return
    if os.environ.get(_LAUNCHED):
        _die_with_parent()
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if not ranks.is_first:
        logging.getLogger("udc_model").setLevel(logging.WARNING)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield ranks
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, dist.DistError):
            raise UdcError(f"process {ranks.rank} of {ranks.world}: another process of this training run has "
                           "ended; start it again to resume from its last checkpoint") from error  # fmt: skip
        raise
    finally:
        dist.destroy_process_group()


def launch(module: str, arguments: Sequence[str], processes: int) -> None:
    """Run a module in several processes on this machine, as ``torchrun --nproc-per-node`` does, until all have ended.

    Raises
    ------
    UdcError
        One process failed; the others were ended.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the failing process and the error below report the cause
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    os.environ[_LAUNCHED] = "1"
    config = LaunchConfig(
        1, 1, processes, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
        run_id=f"udc-{socket.gethostname()}-{os.getpid()}", max_restarts=0, monitor_interval=0.1,
        shutdown_timeout=_SHUTDOWN_TIMEOUT, logs_specs=DefaultLogsSpecs(),
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module, *arguments)
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        how = f"by signal {-first.exitcode}" if first.exitcode < 0 else f"with status {first.exitcode}"
        raise UdcError(f"process {rank} of {processes} ended {how}, and the others with it; start the training run "
                       "again to resume from its last checkpoint") from None  # fmt: skip
    finally:
        del os.environ[_LAUNCHED]


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when the launching process dies.

    It is in a session of its own, so a signal to the launcher's process group does not reach it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
