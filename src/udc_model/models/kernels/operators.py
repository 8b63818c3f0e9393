"""Registers the native kernels as torch operators ``torch.ops.udc`` with gradients and shape functions.

The kernels read and write memory by its address: each operator checks shapes and types before, and raises ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udc_model.native.library import call

ACTIVATIONS = (torch.float32, torch.bfloat16)  # types of x, residual and their gradients


def _check(name: str, tensor: Tensor, shape: Sequence[int], *dtypes: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype not in dtypes:
        raise ValueError(f"{name}: is {tensor.dtype} of the shape {tuple(tensor.shape)}; the kernel needs "
                         f"{' or '.join(map(str, dtypes))} of the shape {tuple(shape)}")  # fmt: skip


def _vector(name: str, vector: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a float32 vector of the shape in contiguous memory."""
    _check(name, vector, shape, torch.float32)
    return vector.contiguous()


def _is_bf16(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _rows(x: Tensor) -> tuple[int, int]:
    """Return the number of rows and of channels of (…, channels)."""
    return x.numel() // max(1, x.shape[-1]), x.shape[-1]


@torch.library.custom_op("udc::depthwise_conv2d", mutates_args=(), device_types="cpu")
def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a depthwise convolution with "same" padding in channels_last memory; its weight gradient is native.

    x: (N, C, H, W) float32 or bfloat16; weight: (C, 1, K, K), K odd, and bias: (C,), both float32 like their gradients.
    """
    _check_depthwise(x, weight)
    _check("bias", bias, x.shape[1:2], torch.float32)
    dtype, x = _compute_dtype(x), x.contiguous(memory_format=torch.channels_last)
    weight, bias = (each.to(x.dtype).to(dtype) for each in (weight, bias))
    return torch.conv2d(x.to(dtype), weight, bias, 1, weight.shape[-1] // 2, 1, len(weight)).to(x.dtype)


def _check_depthwise(x: Tensor, weight: Tensor) -> None:
    _check("x", x, x.shape, *ACTIVATIONS)
    _check("weight", weight, (x.shape[1], 1, weight.shape[-1], weight.shape[-1]), torch.float32)
    if x.ndim != 4 or weight.shape[-1] % 2 == 0:
        raise ValueError(f"x {tuple(x.shape)} must have 4 dimensions, and weight {tuple(weight.shape)} an odd size")


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return float32 for bfloat16 on processors without bf16 convolutions, where torch's fallback is very slow."""
    emulated = x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if emulated else x.dtype


@depthwise_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("udc::depthwise_conv2d_backward", mutates_args=(), device_types="cpu")
def depthwise_conv2d_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`depthwise_conv2d` with respect to x, weight and bias."""
    _check_depthwise(x, weight)
    _check("grad", grad, x.shape, x.dtype)
    grad, x = (each.contiguous(memory_format=torch.channels_last) for each in (grad, x))
    n, channels, height, width = x.shape
    size = weight.shape[-1]
    dtype = _compute_dtype(x)
    grad_x = torch.ops.aten.convolution_backward(
        grad.to(dtype), x.to(dtype), weight.to(x.dtype).to(dtype), None, [1, 1], [size // 2] * 2, [1, 1], False, [0, 0],
        channels, [True, False, False],
    )[0].to(x.dtype)  # fmt: skip
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    grad_bias = weight.new_empty(channels)
    call("udc_depthwise_gradient", x.data_ptr(), grad.data_ptr(), _is_bf16(x), n, height, width, channels, size,
         torch.get_num_threads(), grad_weight.data_ptr(), grad_bias.data_ptr())  # fmt: skip
    return grad_x, grad_weight, grad_bias


@depthwise_conv2d_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return torch.empty_like(x, memory_format=torch.channels_last), grad_weight, weight.new_empty(len(weight))


def _save_depthwise(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _depthwise_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.udc.depthwise_conv2d_backward(grad, *ctx.saved_tensors)  # type: ignore[no-any-return]


depthwise_conv2d.register_autograd(_depthwise_gradients, setup_context=_save_depthwise)


@torch.library.custom_op("udc::bias_gelu", mutates_args=(), device_types="cpu")
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Compute ``gelu(x + bias)`` with the exact (erf) GELU; x: (…, C) float32 or bfloat16, bias: (C,) float32."""
    _check("x", x, x.shape, *ACTIVATIONS)
    x, bias = x.contiguous(), _vector("bias", bias, x.shape[-1:])
    out = torch.empty_like(x)
    call("udc_bias_gelu", x.data_ptr(), bias.data_ptr(), _is_bf16(x), *_rows(x), torch.get_num_threads(),
         out.data_ptr())  # fmt: skip
    return out


@bias_gelu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("udc::bias_gelu_backward", mutates_args=(), device_types="cpu")
def bias_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of :func:`bias_gelu` with respect to x and bias."""
    _check("x", x, x.shape, *ACTIVATIONS)
    _check("grad", grad, x.shape, x.dtype)
    grad, x, bias = grad.contiguous(), x.contiguous(), _vector("bias", bias, x.shape[-1:])
    grad_x, grad_bias = torch.empty_like(x), torch.empty_like(bias)
    call("udc_bias_gelu_backward", x.data_ptr(), bias.data_ptr(), grad.data_ptr(), _is_bf16(x), *_rows(x),
         torch.get_num_threads(), grad_x.data_ptr(), grad_bias.data_ptr())  # fmt: skip
    return grad_x, grad_bias


@bias_gelu_backward.register_fake
def _(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(bias)


def _save_all(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gelu_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.udc.bias_gelu_backward(grad, *ctx.saved_tensors)  # type: ignore[no-any-return]


bias_gelu.register_autograd(_gelu_gradients, setup_context=_save_all)


@torch.library.custom_op("udc::scaled_residual", mutates_args=(), device_types="cpu")
def scaled_residual(x: Tensor, bias: Tensor, scale: Tensor, residual: Tensor, factor: Tensor | None) -> Tensor:
    """Compute ``residual + factor * scale * (x + bias)`` in float32, in one pass over memory.

    x, residual: (N, …, C) float32 or bfloat16; bias, scale: (C,) float32; factor: (N,) float32, one per sample, or None
    for 1.
    """
    _check("residual", residual, x.shape, *ACTIVATIONS)
    bias, scale, factor = _check_branch(x, bias, scale, factor)
    x, residual = x.contiguous(), residual.contiguous()
    out = torch.empty_like(residual, dtype=torch.float32)
    rows, channels = _rows(x)
    call("udc_scaled_residual", x.data_ptr(), bias.data_ptr(), scale.data_ptr(), _pointer(factor),
         math.prod(x.shape[1:-1]), residual.data_ptr(), _is_bf16(x), _is_bf16(residual), rows, channels,
         torch.get_num_threads(), out.data_ptr())  # fmt: skip
    return out


def _check_branch(
    x: Tensor, bias: Tensor, scale: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check ``factor * scale * (x + bias)``; return bias, scale and factor in contiguous memory."""
    _check("x", x, x.shape, *ACTIVATIONS)
    if factor is not None:
        factor = _vector("factor", factor, x.shape[:-1][:1])
    return _vector("bias", bias, x.shape[-1:]), _vector("scale", scale, x.shape[-1:]), factor


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


@scaled_residual.register_fake
def _(x: Tensor, bias: Tensor, scale: Tensor, residual: Tensor, factor: Tensor | None) -> Tensor:
    return torch.empty_like(residual, dtype=torch.float32, memory_format=torch.contiguous_format)


@torch.library.custom_op("udc::scaled_residual_backward", mutates_args=(), device_types="cpu")
def scaled_residual_backward(
    grad: Tensor, x: Tensor, bias: Tensor, scale: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`scaled_residual` w.r.t. x, bias and scale; that of residual is ``grad``."""
    _check("grad", grad, x.shape, torch.float32)
    bias, scale, factor = _check_branch(x, bias, scale, factor)
    grad, x = grad.contiguous(), x.contiguous()
    grad_x, grad_bias, grad_scale = torch.empty_like(x), torch.empty_like(bias), torch.empty_like(scale)
    rows, channels = _rows(x)
    call("udc_scaled_residual_backward", x.data_ptr(), bias.data_ptr(), scale.data_ptr(), _pointer(factor),
         math.prod(x.shape[1:-1]), grad.data_ptr(), _is_bf16(x), rows, channels, torch.get_num_threads(),
         grad_x.data_ptr(), grad_bias.data_ptr(), grad_scale.data_ptr())  # fmt: skip
    return grad_x, grad_bias, grad_scale


@scaled_residual_backward.register_fake
def _(grad: Tensor, x: Tensor, bias: Tensor, scale: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return grad_x, torch.empty_like(bias), torch.empty_like(scale)


def _save_residual(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, scale, residual, factor = inputs
    ctx.save_for_backward(x, bias, scale, factor)
    ctx.residual_dtype = residual.dtype


def _residual_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.udc.scaled_residual_backward(grad, *ctx.saved_tensors)
    return *gradients, grad.to(ctx.residual_dtype), None


scaled_residual.register_autograd(_residual_gradients, setup_context=_save_residual)
