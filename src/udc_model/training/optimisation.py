"""Optimiser, learning-rate schedule, averaged weights and frozen stages."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from udc_model.config import TrainParams
from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier

_Optimizer = TypeVar("_Optimizer", bound=torch.optim.Optimizer)
_Tensors = tuple[Tensor, ...] | list[Tensor]


def freeze_stages(model: ImageClassifier, n: int | Literal["all"]) -> list[nn.Module]:
    """Freeze the first n stages (the stem with the first), or all modules but the head.

    Returns
    -------
    The frozen modules, which `train_mode` leaves in evaluation mode.

    Raises
    ------
    UdcError
        The model has fewer stages.
    """
    if n == 0:
        return []
    if n == "all":
        frozen: list[nn.Module] = [model.base_model]
    elif n > len(stages := model.stages()):
        raise UdcError(f"train.num_frozen_stages: is {n}, but the model has {len(stages)} stages")
    else:
        frozen = [module for stage in stages[:n] for module in stage]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def names_of_weights(model: nn.Module, modules: list[nn.Module]) -> frozenset[str]:
    """The names of the weights and statistics of some modules of a model, in the model's ``state_dict``."""
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if module in modules)
    return frozenset(key for key in model.state_dict() if key.startswith(prefixes))


def train_mode(model: nn.Module, frozen: list[nn.Module]) -> None:
    """Set training mode, but evaluation mode for frozen modules: no BatchNorm updates and no drop path."""
    model.train()
    for module in frozen:
        module.eval()


def parameter_groups(model: ImageClassifier, params: TrainParams) -> list[dict[str, Any]]:
    """Parameter groups by weight decay and learning rate, from the embedding to the head.

    Weight decay applies to matrices and kernels, not to norms, biases and layer scales (1-D). The learning rate of the
    head is ``learning_rate``; that of each layer is ``layer_decay`` times the rate of the next (Clark et al. 2020, as
    in BEiT and ConvNeXt). Layers are blocks; the embedding is the first, the head with the norm before it the last.
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
        # fused: one kernel for all parameters, several times faster than a Python loop over small tensors
        return _without_dynamo(torch.optim.AdamW)(groups, lr=params.learning_rate, fused=True)
    return _without_dynamo(torch.optim.SGD)(groups, lr=params.learning_rate, momentum=params.momentum,
                                             nesterov=params.momentum > 0)  # fmt: skip


def _without_dynamo(optimizer: type[_Optimizer]) -> type[_Optimizer]:
    """The same optimizer without the decorators for torch.compile, which never compiles its methods here.

    They import Dynamo at the first call. That takes 1.4 CPU-seconds, half of what a training run needs to start.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return cast(type[_Optimizer], type(optimizer.__name__, (optimizer,), methods))


def learning_rate_factor(step: int, steps_per_epoch: int, params: TrainParams) -> float:
    """Share of ``learning_rate`` at an optimiser step (from 0).

    Linear warm-up, then ``cosine`` or ``linear`` to 0 (as transformers' ``get_cosine_schedule_with_warmup`` and
    ``get_linear_schedule_with_warmup``), ``constant``, or ``step``: times ``step_factor`` after every ``step_epochs``
    (as torch's ``StepLR``). ``one_cycle`` (Smith and Topin 2019) rises along a cosine from 1/25 over the warm-up and
    falls to 1/250,000, as torch's ``OneCycleLR``.
    """
    total = params.epochs * steps_per_epoch
    if params.warmup_epochs is None:
        warmup = math.ceil(params.warmup_ratio * total)
    else:
        warmup = math.ceil(params.warmup_epochs * steps_per_epoch)
    if params.schedule == "one_cycle":
        rise, fall = max(1, warmup - 1), max(1, total - warmup)
        if step < rise:
            return _cosine(1 / 25, 1.0, step / rise)
        return _cosine(1.0, 1 / 250_000, min(1.0, (step - rise) / fall))
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    match params.schedule:
        case "cosine":
            return _cosine(1.0, 0.0, min(1.0, progress))
        case "linear":
            return max(0.0, 1 - progress)
        case "step":
            return params.step_factor ** (step // steps_per_epoch // params.step_epochs)
    return 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to its initial rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def averaged_model(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """A copy of the model whose weights and statistics are exponential moving averages of the model's; None without
    ``decay``.

    The decay after n updates is ``min(decay, (1 + n) / (10 + n))``, as in TensorFlow's ``ExponentialMovingAverage``:
    the average is useful from the first epoch, even with few steps.
    """
    if decay is None:
        return None

    def average(averaged: _Tensors, current: _Tensors, updates: Tensor | int) -> None:
        n = int(updates)
        current_decay = min(decay, (1 + n) / (10 + n))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - current_decay)  # as torch's get_ema_multi_avg_fn
        else:
            torch._foreach_copy_(averaged, current)  # BatchNorm's counters

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
