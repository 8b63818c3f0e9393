"""Profiles a training step."""

from __future__ import annotations

import os
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler's library writes its own steps to stderr

import torch
from torch.profiler import ProfilerActivity, profile

from udc_model.training.loop import train_epoch
from udc_model.training.optimisation import train_mode
from udc_model.training.session import TrainingSession

_PREFIX = "udc: "  # of the names with which the loop marks the parts of a step
_OPERATORS = 12  # rows of the second table


def profile_steps(session: TrainingSession) -> str:
    """Train two epochs, the second one under torch's profiler.

    Returns
    -------
    Two tables as text: the parts of a step with their share of its time (the remainder is the loop itself), and the
    operators that take longest. The speed is measured in the first epoch, without the profiler.
    """
    state, steps = session.state, session.batches.steps
    train_mode(state.model, state.frozen)
    session.loss_fn.start_epoch(0, session.params.epochs)
    train_epoch(session)
    speed = len(session.train) / state.progress.epoch_seconds
    state.progress.epoch, state.progress.step = 1, 0
    is_cuda = session.hardware.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as profiler:
        started = time.perf_counter()
        train_epoch(session)
        seconds = time.perf_counter() - started
    return _tables(profiler, seconds, steps, speed)


def _tables(profiler: profile, seconds: float, steps: int, speed: float) -> str:
    events = profiler.key_averages()
    # inclusive times of the parts, exclusive times of the operators: the backward pass runs in a thread of its own
    parts = {
        event.key.removeprefix(_PREFIX): event.cpu_time_total / 1e6 for event in events if event.key.startswith(_PREFIX)
    }
    lines = [f"{speed:,.0f} images/s; under the profiler {steps} steps of {1000 * seconds / steps:.1f} ms"]
    lines += ["", f"{'part of a step':<34}{'ms':>9}{'share':>9}"]
    lines += [f"{name:<34}{1000 * spent / steps:>9.2f}{spent / seconds:>9.1%}" for name, spent in parts.items()]
    rest = seconds - sum(parts.values())
    lines += [f"{'the loop itself':<34}{1000 * rest / steps:>9.2f}{rest / seconds:>9.1%}", ""]
    lines += [f"{'operator':<34}{'ms':>9}{'share':>9}{'calls':>9}"]
    operators = sorted((event for event in events if not event.key.startswith(_PREFIX)),
                       key=lambda event: event.self_cpu_time_total, reverse=True)  # fmt: skip
    lines += [f"{event.key[:33]:<34}{event.self_cpu_time_total / 1000 / steps:>9.2f}"
              f"{event.self_cpu_time_total / 1e6 / seconds:>9.1%}{event.count / steps:>9.1f}"
              for event in operators[:_OPERATORS]]  # fmt: skip
    if torch.cuda.is_available():
        lines += ["", profiler.key_averages().table(sort_by="self_device_time_total", row_limit=_OPERATORS)]
    return "\n".join(lines) + "\n"
