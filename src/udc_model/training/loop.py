"""The training loop, readable from top to bottom."""

from __future__ import annotations

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
from udc_model.data.augmentation import Augmentation, Mixing, derived_seed
from udc_model.data.batches import EpochBatches, TrainingBatches
from udc_model.data.loading import compute_logits
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier
from udc_model.params import TrainParams
from udc_model.training.checkpoint import CheckpointFolder
from udc_model.training.hardware import Hardware, set_determinism
from udc_model.training.optimisation import freeze_stages, learning_rate_factor, set_learning_rates, train_mode
from udc_model.training.state import EpochRecord, Metrics, TrainingState


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
    checkpoints: CheckpointFolder | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> TrainingResult:
    """Train, and keep the weights of the epoch whose ``train.monitor`` is best on the validation split.

    Every draw is a function of (seed, epoch, step or sample index), so equal arguments give equal bits, however often
    the training was killed and gone on with.

    Parameters
    ----------
    priced : what ``train.monitor: normalised_cost`` needs; without it that metric is not computed.
    checkpoints : where the training is kept; one that is found there is gone on with.
    on_epoch : called after each epoch that was saved; once more for the last one of a training that goes on.

    Raises
    ------
    UdcError
        The loss is no longer finite (the message names the epoch and the images of the batch), or a checkpoint cannot
        be written.
    """
    set_determinism(params.deterministic)
    model.to(hardware.device).to(memory_format=hardware.memory_format)
    model.gradient_checkpointing_enable(params.gradient_checkpointing)
    frozen = freeze_stages(model, params.num_frozen_stages)
    state = TrainingState(model, loss_fn, params, hardware.device, hardware.precision)
    augmentation = Augmentation.of(params)
    data = TrainingBatches(train, preprocessing, augmentation, params.batch_size, seed, params.sampling_power)
    progress = state.progress
    if checkpoints is not None and (found := checkpoints.take()):
        state.restore(found)
        progress = state.progress
        for record in progress.records[-1:]:
            on_epoch(record)  # it may not have been told before the kill

    while progress.epoch < params.epochs and not is_spent(state, params):
        started = time.perf_counter()
        train_mode(model, frozen)
        loss_fn.start_epoch(progress.epoch, params.epochs)
        train_epoch(state, data, params, hardware, checkpoints)
        images_per_second = len(train) / progress.epoch_seconds
        scores = validation_scores(state.judged, validation, preprocessing, params.batch_size, hardware, priced)
        factor = learning_rate_factor((progress.epoch + 1) * data.steps, data.steps, params)
        metrics: Metrics = {
            "train_loss": progress.total_loss / len(train),
            **scores,
            "learning_rate": params.learning_rate * factor,  # the head's, the largest
        }
        monitored = scores[f"validation_{params.monitor}"]
        score = -monitored if params.monitor in ("log_loss", "normalised_cost") else monitored
        record = state.end_epoch(metrics, images_per_second, score)
        progress.seconds += time.perf_counter() - started
        if checkpoints is not None:
            state.save(checkpoints)
        on_epoch(record)
    if not progress.best_epoch:
        raise UdcError(f"no epoch had a finite validation {params.monitor}; lower train.learning_rate")
    curves = [{"epoch": record.epoch, **record.metrics} for record in progress.records]
    return TrainingResult(curves, progress.best_epoch, state.best_state)


def is_spent(state: TrainingState, params: TrainParams) -> bool:
    """Whether ``early_stopping_patience`` or ``max_minutes`` ends the training before its last epoch."""
    impatient = params.early_stopping_patience is not None and state.progress.patience >= params.early_stopping_patience
    return impatient or (params.max_minutes is not None and state.progress.seconds >= 60 * params.max_minutes)


def train_epoch(
    state: TrainingState,
    data: TrainingBatches,
    params: TrainParams,
    hardware: Hardware,
    checkpoints: CheckpointFolder | None,
) -> None:
    """The steps of the epoch at work, from the one that ``state.progress`` names to its last."""
    progress, batches = state.progress, data.epoch(state.progress.epoch)
    mixing = Mixing(params.mixup, params.cutmix)
    told = ""
    if progress.records:
        last = progress.records[-1].metrics[f"validation_{params.monitor}"]
        told = f"validation {params.monitor} {last:.4f}, "
    bar = tqdm(range(progress.step, len(batches)), desc=f"epoch {progress.epoch + 1}/{params.epochs}", unit="batch",
               initial=progress.step, total=len(batches), disable=None, leave=False)  # fmt: skip
    for step in bar:
        started = time.perf_counter()
        set_learning_rates(
            state.optimizer, learning_rate_factor(progress.epoch * data.steps + step, data.steps, params)
        )
        images, targets = batches.load(step, hardware.device)
        torch.manual_seed(derived_seed(data.seed, progress.epoch, step))  # for mixing and drop path
        images, partners, share = mixing(images, targets)
        loss = train_step(state, images, targets, partners, share, params, hardware)
        if not np.isfinite(loss):
            raise UdcError(_not_finite(loss, progress.epoch, step, batches, checkpoints))
        progress.total_loss += loss * len(targets)
        progress.epoch_seconds += time.perf_counter() - started
        progress.step = step + 1
        if checkpoints is not None and progress.step < len(batches) and checkpoints.due():
            state.save(checkpoints)
        seen = progress.step * len(data.split) / len(batches)
        bar.set_postfix_str(f"loss {loss:.3f}, {told}{seen / progress.epoch_seconds:,.0f} img/s")


def train_step(
    state: TrainingState,
    images: Tensor,
    targets: Tensor,
    partners: Tensor,
    share: float,
    params: TrainParams,
    hardware: Hardware,
) -> float:
    """One step of the optimiser; returns the mean loss of the batch.

    The batch goes through the model in ``accumulation`` parts whose gradients add up to that of the whole.

    Parameters
    ----------
    images, targets : inputs (N, 3, S, S) and labels (N,).
    partners, share : labels (N,) of the images mixed in, and the share in [0, 1] of an image's own label.
    """
    state.loss_fn.start_step(targets)
    state.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    parts = min(params.accumulation, len(targets))
    for inputs, own, other in zip(*(whole.tensor_split(parts) for whole in (images, targets, partners)), strict=True):
        with hardware.autocast():
            logits = state.model(inputs.to(memory_format=hardware.memory_format)).logits
        loss = state.loss_fn(logits, own) * state.loss_fn.share(own, targets)
        if share < 1:
            mixed_in = state.loss_fn(logits, other) * state.loss_fn.share(other, partners)
            loss = share * loss + (1 - share) * mixed_in
        if not torch.isfinite(loss):
            return loss.item()
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    if params.clip_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), params.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.averaged is not None:
        state.averaged.update_parameters(state.model)
    return total


def _not_finite(loss: float, epoch: int, step: int, batches: EpochBatches, checkpoints: CheckpointFolder | None) -> str:
    kept = f" The last good checkpoint is {checkpoints.last}." if checkpoints and checkpoints.last else ""
    return (f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower train.learning_rate or set "
            f"train.clip_grad_norm.{kept} Images: {', '.join(batches.paths(step))}")  # fmt: skip


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
