"""Activation modules by their names in transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pointwise(nn.Module):
    """Module that applies an elementwise function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element."""
        return self.function(x)


def quick_gelu(x: Tensor) -> Tensor:
    """Compute ``x * sigmoid(1.702 * x)`` (Hendrycks and Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


def clipped_gelu(x: Tensor) -> Tensor:
    """Compute GELU clipped to [-10, 10] (Wu et al. 2020), for quantised networks."""
    return F.gelu(x).clip(-10, 10)


def squared_relu(x: Tensor) -> Tensor:
    """Compute ``relu(x) ** 2`` (So et al. 2021)."""
    return F.relu(x).square()


def laplace(x: Tensor) -> Tensor:
    """Compute the Laplace activation (Ma et al. 2022), a cumulative normal distribution."""
    return 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2))))


_TANH_GELU = partial(nn.GELU, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,  # exact (erf), as published weights require
    "gelu_10": partial(Pointwise, clipped_gelu),
    "gelu_accurate": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_new": _TANH_GELU,
    "gelu_python": nn.GELU,
    "gelu_python_tanh": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "hardswish": nn.Hardswish,
    "laplace": partial(Pointwise, laplace),
    "leaky_relu": nn.LeakyReLU,
    "linear": nn.Identity,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "quick_gelu": partial(Pointwise, quick_gelu),
    "relu": nn.ReLU,
    "relu2": partial(Pointwise, squared_relu),
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


def activation(name: str) -> nn.Module:
    """Create an activation module by its name in transformers.

    Raises
    ------
    ValueError
        The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act: {name!r} is unknown; choose one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]()
