"""Where a training step's time goes."""

from __future__ import annotations

import os
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library would tell its own steps on stderr

import torch
from torch.profiler import ProfilerActivity, profile

from udc_model.config import TrainParams
from udc_model.data.batches import TrainingBatches
from udc_model.models.staged import ImageClassifier
from udc_model.training.hardware import Hardware
from udc_model.training.loop import start, train_epoch
from udc_model.training.losses import TrainingLoss
from udc_model.training.optimisation import train_mode

_OWN = "udc: "  # what the loop marks its parts with
_OPERATORS = 12  # rows of the second table


def profile_steps(
    model: ImageClassifier, loss_fn: TrainingLoss, data: TrainingBatches, params: TrainParams, hardware: Hardware
) -> str:
    """Train the second epoch of a throw-away training under torch's profiler; returns two tables as text.

    The first names the parts of a step, with their share of its time; what is missing to 100% is the loop itself. The
    second names the operators that take longest. The first epoch, without the profiler, gives the speed.
    """
    state = start(model, loss_fn, data, params, hardware)
    train_mode(model, state.frozen)
    loss_fn.start_epoch(0, params.epochs)
    train_epoch(state, data, params, hardware)
    speed = len(data.split) / state.progress.epoch_seconds
    state.progress.epoch, state.progress.step = 1, 0
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if hardware.device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        started = time.perf_counter()
        train_epoch(state, data, params, hardware)
        seconds = time.perf_counter() - started
    return _tables(found, seconds, data.steps, speed)


def _tables(found: profile, seconds: float, steps: int, speed: float) -> str:
    events = found.key_averages()
    # the backward pass runs in a thread of its own, so inclusive times are told of the parts, own times of operators
    parts = {event.key.removeprefix(_OWN): event.cpu_time_total / 1e6 for event in events if event.key.startswith(_OWN)}
    lines = [f"{speed:,.0f} images/s; under the profiler {steps} steps of {1000 * seconds / steps:.1f} ms"]
    lines += ["", f"{'part of a step':<34}{'ms':>9}{'share':>9}"]
    lines += [f"{name:<34}{1000 * spent / steps:>9.2f}{spent / seconds:>9.1%}" for name, spent in parts.items()]
    rest = seconds - sum(parts.values())
    lines += [f"{'the loop itself':<34}{1000 * rest / steps:>9.2f}{rest / seconds:>9.1%}", ""]
    lines += [f"{'operator':<34}{'ms':>9}{'share':>9}{'calls':>9}"]
    operators = sorted((event for event in events if not event.key.startswith(_OWN)),
                       key=lambda event: event.self_cpu_time_total, reverse=True)  # fmt: skip
    lines += [f"{event.key[:33]:<34}{event.self_cpu_time_total / 1000 / steps:>9.2f}"
              f"{event.self_cpu_time_total / 1e6 / seconds:>9.1%}{event.count / steps:>9.1f}"
              for event in operators[:_OPERATORS]]  # fmt: skip
    if torch.cuda.is_available():
        lines += ["", found.key_averages().table(sort_by="self_device_time_total", row_limit=_OPERATORS)]
    return "\n".join(lines) + "\n"
