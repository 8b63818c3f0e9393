"""Which device, precision and memory format a training runs on."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from udc_model.config import TrainParams
from udc_model.errors import UdcError
from udc_model.models.factory import best_device
from udc_model.native.library import load_library

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """The device and precision that were picked; ``precision`` is ``fp32``, ``bf16`` or ``fp16``."""

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the forward pass runs in the reduced precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last where convolutions gain by it (CPU and CUDA), else the default."""
        return torch.channels_last if self.device.type in ("cpu", "cuda") else torch.contiguous_format

    def describe(self) -> dict[str, str]:
        """Device, precision and, on a CPU, the native kernels and the number of threads: what the bits depend on."""
        if self.device.type != "cpu":
            name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
            return {"device": name, "precision": self.precision}
        return {
            "device": "cpu",
            "precision": self.precision,
            "kernels": "torch" if load_library() is None else "native",
            "threads": str(torch.get_num_threads()),
        }


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of handing it back to the system; elsewhere do nothing.

    Activations are larger than malloc's limit for mapped blocks, so that each step would map, clear and unmap all of
    them again, page by page. For a process that does nothing but train.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**28)):
        mallopt(option, value)


def set_arithmetic(params: TrainParams) -> None:
    """Same bits on every run, or, on a GPU, whichever kernels are fastest; TF32 on a GPU if that is asked for."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's products are not deterministic
    torch.use_deterministic_algorithms(params.deterministic)
    # nothing here reads memory that it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not params.deterministic
    # not by fp32_precision: with "ieee" torch.export, which asks for the flag by this name, fails from then on
    torch.backends.cuda.matmul.allow_tf32 = params.tf32
    torch.backends.cudnn.allow_tf32 = params.tf32


def pick_hardware(params: TrainParams, local_rank: int = 0) -> Hardware:
    """The hardware that ``train.device`` and ``train.precision`` ask for, ``auto`` resolved.

    Of several GPUs a process takes that with its number on this machine, ``local_rank``.

    Raises
    ------
    UdcError
        The machine does not have it.
    """
    device = torch.device(_pick_device(params.device))
    if device.type == "cuda":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
    if params.precision == "auto":
        return Hardware(device, "bf16" if _has_fast_bf16(device) else "fp32")
    if params.precision == "fp16" and device.type == "cpu":
        raise UdcError("train.precision: fp16 needs a GPU (its small range needs a loss scaler); on a CPU use bf16")
    return Hardware(device, params.precision)


def _pick_device(wanted: str) -> str:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return best_device()
    if not available[wanted]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise UdcError(f"train.device: {wanted} is not available on this machine (there is {there}); use auto")
    return wanted


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products run in hardware; emulated ones are slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return False
