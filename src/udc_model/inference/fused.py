"""Layers for predictions on a CPU: a convolution or product with its bias, activation and sum in one pass, by oneDNN.

The operators are those that torch.compile uses for frozen weights. Here they need no minute of compilation. Weights are
stored in the order that the processor's kernel reads, once. A ResNet-50 is a tenth faster with them, for a single image
half; products in float32 are twice as fast on processors of AMD.
"""

from __future__ import annotations

from threading import Lock
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from udc_model.models.convnext import ConvNextLayer
from udc_model.models.resnet import ResidualLayer, ResNetConvLayer, ResNetShortCut

_BATCH = 16  # images for which weights are ordered: always the same, so that a batch's size does not choose the kernel
_OPERATORS = (
    "_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise", "_reorder_convolution_weight",
    "_reorder_linear_weight",
)  # fmt: skip


def has_fused_operators(device: torch.device) -> bool:
    """Whether this build of torch has them for the device; they are no public interface."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)


def fuse_layers(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers of a ResNet or a ConvNeXt below ``module``, in place.

    Parameters
    ----------
    module : in eval mode, on the CPU.
    dtype : float32 or bfloat16, in which the layers compute and pass their results on.
    """
    for name, child in module.named_children():
        fused = _fused(child, dtype)
        if fused is None:
            fuse_layers(child, dtype)
        else:
            setattr(module, name, fused)


def _fused(module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """The replacement of a layer; None if it has none itself."""
    if isinstance(module, ResidualLayer):
        return FusedResidualLayer(module, dtype) if isinstance(module.activation, nn.ReLU) else None
    if isinstance(module, ResNetConvLayer):
        return _fused_norm(module, module.activation, dtype)
    if isinstance(module, ResNetShortCut):
        return _fused_norm(module, nn.Identity(), dtype)
    if isinstance(module, ConvNextLayer):
        return FusedConvNextLayer(module, dtype)
    return FusedConvolution(module, dtype) if type(module) is nn.Conv2d else None


def _fused_norm(module: ResNetConvLayer | ResNetShortCut, activation: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convolution, BatchNorm and activation."""
    folded = fuse_conv_bn_eval(module.convolution, module.normalization)
    if isinstance(activation, nn.ReLU | nn.Identity):
        return FusedConvolution(folded, dtype, has_relu=isinstance(activation, nn.ReLU))
    return nn.Sequential(FusedConvolution(folded, dtype), activation)


class _Fused(nn.Module):
    """A layer whose weights are put into the order of the kernel when the first images come."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("weight", weight.detach().to(dtype))
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self._is_ordered, self._lock = False, Lock()  # servers call a model from several threads

    def _prepare(self, x: Tensor) -> None:
        with self._lock:
            if not self._is_ordered:
                self.weight, self._is_ordered = self._ordered(x), True

    def _ordered(self, x: Tensor) -> Tensor:
        """The weights for inputs of this shape."""
        raise NotImplementedError


class FusedConvolution(_Fused):
    """A convolution, ReLU after it if ``has_relu``; optionally a sum before that."""

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype, *, has_relu: bool = False) -> None:
        super().__init__(convolution.weight, convolution.bias, dtype)
        self._settings = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        self._relu = "relu" if has_relu else None

    def _ordered(self, x: Tensor) -> Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        operator = torch.ops.mkldnn._reorder_convolution_weight
        return operator(weight, *self._settings, [_BATCH, *x.shape[1:]])  # type: ignore[no-any-return]

    def forward(self, x: Tensor, sum_with: Tensor | None = None) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W'); the result overwrites ``sum_with`` (N, C', H', W') if it is given."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        self._prepare(x)
        arguments = (x, self.weight, self.bias, *self._settings)
        if sum_with is None:
            return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
                *arguments, self._relu or "none", [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise_.binary(  # type: ignore[no-any-return]
            sum_with, *arguments, "add", 1.0, self._relu, [], ""
        )


class FusedLinear(_Fused):
    """A linear layer, exact GELU after it if ``has_gelu``; optionally a sum.

    Parameters
    ----------
    scale : (C',), by which the result is multiplied; None for 1.
    """

    def __init__(
        self, linear: nn.Linear, dtype: torch.dtype, *, scale: Tensor | None = None, has_gelu: bool = False
    ) -> None:
        weight, bias = linear.weight.detach(), linear.bias.detach()
        if scale is not None:
            weight, bias = scale.detach()[:, None] * weight, scale.detach() * bias
        super().__init__(weight, bias, dtype)
        self._activation = "gelu" if has_gelu else "none"

    def _ordered(self, x: Tensor) -> Tensor:
        rows = _BATCH * x[0].numel() // x.shape[-1]
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), rows)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, sum_with: Tensor | None = None) -> Tensor:
        """Map (N, …, C) to (N, …, C'), plus ``sum_with`` (N, …, C') if it is given."""
        x = x.to(self.dtype)
        self._prepare(x)
        operator = torch.ops.mkldnn._linear_pointwise
        if sum_with is None:
            # the algorithm "none" is the exact GELU, with erf
            return operator(x, self.weight, self.bias, self._activation, [], "none")  # type: ignore[no-any-return]
        return operator.binary(x, sum_with.to(self.dtype), self.weight, self.bias, "add")  # type: ignore[no-any-return]


class FusedResidualLayer(nn.Module):
    """A residual layer of a ResNet with ReLU; it overwrites its input."""

    def __init__(self, layer: ResidualLayer, dtype: torch.dtype) -> None:
        super().__init__()
        *first, last = cast(list[ResNetConvLayer], list(layer.layer))
        self.shortcut = layer.shortcut
        self.first = nn.Sequential(*first)
        self.last = FusedConvolution(fuse_conv_bn_eval(last.convolution, last.normalization), dtype, has_relu=True)
        fuse_layers(self, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        return self.last(self.first(x), self.shortcut(x))  # type: ignore[no-any-return]


class FusedConvNextLayer(nn.Module):
    """A block of a ConvNeXt, with the layer scale multiplied into the weights of its last product."""

    def __init__(self, layer: ConvNextLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.dwconv = layer.dwconv.to(dtype)
        self.layernorm = layer.layernorm
        is_exact_gelu = isinstance(layer.act, nn.GELU) and layer.act.approximate == "none"
        self.pwconv1 = FusedLinear(layer.pwconv1, dtype, has_gelu=is_exact_gelu)
        self.act = nn.Identity() if is_exact_gelu else layer.act
        self.pwconv2 = FusedLinear(layer.pwconv2, dtype, scale=layer.layer_scale_parameter)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        features = features.to(self.dwconv.weight.dtype)
        x = F.conv2d(features, self.dwconv.weight, self.dwconv.bias, padding="same", groups=self.dwconv.groups)
        x = self.act(self.pwconv1(self.layernorm(x.permute(0, 2, 3, 1))))
        return self.pwconv2(x, features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
