"""The training loop, readable from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from udc_model.data.augmentation import Mixing, seed_drop_path
from udc_model.data.batches import Batch
from udc_model.data.logits import Images, compute_logits
from udc_model.data.margins import Margins
from udc_model.decisions.calibration import negative_log_likelihood
from udc_model.errors import UdcError
from udc_model.training.optimisation import learning_rate_factor, set_learning_rates, train_mode
from udc_model.training.session import EpochRecord, Metrics, TrainingSession

_MINIMISED = ("log_loss", "normalised_cost")  # values of train.monitor of which smaller is better


@dataclass
class TrainingResult:
    """The result of a training run.

    Parameters
    ----------
    curves : one row of metrics for each epoch.
    best_epoch : number of the best epoch, from 1.
    best_state : weights of the best epoch.
    is_stopped : whether ``on_epoch`` of `train_model` ended the training run.
    best_score : ``train.monitor`` of the best epoch, negative if smaller is better.
    temperature : divisor of the logits, see `udc_model.training.members.train_members`.
    margins : of the training images, in all epochs.
    seconds : duration of the epochs, validation included; the only value that is not the same in each training run.
    """

    curves: list[Metrics] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    is_stopped: bool = False
    best_score: float = -np.inf
    temperature: float = 1.0
    margins: Margins | None = None
    seconds: float = 0.0


def train_model(
    session: TrainingSession, on_epoch: Callable[[EpochRecord], bool] = lambda record: False
) -> TrainingResult:
    """Train, and select the weights of the epoch whose ``train.monitor`` is best on the validation split.

    Every random draw is a function of (seed, epoch, step or sample index), so equal sessions give equal bits, however
    often the training run was killed and resumed. A checkpoint in ``session.checkpoints`` is resumed. With several
    processes, all of them call this function and get the same result.

    Parameters
    ----------
    on_epoch : called after each epoch has been saved, and once for the last epoch of a resumed training run; returns
        whether to end the training run.

    Raises
    ------
    UdcError
        The loss is not finite (the message names the epoch and the images of the batch), or a checkpoint cannot be
        written.
    """
    session.start()
    session.resume()
    if session.display is not None:
        session.display.start(session)
    progress, params = session.progress, session.params.train
    # the process may have been killed before it reported this epoch
    is_stopped = bool(progress.records) and _is_stopped(session, on_epoch)

    while not is_stopped and not session.is_finished():
        started, num_steps = time.perf_counter(), session.batches.steps - progress.step
        seconds_before = progress.epoch_seconds  # steps of a process that was killed in this epoch
        train_mode(session.trained, session.frozen)
        session.loss_fn.start_epoch(progress.epoch, params.epochs)
        train_epoch(session)
        images_per_second = len(session.train_split) / progress.epoch_seconds
        session.ranks.copy_from_first(session.evaluated_model.buffers())  # BatchNorm's statistics differ by process
        scores = validation_scores(session)
        steps = session.batches.steps
        metrics: Metrics = {
            "train_loss": progress.total_loss / len(session.train_split),
            **scores,
            # of the head, the largest, in the last step
            "learning_rate": params.learning_rate
            * learning_rate_factor((progress.epoch + 1) * steps - 1, steps, params),
        }
        monitored = scores[f"validation_{params.monitor}"]
        score = -monitored if params.monitor in _MINIMISED else monitored
        session.end_epoch(metrics, images_per_second, score)
        progress.seconds += seconds_before + time.perf_counter() - started
        session.save()
        if session.display is not None:
            session.display.end_epoch(time.perf_counter() - started, num_steps)
        is_stopped = _is_stopped(session, on_epoch)

    if not progress.best_epoch and not is_stopped:
        raise UdcError(f"train.monitor: no epoch had a finite validation {params.monitor}; lower train.learning_rate")
    curves = [{"epoch": record.epoch, **record.metrics} for record in progress.records]
    return TrainingResult(curves, progress.best_epoch, session.best_state, is_stopped, progress.best_score,
                          margins=session.margins.margins(), seconds=progress.seconds)  # fmt: skip


def _is_stopped(session: TrainingSession, on_epoch: Callable[[EpochRecord], bool]) -> bool:
    """Whether ``on_epoch`` of any process ends the training run after the last epoch."""
    return session.ranks.sum(on_epoch(session.progress.records[-1])) > 0


def train_epoch(session: TrainingSession, limit: int | None = None) -> None:
    """Run the steps of the current epoch, from ``session.progress.step`` to the last, or ``limit`` of them at most."""
    progress, params, batches = session.progress, session.params.train, session.batches
    last = batches.steps if limit is None else min(batches.steps, progress.step + limit)
    loaded = iter(batches.load(progress.epoch, progress.step, session.hardware.device))
    for step in range(progress.step, last):
        started = time.perf_counter()
        with record_function("udc: load and augment"):
            _, batch = next(loaded)
        factor = learning_rate_factor(progress.epoch * batches.steps + step, batches.steps, params)
        set_learning_rates(session.optimizer, factor)
        loss = train_step(session, batch, (session.params.seed, progress.epoch, step))
        if not np.isfinite(loss):
            raise UdcError(_not_finite(session, loss))
        progress.total_loss += loss * len(batch.all_targets)
        seconds = time.perf_counter() - started
        progress.epoch_seconds += seconds
        progress.step = step + 1
        if progress.step < batches.steps and session.checkpoint_is_due():
            session.save()
        if session.display is not None:
            session.display.add_step(session, loss, seconds)


def train_step(session: TrainingSession, batch: Batch, key: tuple[int, int, int]) -> float:
    """Run one step of the optimiser; returns the mean loss of the batch over all processes.

    The batch passes the model in ``train.accumulation`` parts. The gradients of the parts, and of the processes, add up
    to the gradient of the batch. If the loss is not finite, the weights stay as they are.

    Parameters
    ----------
    key : (seed, epoch, step), which determine how images are mixed and the random draws of the model.
    """
    params, hardware, ranks, loss_fn = session.params.train, session.hardware, session.ranks, session.loss_fn
    images, partners, share = Mixing(params.mixup, params.cutmix)(batch.images, batch.targets, *key)
    images, targets, partners = (rows[batch.overlap :] for rows in (images, batch.targets, partners))
    seed_drop_path(*key, ranks.rank)
    loss_fn.start_step(batch.all_targets)
    session.optimizer.zero_grad(set_to_none=True)
    total, num_parts, all_logits = 0.0, min(params.accumulation, len(targets)), []
    parts = zip(*(rows.tensor_split(num_parts) for rows in (images, targets, partners)), strict=True)
    for number, (inputs, first, second) in enumerate(parts, 1):
        with nullcontext() if number == num_parts else ranks.without_sync(session.forward):
            with hardware.autocast(), record_function("udc: forward"):
                logits = session.logits(inputs)
            with record_function("udc: loss"):
                loss = loss_fn(logits, first) * loss_fn.share(first, batch.all_targets)
                if share < 1:
                    second_loss = loss_fn(logits, second) * loss_fn.share(second, batch.all_targets)
                    loss = share * loss + (1 - share) * second_loss
            with record_function("udc: backward"):
                # the gradient is averaged over the processes, so the loss is multiplied by their number
                session.scaler.scale(loss * ranks.world).backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        all_logits.append(logits)
    if share >= 0.5:
        session.margins.add(batch.all_indices, all_logits, targets, share)
    else:  # the image before each one has the larger share
        session.margins.add(np.roll(batch.all_indices, 1), all_logits, partners, 1 - share)
    total = ranks.sum(total)
    if np.isfinite(total):
        with record_function("udc: optimiser"):
            _update(session)
    return total


def _update(session: TrainingSession) -> None:
    """Clip the gradients, update the weights, then their average."""
    max_norm = session.params.train.clip_grad_norm
    if max_norm is not None:
        session.scaler.unscale_(session.optimizer)
        torch.nn.utils.clip_grad_norm_(session.trained.parameters(), max_norm)
    session.scaler.step(session.optimizer)
    session.scaler.update()
    if session.averaged is not None:
        session.averaged.update_parameters(session.trained)


def _not_finite(session: TrainingSession, loss: float) -> str:
    """The message for a loss that is not finite in the current step."""
    epoch, step, checkpoints = session.progress.epoch, session.progress.step, session.checkpoints
    last = f" The last good checkpoint is {checkpoints.last}." if checkpoints and checkpoints.last else ""
    return (f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower train.learning_rate or set "
            f"train.clip_grad_norm.{last} Images: {', '.join(session.batches.paths(epoch, step))}")  # fmt: skip


def validation_scores(session: TrainingSession) -> Metrics:
    """The metrics that ``train.monitor`` can name: of argmax decisions, and of the cost monitor if there is one.

    Each process runs the model on its part of the images; all processes get the metrics of the complete split.
    """
    split, monitor = session.validation_split, session.cost_monitor
    logits = score_images(session, session.features.get("validation", split.images))
    decisions: NDArray[np.intp] = logits.argmax(axis=1)
    scores = {
        "validation_log_loss": negative_log_likelihood(logits, split.labels),
        **classification_scores(split.labels, decisions, logits.shape[1]),
    }
    if monitor is not None:
        # the split may be empty: some policies need no calibration data
        calibration_images = session.features.get("calibration", monitor.calibration.images)
        calibration_logits = score_images(session, calibration_images)
        scores["validation_normalised_cost"] = monitor.cost(calibration_logits, logits)
    if session.display is not None:
        session.display.add_validation(session, logits, scores)
    return scores


def classification_scores(labels: NDArray[np.integer], decisions: NDArray[np.integer], num_labels: int) -> Metrics:
    """Accuracy, balanced accuracy over the classes that occur, and macro F1 over those that occur or are decided.

    Equal to the bit to ``sklearn.metrics``, whose import takes longer than a short training run.
    """
    true, decided = (np.bincount(classes, minlength=num_labels) for classes in (labels, decisions))
    right = np.bincount(labels[labels == decisions], minlength=num_labels)
    occurs, is_counted = true > 0, true + decided > 0
    return {
        "validation_accuracy": float(np.mean(labels == decisions)),
        "validation_balanced_accuracy": float(np.mean(right[occurs] / true[occurs])),
        "validation_macro_f1": float(np.mean(2 * right[is_counted] / (true + decided)[is_counted])),
    }


def best_validation_logits(session: TrainingSession) -> NDArray[np.float32]:
    """Logits (N, K) of the validation split under the best weights, which replace the last ones of the session."""
    session.load_best()
    return score_images(session, session.features.get("validation", session.validation_split.images))


def score_images(session: TrainingSession, images: Images | Tensor) -> NDArray[np.float32]:
    """Logits (N, K) of stored images (N, S, S, C), of which each process computes a part; or of features (N, D).

    The model that is evaluated is in eval mode afterwards.
    """
    model, hardware, ranks, n = session.evaluated_model.eval(), session.hardware, session.ranks, len(images)
    if not n:
        return np.empty((0, model.config.num_labels), np.float32)
    if isinstance(images, Tensor):
        with hardware.autocast(), torch.inference_mode():
            return model.head(images.to(hardware.device)).float().cpu().numpy()

    def forward(inputs: Tensor) -> Tensor:
        inputs = inputs.to(hardware.device, memory_format=hardware.memory_format)
        with hardware.autocast():
            return torch.as_tensor(model(inputs).logits)

    part = ranks.part(n)
    # equally many images for each process: the processes of a sharded model need each other for every batch
    longest = -(-n // ranks.world)
    first = min(part.start, n - longest)
    batch_size = session.batches.batch_size
    logits = compute_logits(forward, images[first : first + longest], session.preprocessing, batch_size,
                            device=hardware.device)  # fmt: skip
    return ranks.gather(logits[part.start - first : part.stop - first], n)
