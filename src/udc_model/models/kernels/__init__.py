"""The parts of a ConvNeXt block that are faster than torch's on a CPU; everywhere else they are torch's own.

Each function here says in torch's terms what it computes. A native kernel computes the same where the tensors are on
the CPU in float32 or bfloat16; a graph that is traced or exported holds torch's own operators alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udc_model.models.kernels import operators as operators  # registers torch.ops.udc
from udc_model.native.library import load_library

__all__ = ["DepthwiseConv2d", "add_scaled", "linear_act"]


def _is_native(activations: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> bool:
    """Whether a kernel serves: float32 or bfloat16 activations and float32 parameters on the CPU."""
    fits = all(x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) for x in activations)
    return fits and all(p.is_cpu and p.dtype == torch.float32 for p in parameters) and _has_library()


def _has_library() -> bool:
    return load_library() is not None


# What torch.compiler.assume_constant_result sets; calling it would import all of Dynamo, which takes as long as torch.
_has_library._dynamo_marked_constant = True  # type: ignore[attr-defined]


WORTHWHILE = 2**20  # elements from which the saved passes over memory outweigh the call


def _is_worthwhile(x: Tensor) -> bool:
    """Whether to fuse: not for little, nor where a compiler does it or the graph is to run elsewhere."""
    return not (torch.compiler.is_compiling() or _is_tracing()) and x.numel() >= WORTHWHILE


def _is_tracing() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution (C to C channels, odd kernel, "same" padding) with a fast weight gradient.

    oneDNN has no weight-gradient kernel for depthwise convolutions wider than 3 x 3, and takes a quarter of a bf16
    ConvNeXt step for it.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        traced = _is_tracing() or torch.compiler.is_exporting()
        if not trains or traced or not x.is_cpu:
            return super().forward(x)
        cast = x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x
        if not _is_native((cast,), (self.weight,)):
            return super().forward(x)
        return torch.ops.udc.depthwise_conv2d(cast, self.weight, self.bias)  # type: ignore[no-any-return]


def linear_act(x: Tensor, linear: nn.Linear, act: nn.Module) -> Tensor:
    """``act(linear(x))``; an exact GELU adds the bias in the same pass."""
    is_gelu = isinstance(act, nn.GELU) and act.approximate == "none"
    if not is_gelu or not _is_worthwhile(x) or not _is_native((x,), (linear.weight,)):
        return act(linear(x))  # type: ignore[no-any-return]
    return torch.ops.udc.bias_gelu(F.linear(x, linear.weight), linear.bias)  # type: ignore[no-any-return]


def add_scaled(residual: Tensor, x: Tensor, linear: nn.Linear, scale: Tensor | None, factor: Tensor | None) -> Tensor:
    """``residual + factor * scale * linear(x)``, after the product in one pass.

    residual, x: (N, H, W, C); scale: (C,); factor: (N,), one a sample; None stands for 1.
    """
    if scale is None or not _is_worthwhile(residual) or not _is_native((residual, x), (scale,)):
        x = linear(x)
        if scale is not None:
            x = scale * x
        if factor is not None:
            x = factor.to(x.dtype).view(-1, 1, 1, 1) * x
        return residual + x
    return torch.ops.udc.scaled_residual(  # type: ignore[no-any-return]
        F.linear(x, linear.weight), linear.bias, scale, residual, factor
    )
