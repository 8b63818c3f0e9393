"""Optimiser, learning-rate schedule and frozen stages."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier
from udc_model.params import TrainParams


def freeze_stages(model: ImageClassifier, n: int | Literal["all"]) -> list[nn.Module]:
    """Stop the gradients of the first n stages, the stem with the first, or of all but the head.

    Returns
    -------
    The frozen modules, which `train_mode` keeps in eval mode.

    Raises
    ------
    UdcError
        The model has fewer stages.
    """
    stages = model.stages()
    if n == "all":
        frozen: list[nn.Module] = [model.base_model]
    elif n > len(stages):
        raise UdcError(f"train.num_frozen_stages: is {n}, but the model has {len(stages)} stages")
    else:
        frozen = [module for stage in stages[:n] for module in stage]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def train_mode(model: nn.Module, frozen: list[nn.Module]) -> None:
    """Training mode for all but the frozen modules, whose BatchNorm statistics and drop path must rest too."""
    model.train()
    for module in frozen:
        module.eval()


def parameter_groups(model: ImageClassifier, params: TrainParams) -> list[dict[str, Any]]:
    """Groups by weight decay and learning rate, the head's last.

    Weight decay is for matrices and kernels, not for norms, biases and layer scales (1-D). The head learns with
    ``learning_rate``, each layer before it with ``layer_decay`` times the rate of the next (Clark et al. 2020, as in
    BEiT and ConvNeXt). Layers are blocks; the embedding is the first, the head with the norm before it the last.
    """
    layers: list[list[nn.Module]] = model.layers() if params.layer_decay < 1 else [[model]]
    groups: list[dict[str, Any]] = []
    for depth, modules in enumerate(layers):
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        rate = params.learning_rate * params.layer_decay ** (len(layers) - 1 - depth)
        for decay, members in (
            (params.weight_decay, [p for p in trained if p.ndim > 1]),
            (0.0, [p for p in trained if p.ndim <= 1]),
        ):
            if members:
                groups.append({"params": members, "weight_decay": decay, "lr": rate})
    return groups


def build_optimizer(model: ImageClassifier, params: TrainParams) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov momentum."""
    groups = parameter_groups(model, params)
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
