"""The first steps of a training run and a part of its validation, to estimate how long it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

from udc_model.training.display import RunDisplay
from udc_model.training.loop import score_images, train_epoch
from udc_model.training.optimisation import train_mode
from udc_model.training.session import TrainingSession
from udc_model.training.setup import checkpoint_bytes
from udc_model.training.timing import Position

_STEPS = 10
_BATCHES = 8  # of the validation split, at most
_CHECKPOINT_RATE = 4e8  # bytes that are copied, hashed and written in a second; measured on a cloud disk
_CHECKPOINT_SECONDS = 0.01  # of a checkpoint without contents: the disk is flushed


@dataclass(frozen=True)
class Rehearsal:
    """What a training run has measured before it began; durations in seconds.

    Parameters
    ----------
    steps : number of steps of an epoch.
    step : duration of one of them.
    rest : time of an epoch that is not in its steps: validation and checkpoint.
    warm_up : how much longer than the later steps the first ones take together.
    total : time of all epochs of all members, without ``warm_up``.
    num_measured : steps that were run.
    """

    steps: int
    step: float
    rest: float
    warm_up: float
    total: float
    num_measured: int = _STEPS


def rehearse(session: TrainingSession) -> Rehearsal:
    """Run ten steps and a part of the validation of a session that is not started; it cannot be used afterwards.

    With several processes, all of them call this function.

    Raises
    ------
    UdcError
        As `train_model`.
    """
    session.start()
    params, progress = session.params.train, session.progress
    train_mode(session.trained, session.frozen)
    session.loss_fn.start_epoch(0, params.epochs)
    with RunDisplay(has_estimate=False) as display:
        session.display = display
        display.start(session)
        for done in range(0, _STEPS, session.batches.steps):
            progress.step = 0  # of the first epoch again, if it is shorter
            train_epoch(session, _STEPS - done)
        times = display.times
    progress.step, progress.epoch_seconds = 0, 0.0
    rest = _validation_seconds(session) + _CHECKPOINT_SECONDS + checkpoint_bytes(session) / _CHECKPOINT_RATE
    times.add_rest(rest)
    total = times.remaining(params, session.batches.steps, session.scored_share, Position(0, 0, 0))
    return Rehearsal(session.batches.steps, times.step, rest, times.warm_up, total)


def _validation_seconds(session: TrainingSession) -> float:
    """Time of the validation after an epoch, from that of its first images."""
    images = session.features.get("validation", session.validation_split.images)
    size = session.batches.batch_size
    score_images(session, images[:size])  # warm-up
    part = images[: _BATCHES * size]
    started = time.perf_counter()
    score_images(session, part)
    seconds = (time.perf_counter() - started) / len(part)
    return seconds * session.scored_share * len(session.train_split)
