"""Parts of a ConvNeXt block with native kernels for the CPU.

The docstrings define in terms of torch what is computed. A native kernel computes it for float32 and bfloat16 tensors
on the CPU; torch's operators do everywhere else, and in traced or exported graphs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udc_model.models.kernels import operators as operators  # registers torch.ops.udc
from udc_model.native.library import load_library

__all__ = ["DepthwiseConv2d", "add_scaled", "linear_act"]


def _is_native(activations: Iterable[Tensor], parameters: Iterable[Tensor | None]) -> bool:
    """Whether a native kernel is used: float32 or bfloat16 activations and float32 parameters on the CPU."""
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") not in operators.ACTIVATIONS:
        return False  # the matrix product before the kernel returns float16
    has_dtypes = all(x.is_cpu and x.dtype in operators.ACTIVATIONS for x in activations)
    has_float32 = all(p is None or (p.is_cpu and p.dtype == torch.float32) for p in parameters)
    return has_dtypes and has_float32 and _has_library()


def _has_library() -> bool:
    return load_library() is not None


# Same as torch.compiler.assume_constant_result, which also imports Dynamo and so doubles the import time of torch.
_has_library._dynamo_marked_constant = True  # type: ignore[attr-defined]


MIN_FUSED_ELEMENTS = 2**20  # from this size on, fewer passes over memory outweigh the overhead of the call


def _is_fused(x: Tensor) -> bool:
    """Whether to fuse operations: not for small tensors, nor if torch.compile fuses them or the graph is traced."""
    return not (torch.compiler.is_compiling() or _is_tracing()) and x.numel() >= MIN_FUSED_ELEMENTS


def _is_tracing() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution (C to C channels, odd kernel size, "same" padding) with a fast weight gradient.

    oneDNN has no optimised weight gradient for depthwise kernels larger than 3 x 3: it takes a quarter of the time of
    a ConvNeXt training step in bf16.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        needs_gradient = torch.is_grad_enabled() and self.weight.requires_grad
        is_traced = _is_tracing() or torch.compiler.is_exporting()
        if not needs_gradient or is_traced or not x.is_cpu:
            return super().forward(x)
        cast = x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x
        if not _is_native((cast,), (self.weight, self.bias)):
            return super().forward(x)
        return torch.ops.udc.depthwise_conv2d(cast, self.weight, self.bias)  # type: ignore[no-any-return]


def linear_act(x: Tensor, linear: nn.Linear, act: nn.Module) -> Tensor:
    """Compute ``act(linear(x))``; for an exact GELU, bias and activation are one pass over memory."""
    is_gelu = isinstance(act, nn.GELU) and act.approximate == "none"
    if not is_gelu or not _is_fused(x) or not _is_native((x,), (linear.bias,)):
        return act(linear(x))  # type: ignore[no-any-return]
    return torch.ops.udc.bias_gelu(F.linear(x, linear.weight), linear.bias)  # type: ignore[no-any-return]


def add_scaled(residual: Tensor, x: Tensor, linear: nn.Linear, scale: Tensor | None, factor: Tensor | None) -> Tensor:
    """Compute ``residual + factor * scale * linear(x)``; everything after the matrix product is one pass over memory.

    Parameters
    ----------
    residual, x : (N, H, W, C) and (N, H, W, C_in).
    linear : C_in to C features.
    scale : (C,), or None for 1.
    factor : (N,), one per sample, or None for 1.
    """
    if scale is None or not _is_fused(residual) or not _is_native((residual, x), (linear.bias, scale, factor)):
        x = linear(x)
        if scale is not None:
            x = scale * x
        if factor is not None:
            x = factor.to(x.dtype).view(-1, 1, 1, 1) * x
        return residual + x
    return torch.ops.udc.scaled_residual(  # type: ignore[no-any-return]
        F.linear(x, linear.weight), linear.bias, scale, residual, factor
    )
