"""What the first process of a training run prints: one line at its start, and a progress bar on a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from udc_model.training.session import Metrics, TrainingSession
from udc_model.training.timing import Position, RunTimes, clock_text, duration_text

logger = logging.getLogger(__name__)

_INTERVAL = 0.1  # seconds between two updates of the bar
Cost = Callable[[NDArray[np.float32], NDArray[np.integer]], float | None]


class RunDisplay:
    """Progress of a training run; nothing of it changes the result. A context that closes the bar.

    Parameters
    ----------
    cost : normalised cost of the decisions on validation logits (N, K), given their labels (N,); None without a value.
    has_estimate : whether the line at the start is logged.

    Attributes
    ----------
    times : measured durations.
    """

    def __init__(self, cost: Cost = lambda logits, labels: None, *, has_estimate: bool = True) -> None:
        self.times = RunTimes()
        self._costs: list[float] = []  # of the epochs so far in which it is defined
        self._has_unknown_costs = False
        self._cost_of = cost
        self._needs_estimate = has_estimate
        self._cost: float | None = None
        self._score = ""
        self._bar: tqdm[NoReturn] | None = None
        self._shown = 0.0
        self._contexts = ExitStack()

    def __enter__(self) -> RunDisplay:
        return self

    @property
    def least_cost(self) -> float | None:
        """The least ``cost`` of the epochs so far; None if there is none, or if those before a resume are not known.

        Checkpoints contain them only with ``train.monitor: normalised_cost``.
        """
        return None if self._has_unknown_costs else min(self._costs, default=None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.close()

    def start(self, session: TrainingSession) -> None:
        """Show the position of a session that starts or resumes."""
        params, progress = session.params.train, session.progress
        self._cost, self._score = None, ""
        recorded = [record.metrics.get("validation_normalised_cost") for record in progress.records]
        self._has_unknown_costs |= None in recorded
        self._costs += [cost for cost in recorded if cost is not None]
        if progress.records:
            self._show_score(session, progress.records[-1].metrics)
        if self._bar is None:
            total = params.members * params.epochs * session.batches.steps
            self._bar = tqdm(total=total, disable=None, leave=False, bar_format="{percentage:3.0f}%|{bar:20}| {desc}")
            self._contexts.callback(self._bar.close)
            if not self._bar.disable:  # messages appear above the bar
                self._contexts.enter_context(logging_redirect_tqdm())

    def add_step(self, session: TrainingSession, loss: float, seconds: float) -> None:
        """Count a step, and show it if the last update of the bar was a tenth of a second ago."""
        self.times.add_step(seconds)
        if self._needs_estimate and (self.times.is_reliable or session.progress.step == session.batches.steps):
            self._needs_estimate = False
            logger.info("%s", self._estimate(session))
        if self._bar is None or self._bar.disable or time.monotonic() - self._shown < _INTERVAL:
            return
        self._shown = time.monotonic()
        params, progress = session.params.train, session.progress
        images_per_second = progress.step / session.batches.steps * len(session.train_split) / progress.epoch_seconds
        parts = [f"member {session.member + 1}/{params.members}"] if params.members > 1 else []
        parts += [f"epoch {progress.epoch + 1}/{params.epochs}", f"{duration_text(self.remaining(session))} left"]
        parts += [f"loss {loss:.3f}"]
        parts += [self._score] if self._score else []
        parts += [f"cost {self._cost:.3f}"] if self._cost is not None else []
        parts += [f"{images_per_second:,.0f} img/s"]
        self._bar.n = (session.member * params.epochs + progress.epoch) * session.batches.steps + progress.step
        self._bar.set_description_str(", ".join(parts))

    def add_validation(self, session: TrainingSession, logits: NDArray[np.float32], scores: Metrics) -> None:
        """Remember the monitored metric and the cost of an epoch."""
        self._show_score(session, scores)
        cost = scores.get("validation_normalised_cost")
        self._cost = self._cost_of(logits, session.validation_split.labels) if cost is None else cost
        if self._cost is not None:
            self._costs.append(self._cost)

    def end_epoch(self, seconds: float, steps: int) -> None:
        """Count the duration of an epoch of this many steps, with its validation and checkpoint."""
        self.times.add_epoch(seconds, steps)

    def _show_score(self, session: TrainingSession, scores: Metrics) -> None:
        monitor = session.params.train.monitor
        # the normalised cost is shown as such
        shown = "" if monitor == "normalised_cost" else f"validation {monitor} {scores[f'validation_{monitor}']:.4f}"
        self._score = shown
        self._cost = scores.get("validation_normalised_cost", self._cost)

    def remaining(self, session: TrainingSession) -> float:
        """Seconds until the training run ends."""
        progress = session.progress
        position = Position(session.member, progress.epoch, progress.step, progress.seconds + progress.epoch_seconds)
        return self.times.remaining(session.params.train, session.batches.steps, session.scored_share, position)

    def _estimate(self, session: TrainingSession) -> str:
        """The line at the start."""
        params, progress, seconds = session.params.train, session.progress, self.remaining(session)
        epochs = f"{params.epochs} epochs" if params.epochs > 1 else "1 epoch"
        epochs += f" of each of {params.members} members" if params.members > 1 else ""
        if session.member or progress.epoch:
            epochs = f"the rest of {epochs}"
        limit = "at most " if params.early_stopping_patience is not None else ""
        num_parameters = sum(parameter.numel() for parameter in session.model.parameters())
        return (f"training on {len(session.train_split):,} images, {num_parameters:,} parameters: {limit}about "
                f"{duration_text(seconds)} for {epochs}, until {clock_text(seconds)}")  # fmt: skip
