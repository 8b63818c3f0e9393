"""Optimiser, learning-rate schedule and frozen stages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier
from udc_model.params import TrainParams


def freeze_stages(model: ImageClassifier, n: int) -> list[nn.Module]:
    """Stop the gradients of the first n stages, the stem with the first; returns the frozen modules.

    Raises
    ------
    UdcError
        The model has fewer stages.
    """
    stages = model.stages()
    if n > len(stages):
        raise UdcError(f"train.num_frozen_stages: is {n}, but the model has {len(stages)} stages")
    frozen = [module for stage in stages[:n] for module in stage]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def train_mode(model: nn.Module, frozen: list[nn.Module]) -> None:
    """Training mode for all but the frozen modules, whose BatchNorm statistics and drop path must rest too."""
    model.train()
    for module in frozen:
        module.eval()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weight decay for matrices and kernels, none for norms, biases and layer scales (1-D)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov momentum."""
    groups = parameter_groups(model, params.weight_decay)
    if params.optimizer == "adamw":
        # Fused: one kernel for all parameters, several times faster than a Python loop over small tensors.
        return torch.optim.AdamW(groups, lr=params.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=params.learning_rate, momentum=params.momentum, nesterov=params.momentum > 0)


def learning_rate_factor(step: int, total_steps: int, params: TrainParams) -> float:
    """Share of ``learning_rate`` at a step (from 0): linear warm-up, then cosine or linear to 0, or constant.

    As in transformers' ``get_cosine_schedule_with_warmup`` and ``get_linear_schedule_with_warmup``.
    """
    warmup = math.ceil(params.warmup_ratio * total_steps)
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if params.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if params.schedule == "linear":
        return max(0.0, 1 - progress)
    return 1.0


def build_schedule(optimizer: torch.optim.Optimizer, total_steps: int, params: TrainParams) -> LambdaLR:
    """The schedule, stepped once an optimiser step."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, total_steps, params))
