"""The time of each part of a training step."""

from __future__ import annotations

import os
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler's library logs its progress to stderr

import torch
from torch.profiler import ProfilerActivity, profile

from udc_model.training.display import RunDisplay
from udc_model.training.loop import train_epoch
from udc_model.training.optimisation import train_mode
from udc_model.training.session import TrainingSession

_PART = "udc: "  # prefix of the names that the training loop gives to the parts of a step
_NUM_OPERATORS = 12  # rows of the second table


def profile_steps(session: TrainingSession) -> str:
    """Train two epochs, the second under PyTorch's profiler; returns two tables as text.

    The first table lists the parts of a step with their share of its time; the remainder is the loop itself. The second
    lists the operators that take most time. The first epoch measures the speed without the profiler.
    """
    session.start()
    train_mode(session.trained, session.frozen)
    session.loss_fn.start_epoch(0, session.params.train.epochs)
    has_gpu = session.hardware.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
    with RunDisplay(has_estimate=False) as display:
        session.display = display
        display.start(session)
        train_epoch(session)
        images_per_second = len(session.train_split) / session.progress.epoch_seconds
        session.progress.epoch, session.progress.step = 1, 0
        with profile(activities=activities) as profiler:
            started = time.perf_counter()
            train_epoch(session)
            seconds = time.perf_counter() - started
    return _tables(profiler, seconds, session.batches.steps, images_per_second)


def _tables(profiler: profile, seconds: float, steps: int, images_per_second: float) -> str:
    events = profiler.key_averages()
    # the backward pass has a thread of its own: inclusive times are right for parts, exclusive times for operators
    parts = {event.key.removeprefix(_PART): event.cpu_time_total / 1e6 for event in events
             if event.key.startswith(_PART)}  # fmt: skip
    lines = [f"{images_per_second:,.0f} images/s; under the profiler {steps} steps of {1000 * seconds / steps:.1f} ms"]
    lines += ["", f"{'part of a step':<34}{'ms':>9}{'share':>9}"]
    lines += [f"{name:<34}{1000 * spent / steps:>9.2f}{spent / seconds:>9.1%}" for name, spent in parts.items()]
    rest = seconds - sum(parts.values())
    lines += [f"{'the loop itself':<34}{1000 * rest / steps:>9.2f}{rest / seconds:>9.1%}", ""]
    lines += [f"{'operator':<34}{'ms':>9}{'share':>9}{'calls':>9}"]
    operators = sorted((event for event in events if not event.key.startswith(_PART)),
                       key=lambda event: event.self_cpu_time_total, reverse=True)  # fmt: skip
    lines += [f"{event.key[:33]:<34}{event.self_cpu_time_total / 1000 / steps:>9.2f}"
              f"{event.self_cpu_time_total / 1e6 / seconds:>9.1%}{event.count / steps:>9.1f}"
              for event in operators[:_NUM_OPERATORS]]  # fmt: skip
    if torch.cuda.is_available():
        lines += ["", profiler.key_averages().table(sort_by="self_device_time_total", row_limit=_NUM_OPERATORS)]
    return "\n".join(lines) + "\n"
