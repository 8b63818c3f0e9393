"""The training loop, readable from top to bottom."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import Tensor
from tqdm import tqdm

from udc_model.costs.calibration import negative_log_likelihood
from udc_model.costs.losses import TrainingLoss
from udc_model.data.loading import Augmentation, compute_logits, epoch_batches, gather, training_input
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier
from udc_model.params import TrainParams
from udc_model.training.hardware import Hardware
from udc_model.training.optimisation import build_optimizer, build_schedule, freeze_stages, train_mode

Metrics = dict[str, float]


@dataclass
class TrainingResult:
    """What a training found: one row of metrics an epoch, and the weights of the best epoch (from 1)."""

    curves: list[Metrics] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PricedMonitor:
    """The cost of an epoch's decisions under the rule that will be deployed.

    ``cost`` maps logits of the calibration split (M, K), on which the rule is fitted, and of the validation split
    (N, K) to the normalised cost of the latter's decisions.
    """

    calibration: PackedSplit
    cost: Callable[[NDArray[np.float32], NDArray[np.float32]], float]


def train_model(
    model: ImageClassifier,
    train: PackedSplit,
    validation: PackedSplit,
    preprocessing: Preprocessing,
    loss_fn: TrainingLoss,
    params: TrainParams,
    seed: int,
    hardware: Hardware,
    priced: PricedMonitor | None = None,
    on_epoch: Callable[[int, Metrics, float], None] = lambda epoch, metrics, images_per_second: None,
) -> TrainingResult:
    """Train, and keep the weights of the epoch whose ``train.monitor`` is best on the validation split.

    Every draw is a function of (seed, epoch, step or sample index), so equal arguments give equal bits.

    Parameters
    ----------
    priced : what ``train.monitor: normalised_cost`` needs; without it that metric is not computed.
    on_epoch : called after each epoch with its number (from 1), its row of the curves, and training images/s.

    Raises
    ------
    UdcError
        The loss is no longer finite; the message names the epoch and the images of the batch.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's products are not deterministic
    torch.use_deterministic_algorithms(True)
    device, augmentation = hardware.device, Augmentation(params.augment, params.horizontal_flip)
    model.to(device).to(memory_format=hardware.memory_format)
    model.gradient_checkpointing_enable(params.gradient_checkpointing)
    frozen = freeze_stages(model, params.num_frozen_stages)
    optimizer = build_optimizer(model, params)
    steps_per_epoch = len(epoch_batches(len(train), params.batch_size, seed, 0))
    schedule = build_schedule(optimizer, params.epochs * steps_per_epoch, params)
    scaler = torch.amp.GradScaler(device.type, enabled=hardware.precision == "fp16")
    result, best, patience, told = TrainingResult(), -math.inf, 0, ""

    for epoch in range(params.epochs):
        train_mode(model, frozen)
        loss_fn.start_epoch(epoch, params.epochs)
        batches = epoch_batches(len(train), params.batch_size, seed, epoch)
        draws = torch.from_numpy(augmentation.draws(len(train), seed, epoch))
        total_loss, started = 0.0, time.perf_counter()
        bar = tqdm(batches, desc=f"epoch {epoch + 1}/{params.epochs}", unit="batch", disable=None, leave=False)
        for step, indices in enumerate(bar):
            torch.manual_seed(step_seed(seed, epoch, step))  # for drop path
            stored = gather(train, indices).to(device, non_blocking=True)
            images = training_input(stored, draws[indices].to(device), augmentation, preprocessing)
            targets = torch.from_numpy(train.labels[indices]).to(device)
            with hardware.autocast():
                logits = model(images.to(memory_format=hardware.memory_format)).logits
            loss = loss_fn(logits, targets)
            if not torch.isfinite(loss):
                names = ", ".join(train.paths[i] for i in indices)
                raise UdcError(f"the loss is {loss.item()} in epoch {epoch + 1}, step {step + 1}; "
                               f"lower train.learning_rate or set train.clip_grad_norm. Images: {names}")  # fmt: skip
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if params.clip_grad_norm is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), params.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            total_loss += loss.item() * len(indices)
            seen = (step + 1) * len(train) / steps_per_epoch
            bar.set_postfix_str(f"loss {loss.item():.3f}, {told}{seen / (time.perf_counter() - started):,.0f} img/s")

        images_per_second = len(train) / (time.perf_counter() - started)
        scores = validation_scores(model, validation, preprocessing, params.batch_size, hardware, priced)
        metrics: Metrics = {
            "train_loss": total_loss / len(train),
            **scores,
            "learning_rate": float(schedule.get_last_lr()[-1]),  # the head's, the largest
        }
        result.curves.append({"epoch": epoch + 1, **metrics})
        on_epoch(epoch + 1, metrics, images_per_second)

        monitored = scores[f"validation_{params.monitor}"]
        told = f"validation {params.monitor} {monitored:.4f}, "
        score = -monitored if params.monitor in ("log_loss", "normalised_cost") else monitored
        if score > best:
            best, patience, result.best_epoch = score, 0, epoch + 1
            result.best_state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
        else:
            patience += 1
        if params.early_stopping_patience is not None and patience >= params.early_stopping_patience:
            break
    if not result.best_epoch:
        raise UdcError(f"no epoch had a finite validation {params.monitor}; lower train.learning_rate")
    return result


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of torch's generator for one step, a pure function of its arguments."""
    return int(np.random.SeedSequence([seed, epoch, step]).generate_state(1, np.uint64)[0] >> 1)


def validation_scores(
    model: ImageClassifier,
    split: PackedSplit,
    preprocessing: Preprocessing,
    batch_size: int,
    hardware: Hardware,
    priced: PricedMonitor | None = None,
) -> Metrics:
    """The metrics that ``train.monitor`` can name on one split: of argmax decisions, and of the priced ones."""
    model.eval()

    def forward(images: Tensor) -> Tensor:
        images = images.to(hardware.device, memory_format=hardware.memory_format)
        with hardware.autocast():
            return torch.as_tensor(model(images).logits)

    logits = compute_logits(forward, split.images, preprocessing, batch_size)
    decisions: NDArray[np.intp] = logits.argmax(axis=1)
    scores = {
        "validation_log_loss": negative_log_likelihood(logits, split.labels),
        "validation_accuracy": float(accuracy_score(split.labels, decisions)),
        "validation_balanced_accuracy": float(balanced_accuracy_score(split.labels, decisions)),
        "validation_macro_f1": float(f1_score(split.labels, decisions, average="macro", zero_division=0.0)),
    }
    if priced is not None:
        calibration = np.empty((0, logits.shape[1]), np.float32)  # some rules need no calibration split
        if len(priced.calibration):
            calibration = compute_logits(forward, priced.calibration.images, preprocessing, batch_size)
        scores["validation_normalised_cost"] = priced.cost(calibration, logits)
    return scores
