"""The training loop, readable from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import Tensor
from torch.profiler import record_function
from tqdm import tqdm

from udc_model.config import TrainParams
from udc_model.data.augmentation import Augmentation, Mixing, seed_drop_path
from udc_model.data.batches import Batch, TrainingBatches
from udc_model.data.logits import compute_logits
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.calibration import negative_log_likelihood
from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier
from udc_model.training.checkpoints import Checkpoint, CheckpointFolder
from udc_model.training.distribution import ALONE, Ranks
from udc_model.training.hardware import Hardware, set_arithmetic
from udc_model.training.losses import TrainingLoss
from udc_model.training.optimisation import (
    averaged_model,
    freeze_stages,
    learning_rate_factor,
    set_learning_rates,
    train_mode,
)
from udc_model.training.state import EpochRecord, Metrics, TrainingState


@dataclass
class TrainingResult:
    """What a training found: one row of metrics an epoch, and the weights of the best epoch (from 1)."""

    curves: list[Metrics] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CostMonitor:
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
    priced: CostMonitor | None = None,
    checkpoints: CheckpointFolder | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    ranks: Ranks = ALONE,
) -> TrainingResult:
    """Train, and keep the weights of the epoch whose ``train.monitor`` is best on the validation split.

    Every draw is a function of (seed, epoch, step or sample index), so equal arguments give equal bits, however often
    the training was killed and gone on with.

    Parameters
    ----------
    priced : what ``train.monitor: normalised_cost`` needs; without it that metric is not computed.
    checkpoints : where the training is kept; one that is found there is gone on with. Of the first process only.
    on_epoch : called after each epoch that was saved; once more for the last one of a training that goes on.
    ranks : the processes that share each batch; all of them call this, and get the same result.

    Raises
    ------
    UdcError
        The loss is no longer finite (the message names the epoch and the images of the batch), or a checkpoint cannot
        be written.
    """
    data = training_batches(train, preprocessing, params, seed, ranks)
    state = start(model, loss_fn, data, params, hardware, ranks)
    progress = state.progress
    if found := ranks.from_first(checkpoints.take() if checkpoints else None):
        progress = state.restore(Checkpoint.parse(found))
        for record in progress.records[-1:]:
            on_epoch(record)  # it may not have been told before the kill

    while progress.epoch < params.epochs and not is_spent(state, params, ranks):
        started = time.perf_counter()
        train_mode(state.model, state.frozen)
        loss_fn.start_epoch(progress.epoch, params.epochs)
        train_epoch(state, data, params, hardware, checkpoints, ranks)
        images_per_second = len(train) / progress.epoch_seconds
        ranks.copy_from_first(state.judged.buffers())  # BatchNorm's statistics are each process's own
        scores = validation_scores(state.judged, validation, preprocessing, data.batch_size, hardware, priced, ranks)
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
        if checkpoints is not None or params.sharded:
            state.save(checkpoints)
        on_epoch(record)
    if not progress.best_epoch:
        raise UdcError(f"no epoch had a finite validation {params.monitor}; lower train.learning_rate")
    curves = [{"epoch": record.epoch, **record.metrics} for record in progress.records]
    return TrainingResult(curves, progress.best_epoch, state.best_state)


def training_batches(
    train: PackedSplit, preprocessing: Preprocessing, params: TrainParams, seed: int, ranks: Ranks = ALONE
) -> TrainingBatches:
    """The batches that ``params`` describe; :class:`UdcError` if one is too small for all processes to have a part."""
    if not isinstance(params.batch_size, int):
        raise TypeError("train.batch_size: auto must be resolved first")
    data = TrainingBatches(
        train, preprocessing, Augmentation.of(params), params.batch_size, seed, params.sampling_power,
        params.loader_workers, ranks.rank, ranks.world, ranks.world > 1 and bool(Mixing(params.mixup, params.cutmix)),
    )  # fmt: skip
    if (smallest := len(train) // data.steps) < ranks.world:
        raise UdcError(f"{ranks.world} processes cannot share a batch of {smallest}; raise train.batch_size")
    return data


def start(
    model: ImageClassifier,
    loss_fn: TrainingLoss,
    data: TrainingBatches,
    params: TrainParams,
    hardware: Hardware,
    ranks: Ranks = ALONE,
) -> TrainingState:
    """The state before the first step; the model is moved to the hardware, of a sharded one a copy."""
    set_arithmetic(params)
    if params.sharded:
        check_sharding(params, hardware, ranks)
        model = deepcopy(model)
    else:
        model.to(hardware.device).to(memory_format=hardware.memory_format)
    model.gradient_checkpointing_enable(params.gradient_checkpointing)
    if params.sync_batchnorm:
        if hardware.device.type != "cuda":
            raise UdcError("train.sync_batchnorm: torch has it for GPUs only; set it to false")
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    frozen = freeze_stages(model, params.num_frozen_stages)
    averaged = averaged_model(model, params.ema_decay)
    if params.sharded:
        ranks.shard(model, hardware.device)
        if averaged is not None:
            ranks.shard(averaged.module, hardware.device)  # type: ignore[arg-type]
    state = TrainingState(model, averaged, loss_fn, params, hardware, frozen)
    if params.compile:
        model.compile()
    if not params.sharded:
        size = data.preprocessing.size
        example = torch.zeros(1, 3, size, size, device=hardware.device).to(memory_format=hardware.memory_format)
        state.forward = ranks.parallel(model, hardware.device, example)
    return state


def check_sharding(params: TrainParams, hardware: Hardware, ranks: Ranks) -> None:
    """:class:`UdcError` where ``train.sharded`` cannot be."""
    if ranks.world == 1:
        raise UdcError("train.sharded: one process has nobody to share with; set train.processes, or start several "
                       "with torchrun")  # fmt: skip
    if hardware.precision == "fp16":
        raise UdcError("train.sharded: the loss scaler of fp16 knows no parted gradients; use bf16 or fp32")
    if params.compile:
        raise UdcError("train.sharded: train.compile would see the whole model; set one of them to false")


def is_spent(state: TrainingState, params: TrainParams, ranks: Ranks = ALONE) -> bool:
    """Whether ``early_stopping_patience`` or ``max_minutes`` ends the training before its last epoch."""
    impatient = params.early_stopping_patience is not None and state.progress.patience >= params.early_stopping_patience
    late = params.max_minutes is not None and state.progress.seconds >= 60 * params.max_minutes
    return impatient or ranks.sum(late and ranks.is_first) > 0  # clocks differ


def train_epoch(
    state: TrainingState,
    data: TrainingBatches,
    params: TrainParams,
    hardware: Hardware,
    checkpoints: CheckpointFolder | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """The steps of the epoch at work, from the one that ``state.progress`` names to its last."""
    progress, told = state.progress, ""
    if progress.records:
        last = progress.records[-1].metrics[f"validation_{params.monitor}"]
        told = f"validation {params.monitor} {last:.4f}, "
    batches = iter(data.load(progress.epoch, progress.step, hardware.device))
    bar = tqdm(range(progress.step, data.steps), desc=f"epoch {progress.epoch + 1}/{params.epochs}", unit="batch",
               initial=progress.step, total=data.steps, disable=None if ranks.is_first else True,
               leave=False)  # fmt: skip
    for step in bar:
        started = time.perf_counter()
        with record_function("udc: load and augment"):
            _, batch = next(batches)
        set_learning_rates(
            state.optimizer, learning_rate_factor(progress.epoch * data.steps + step, data.steps, params)
        )
        loss = train_step(state, batch, (data.seed, progress.epoch, step), params, hardware, ranks)
        if not np.isfinite(loss):
            raise UdcError(_not_finite(loss, progress.epoch, step, data, checkpoints))
        progress.total_loss += loss * len(batch.all_targets)
        progress.epoch_seconds += time.perf_counter() - started
        progress.step = step + 1
        if progress.step < data.steps and _is_due(checkpoints, params, ranks):
            state.save(checkpoints)
        seen = progress.step * len(data.split) / data.steps
        bar.set_postfix_str(f"loss {loss:.3f}, {told}{seen / progress.epoch_seconds:,.0f} img/s")


def _is_due(checkpoints: CheckpointFolder | None, params: TrainParams, ranks: Ranks) -> bool:
    """Whether to save within an epoch; the same in all processes of a sharded model, which all take part in it."""
    due = checkpoints is not None and checkpoints.due()
    return ranks.sum(due) > 0 if params.sharded else due


def train_step(
    state: TrainingState,
    batch: Batch,
    key: tuple[int, int, int],
    params: TrainParams,
    hardware: Hardware,
    ranks: Ranks = ALONE,
) -> float:
    """One step of the optimiser; returns the mean loss of the whole batch, without a step where that is not finite.

    The batch goes through the model in ``accumulation`` parts whose gradients add up to that of the whole, and so do
    those of the processes.

    Parameters
    ----------
    key : (seed, epoch, step), which determine the mixtures and what the model draws.
    """
    images, partners, kept = Mixing(params.mixup, params.cutmix)(batch.images, batch.targets, *key)
    images, targets, partners = (whole[batch.overlap :] for whole in (images, batch.targets, partners))
    seed_drop_path(*key, ranks.rank)
    state.loss_fn.start_step(batch.all_targets)
    state.optimizer.zero_grad(set_to_none=True)
    total, parts = 0.0, min(params.accumulation, len(targets))
    split = zip(*(whole.tensor_split(parts) for whole in (images, targets, partners)), strict=True)
    for part, (inputs, own, other) in enumerate(split, 1):
        with nullcontext() if part == parts else ranks.without_sync(state.forward):
            with hardware.autocast(), record_function("udc: forward"):
                logits = state.forward(inputs.to(memory_format=hardware.memory_format)).logits
            with record_function("udc: loss"):
                loss = state.loss_fn(logits, own) * state.loss_fn.share(own, batch.all_targets)
                if kept < 1:
                    mixed_in = state.loss_fn(logits, other) * state.loss_fn.share(other, batch.all_targets)
                    loss = kept * loss + (1 - kept) * mixed_in
            with record_function("udc: backward"):
                # times the number of processes, over which the gradient is averaged
                state.scaler.scale(loss * ranks.world).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    total = ranks.sum(total)
    if np.isfinite(total):
        with record_function("udc: optimiser"):
            _update(state, params)
    return total


def _update(state: TrainingState, params: TrainParams) -> None:
    if params.clip_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), params.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.averaged is not None:
        state.averaged.update_parameters(state.model)


def _not_finite(loss: float, epoch: int, step: int, data: TrainingBatches, checkpoints: CheckpointFolder | None) -> str:
    kept = f" The last good checkpoint is {checkpoints.last}." if checkpoints and checkpoints.last else ""
    return (f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower train.learning_rate or set "
            f"train.clip_grad_norm.{kept} Images: {', '.join(data.paths(epoch, step))}")  # fmt: skip


def validation_scores(
    model: ImageClassifier,
    split: PackedSplit,
    preprocessing: Preprocessing,
    batch_size: int,
    hardware: Hardware,
    priced: CostMonitor | None = None,
    ranks: Ranks = ALONE,
) -> Metrics:
    """The metrics that ``train.monitor`` can name on one split: of argmax decisions, and of the priced ones.

    Each process runs the model on its part of the images; all get the metrics of the whole.
    """
    model.eval()

    def forward(images: Tensor) -> Tensor:
        images = images.to(hardware.device, memory_format=hardware.memory_format)
        with hardware.autocast():
            return torch.as_tensor(model(images).logits)

    def shared_logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not len(images):
            return np.empty((0, model.config.num_labels), np.float32)
        own = ranks.part(len(images))
        # as many for each process, for those of a sharded model need each other at every batch
        longest = -(-len(images) // ranks.world)
        first = min(own.start, len(images) - longest)
        logits = compute_logits(forward, images[first : first + longest], preprocessing, batch_size)
        return ranks.gather(logits[own.start - first : own.stop - first], len(images))

    logits = shared_logits(split.images)
    decisions: NDArray[np.intp] = logits.argmax(axis=1)
    scores = {
        "validation_log_loss": negative_log_likelihood(logits, split.labels),
        "validation_accuracy": float(accuracy_score(split.labels, decisions)),
        "validation_balanced_accuracy": float(balanced_accuracy_score(split.labels, decisions)),
        "validation_macro_f1": float(f1_score(split.labels, decisions, average="macro", zero_division=0.0)),
    }
    if priced is not None:
        calibration = shared_logits(priced.calibration.images)  # perhaps none: some rules need no such split
        scores["validation_normalised_cost"] = priced.cost(calibration, logits)
    return scores
