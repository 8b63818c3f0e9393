"""Device, precision and memory format of a training run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version

import torch

from udc_model.config import TrainParams
from udc_model.config.limits import check_shared_device
from udc_model.errors import UdcError
from udc_model.models.factory import best_device, has_fast_bf16
from udc_model.native.library import load_library

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """Device and precision of a training run; ``precision`` is ``fp32``, ``bf16`` or ``fp16``."""

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the forward pass runs in the reduced precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last where it makes convolutions faster (CPU and CUDA), else the default."""
        return torch.channels_last if self.device.type in ("cpu", "cuda") else torch.contiguous_format

    def describe(self) -> dict[str, str]:
        """What the bits of a result depend on: device, precision, and on a CPU kernels, threads and instruction set."""
        if self.device.type != "cpu":
            name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
            return {"device": name, "precision": self.precision}
        return {
            "device": "cpu",
            "precision": self.precision,
            "kernels": "torch" if load_library() is None else "native",
            "threads": str(torch.get_num_threads()),
            "instructions": instruction_set(),
        }


def instruction_set() -> str:
    """The instructions that PyTorch uses on this processor, as ``AVX2`` or ``AVX512``; others sum in another order."""
    return torch.backends.cpu.get_cpu_capability()


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device: the GPU's, or the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def set_arithmetic(params: TrainParams) -> None:
    """Set ``train.deterministic`` and ``train.tf32``; without the first, a GPU uses the fastest kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required for deterministic products in CUDA
    if params.compile:
        torch.use_deterministic_algorithms(params.deterministic)
    else:  # the same without its setting for compiled code, whose import takes 1.4 CPU-seconds
        torch.set_deterministic_debug_mode("error" if params.deterministic else "default")
    # no code here reads uninitialised memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not params.deterministic
    # not fp32_precision: with "ieee", torch.export fails, because it reads the flag by this name
    torch.backends.cuda.matmul.allow_tf32 = params.tf32
    torch.backends.cudnn.allow_tf32 = params.tf32


def pick_hardware(params: TrainParams, local_rank: int = 0, world: int = 1) -> Hardware:
    """The hardware that ``train.device`` and ``train.precision`` name, with ``auto`` resolved.

    A process uses the GPU with its number on this machine, ``local_rank``. Several processes, ``world`` or
    ``train.processes``, use no Apple GPU.

    Raises
    ------
    UdcError
        It is not available on this machine.
    """
    device = torch.device(_pick_device(params.device, max(world, params.processes)))
    if device.type == "cuda":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
    if params.precision == "auto":
        return Hardware(device, "bf16" if has_fast_bf16(device) else "fp32")
    if params.precision == "fp16" and device.type == "cpu":
        raise UdcError("train.precision: fp16 needs a GPU (its small range needs a loss scaler); on a CPU use bf16")
    return Hardware(device, params.precision)


def _pick_device(name: str, processes: int) -> str:
    is_available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        best = best_device()
        return "cpu" if best == "mps" and processes > 1 else best
    if not is_available[name]:
        available = ", ".join(device for device, yes in is_available.items() if yes)
        raise UdcError(f"train.device: {name} is not available on this machine (available: {available}); use auto")
    check_shared_device(name, processes)
    return name


def model_versions(model_type: str) -> dict[str, str]:
    """Versions of the libraries whose code computes a model."""
    return {"torch": torch.__version__} | ({"timm": version("timm")} if model_type == "timm" else {})
