"""The training loop, readable from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import Tensor
from torch.profiler import record_function
from tqdm import tqdm

from udc_model.config import TrainParams
from udc_model.data.augmentation import Mixing, seed_drop_path
from udc_model.data.batches import Batch
from udc_model.data.logits import compute_logits
from udc_model.decisions.calibration import negative_log_likelihood
from udc_model.errors import UdcError
from udc_model.training.optimisation import learning_rate_factor, set_learning_rates, train_mode
from udc_model.training.session import TrainingSession
from udc_model.training.state import Metrics, TrainingState


@dataclass
class TrainingResult:
    """Result of a training run.

    Parameters
    ----------
    curves : metrics of each epoch.
    best_epoch : the epoch, from 1, whose ``train.monitor`` is best on the validation split.
    best_state : the weights of that epoch.
    is_stopped : whether ``on_epoch`` ended the run before its last epoch.
    """

    curves: list[Metrics] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    is_stopped: bool = False


def train_model(session: TrainingSession) -> TrainingResult:
    """Train all epochs, from the session's checkpoint if there is one.

    Raises
    ------
    UdcError
        The loss is not finite (the message names the epoch and the images of the batch), or a checkpoint cannot be
        written.
    """
    batches, state, params = session.batches, session.state, session.params
    session.resume()
    progress = state.progress
    # the last epoch may not have been reported before the kill
    is_stopped = any(session.ends_at(record) for record in progress.records[-1:])

    while progress.epoch < params.epochs and not is_stopped and not is_over_limit(session):
        started = time.perf_counter()
        train_mode(state.model, state.frozen)
        session.loss_fn.start_epoch(progress.epoch, params.epochs)
        train_epoch(session)
        images_per_second = len(session.train) / progress.epoch_seconds
        session.ranks.copy_from_first(state.judged.buffers())  # each process has its own BatchNorm statistics
        scores = validation_scores(session)
        factor = learning_rate_factor((progress.epoch + 1) * batches.steps, batches.steps, params)
        metrics: Metrics = {
            "train_loss": progress.total_loss / len(session.train),
            **scores,
            "learning_rate": params.learning_rate * factor,  # that of the head, the largest
        }
        monitored = scores[f"validation_{params.monitor}"]
        score = -monitored if params.monitor in ("log_loss", "normalised_cost") else monitored
        record = state.end_epoch(metrics, images_per_second, score)
        progress.seconds += time.perf_counter() - started
        if session.checkpoints is not None or params.sharded:
            state.save(session.checkpoints)
        is_stopped = session.ends_at(record)
    if not progress.best_epoch:
        raise UdcError(f"no epoch had a finite validation {params.monitor}; lower train.learning_rate")
    curves = [{"epoch": record.epoch, **record.metrics} for record in progress.records]
    return TrainingResult(curves, progress.best_epoch, state.best_state, is_stopped)


def is_over_limit(session: TrainingSession) -> bool:
    """Whether ``early_stopping_patience`` or ``max_minutes`` ends the training run before its last epoch."""
    params, progress = session.params, session.state.progress
    if params.early_stopping_patience is not None and progress.patience >= params.early_stopping_patience:
        return True
    is_late = params.max_minutes is not None and progress.seconds >= 60 * params.max_minutes
    return session.ranks.sum(is_late and session.ranks.is_first) > 0  # the clocks of the processes differ


def train_epoch(session: TrainingSession) -> None:
    """The remaining steps of the current epoch, from the one that the state's progress names."""
    state, batches, params = session.state, session.batches, session.params
    progress = state.progress
    loaded = iter(batches.load(progress.epoch, progress.step, session.hardware.device))
    bar = tqdm(range(progress.step, batches.steps), desc=f"epoch {progress.epoch + 1}/{params.epochs}", unit="batch",
               initial=progress.step, total=batches.steps, disable=None if session.ranks.is_first else True,
               leave=False)  # fmt: skip
    for step in bar:
        started = time.perf_counter()
        with record_function("udc: load and augment"):
            _, batch = next(loaded)
        factor = learning_rate_factor(progress.epoch * batches.steps + step, batches.steps, params)
        set_learning_rates(state.optimizer, factor)
        loss = train_step(session, batch, (session.seed, progress.epoch, step))
        if not np.isfinite(loss):
            raise UdcError(_not_finite(session, loss, step))
        progress.total_loss += loss * len(batch.all_targets)
        progress.epoch_seconds += time.perf_counter() - started
        progress.step = step + 1
        if progress.step < batches.steps and _is_checkpoint_due(session):
            state.save(session.checkpoints)
        bar.set_postfix_str(_bar_text(session, loss))


def _bar_text(session: TrainingSession, loss: float) -> str:
    """Loss, last validation metric and speed."""
    progress, monitor = session.state.progress, session.params.monitor
    last = [f"validation {monitor} {record.metrics[f'validation_{monitor}']:.4f}" for record in progress.records[-1:]]
    images = progress.step * len(session.train) / session.batches.steps
    return ", ".join([f"loss {loss:.3f}", *last, f"{images / progress.epoch_seconds:,.0f} img/s"])


