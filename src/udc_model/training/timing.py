"""The time that a training run takes, estimated from the steps and the validation that it has measured."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import mean, median

from udc_model.config import TrainParams

_WARM_UP = 3  # first steps, which allocate memory and select kernels
_FEWEST = 5  # further steps, from which the time of a step is estimated
_RECENT = 200  # last steps that count
_RECENT_EPOCHS = 5
_FORWARD = 1 / 3  # time of a forward pass in that of a training step, until validation is measured


@dataclass(frozen=True)
class Position:
    """A place in a training run: ``step`` of ``epoch`` of ``member``, all from 0, after ``seconds`` of this member."""

    member: int
    epoch: int
    step: int
    seconds: float = 0.0


class RunTimes:
    """Durations that a training run has measured; those of earlier members count for the next one."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._rests: deque[float] = deque(maxlen=_RECENT_EPOCHS)
        self._num_steps = 0
        self._first = 0.0

    def add_step(self, seconds: float) -> None:
        """Add the duration of a training step; the first ones are warm-up."""
        self._num_steps += 1
        if self._num_steps <= _WARM_UP:
            self._first += seconds
        if self._num_steps == _WARM_UP + 1:
            self._steps.clear()
        self._steps.append(seconds)

    def add_epoch(self, seconds: float, steps: int) -> None:
        """Add the duration of an epoch of this many steps, with its validation and checkpoint."""
        self.add_rest(seconds - steps * self.step)

    def add_rest(self, seconds: float) -> None:
        """Add what an epoch takes in addition to its steps."""
        self._rests.append(max(0.0, seconds))

    @property
    def is_reliable(self) -> bool:
        """Whether enough steps after the warm-up are measured."""
        return self._num_steps >= _WARM_UP + _FEWEST

    @property
    def warm_up(self) -> float:
        """Seconds that the first steps have taken longer than the later ones; once in a process."""
        return max(0.0, self._first - min(self._num_steps, _WARM_UP) * self.step)

    @property
    def step(self) -> float:
        """Time of a step in seconds, the mean without the slowest fifth: those that something else has delayed.

        The median is too short on a busy machine, which delays many steps: it was 0.15 s where the mean was 0.19 s.
        While there are no steps but those of the warm-up, they count.
        """
        fastest = sorted(self._steps)[: len(self._steps) - len(self._steps) // 5]
        return mean(fastest) if fastest else 0.0

    def epoch(self, steps: int, scored_share: float) -> float:
        """Time of an epoch of this many steps in seconds.

        Parameters
        ----------
        scored_share : images that are scored after each epoch, as a multiple of the training images.
        """
        rest = median(self._rests) if self._rests else self.step * steps * scored_share * _FORWARD
        return self.step * steps + rest

    def remaining(self, params: TrainParams, steps: int, scored_share: float, position: Position) -> float:
        """Seconds until the last epoch of the last member ends; `epoch` explains the other arguments.

        It is an upper bound if ``train.early_stopping_patience`` is set.
        """
        epoch = self.epoch(steps, scored_share)
        member = params.epochs * epoch
        current = (params.epochs - position.epoch) * epoch - position.step * self.step
        if params.max_minutes is not None:
            limit = 60 * params.max_minutes
            member = min(member, limit + epoch)
            current = min(current, max(0.0, limit - position.seconds) + epoch)
        return max(0.0, current) + (params.members - 1 - position.member) * member


def duration_text(seconds: float) -> str:
    """A duration with two units at most, as ``45 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def clock_text(seconds: float, now: datetime | None = None) -> str:
    """The local time in this many seconds, as ``14:05``: with seconds if it is soon, with the date on another day."""
    now = now or datetime.now()
    end = now + timedelta(seconds=seconds)
    text = f"{end:%H:%M:%S}" if seconds < 600 else f"{end:%H:%M}"
    return text if end.date() == now.date() else f"{end:%Y-%m-%d} {text}"