def _is_checkpoint_due(session: TrainingSession) -> bool:
    """Whether to save within an epoch; the same in all processes of a sharded model, which must all take part."""
    is_due = session.checkpoints is not None and session.checkpoints.due()
    return session.ranks.sum(is_due) > 0 if session.params.sharded else is_due


def train_step(session: TrainingSession, batch: Batch, key: tuple[int, int, int]) -> float:
    """One optimiser step.

    The batch goes through the model in ``accumulation`` parts. Their gradients, and those of the processes, add up to
    the gradient of the whole batch.

    Parameters
    ----------
    key : (seed, epoch, step), which determine the mixtures and the random numbers in the model.

    Returns
    -------
    The mean loss of the whole batch. The step is left out if it is not finite.
    """
    state, params, hardware, ranks = session.state, session.params, session.hardware, session.ranks
    images, partners, share = Mixing(params.mixup, params.cutmix)(batch.images, batch.targets, *key)
    images, targets, partners = (tensor[batch.overlap :] for tensor in (images, batch.targets, partners))
    seed_drop_path(*key, ranks.rank)
    state.loss_fn.start_step(batch.all_targets)
    state.optimizer.zero_grad(set_to_none=True)
    total, parts = 0.0, min(params.accumulation, len(targets))
    for number, (inputs, labels, mixed_labels) in enumerate(_parts(parts, images, targets, partners), 1):
        with nullcontext() if number == parts else ranks.without_sync(state.forward):
            with hardware.autocast(), record_function("udc: forward"):
                logits = state.forward(inputs.to(memory_format=hardware.memory_format)).logits
            with record_function("udc: loss"):
                loss = state.loss_fn(logits, labels) * state.loss_fn.share(labels, batch.all_targets)
                if share < 1:
                    mixed = state.loss_fn(logits, mixed_labels) * state.loss_fn.share(mixed_labels, batch.all_targets)
                    loss = share * loss + (1 - share) * mixed
            with record_function("udc: backward"):
                # times the number of processes, because the gradient is averaged over them
                state.scaler.scale(loss * ranks.world).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    total = ranks.sum(total)
    if np.isfinite(total):
        with record_function("udc: optimiser"):
            _update(state, params)
    return total


def _parts(n: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Each of n parts of several tensors."""
    return zip(*(tensor.tensor_split(n) for tensor in tensors), strict=True)


def _update(state: TrainingState, params: TrainParams) -> None:
    if params.clip_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), params.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.averaged is not None:
        state.averaged.update_parameters(state.model)


def _not_finite(session: TrainingSession, loss: float, step: int) -> str:
    checkpoints, epoch = session.checkpoints, session.state.progress.epoch
    last = f" The last good checkpoint is {checkpoints.last}." if checkpoints and checkpoints.last else ""
    return (f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower train.learning_rate or set "
            f"train.clip_grad_norm.{last} Images: {', '.join(session.batches.paths(epoch, step))}")  # fmt: skip


def validation_scores(session: TrainingSession) -> Metrics:
    """The metrics that ``train.monitor`` can name, on the validation split.

    All but ``normalised_cost`` are metrics of argmax decisions. Each process runs the model on its part of the images,
    and all get the metrics of the whole split.
    """
    model = session.state.judged
    model.eval()
    logits = _shared_logits(session, session.validation.images)
    labels = session.validation.labels
    decided: NDArray[np.intp] = logits.argmax(axis=1)
    scores = {
        "validation_log_loss": negative_log_likelihood(logits, labels),
        "validation_accuracy": float(accuracy_score(labels, decided)),
        "validation_balanced_accuracy": float(balanced_accuracy_score(labels, decided)),
        "validation_macro_f1": float(f1_score(labels, decided, average="macro", zero_division=0.0)),
    }
    if session.cost_monitor is not None:
        calibration = _shared_logits(session, session.cost_monitor.calibration.images)  # may be empty
        scores["validation_normalised_cost"] = session.cost_monitor.cost(calibration, logits)
    return scores


def _shared_logits(session: TrainingSession, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (N, K) of stored images, each process computing its part."""
    model, hardware, ranks = session.state.judged, session.hardware, session.ranks

    def forward(inputs: Tensor) -> Tensor:
        inputs = inputs.to(hardware.device, memory_format=hardware.memory_format)
        with hardware.autocast():
            return torch.as_tensor(model(inputs).logits)

    if not len(images):
        return np.empty((0, model.config.num_labels), np.float32)
    part = ranks.part(len(images))
    # the same number in each process, because the processes of a sharded model need each other at every batch
    longest = -(-len(images) // ranks.world)
    first = min(part.start, len(images) - longest)
    logits = compute_logits(forward, images[first : first + longest], session.preprocessing, session.batches.batch_size)
    return ranks.gather(logits[part.start - first : part.stop - first], len(images))
