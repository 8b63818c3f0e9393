"""Trains the members of an ensemble one after the other; a single network is an ensemble of one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from udc_model.config import Params
from udc_model.data.margins import Margins
from udc_model.decisions.calibration import fit_temperature
from udc_model.models.ensemble import Ensemble
from udc_model.models.staged import ImageClassifier
from udc_model.training.checkpoints import CheckpointFolder
from udc_model.training.display import RunDisplay
from udc_model.training.loop import TrainingResult, best_validation_logits, train_model
from udc_model.training.session import EpochRecord, TrainingSession

logger = logging.getLogger(__name__)


def member_params(params: Params, number: int) -> Params:
    """The parameters of a member (from 0), which has a seed of its own; the first has the seed of the parameters."""
    if number == 0:
        return params
    # 63 bits: the range of the parameter
    seed = int(np.random.SeedSequence((params.seed, number)).generate_state(1, np.uint64)[0] >> 1)
    return params.model_copy(update={"seed": seed})


def train_members(
    session_of: Callable[[int], TrainingSession],
    members: int,
    checkpoints: CheckpointFolder | None = None,
    on_epoch: Callable[[EpochRecord], bool] = lambda record: False,
    display: RunDisplay | None = None,
) -> list[TrainingResult]:
    """Train each member; the results have the temperatures with which their probabilities are averaged.

    A member's temperature is fitted on the validation split, which has chosen its epoch: the calibration split remains
    untouched for the policy of the ensemble. A single network has a temperature of 1.

    Parameters
    ----------
    session_of : the session of a member (from 0), which is not started.
    checkpoints : where states are saved. A finished member is restored from its checkpoint, not trained again.
    on_epoch : see `train_model`; the epochs of an ensemble are counted over all members.
    display : what prints the progress; in the first process only.

    Returns
    -------
    One result for each member, up to the one that ``on_epoch`` has ended.
    """
    results: list[TrainingResult] = []
    for number in range(members):
        before = sum(len(result.curves) for result in results)
        session = session_of(number)
        session.display, session.member = display, number
        session.checkpoints = checkpoints and checkpoints.of_member(number, members)
        if session.checkpoints and session.checkpoints.last:
            logger.info("resuming %s", session.checkpoints.position())
        elif members > 1 and session.ranks.is_first:
            logger.info("training member %d of %d", number + 1, members)
        result = train_model(session, lambda record: on_epoch(replace(record, epoch=before + record.epoch)))  # noqa: B023
        if members > 1 and not result.is_stopped:
            logits = best_validation_logits(session).astype(np.float64)
            result = replace(result, temperature=fit_temperature(logits, session.validation_split.labels))
            session.end()
            if session.checkpoints:
                session.checkpoints.keep_last()
        results.append(result)
        if result.is_stopped:
            break
    return results


def trained_model(model: ImageClassifier, results: list[TrainingResult]) -> ImageClassifier | Ensemble:
    """The model with the best weights of one network, or the ensemble of several; ``model`` is one of the networks."""
    if len(results) > 1:
        temperatures, states = zip(*((result.temperature, result.best_state) for result in results), strict=True)
        return Ensemble.of_members(model.config, temperatures, states)
    model.load_state_dict(results[0].best_state)
    return model


def best_member(results: list[TrainingResult]) -> int:
    """The number (from 0) of the member with the best epoch of all."""
    return max(range(len(results)), key=lambda number: results[number].best_score)


def joint_result(results: list[TrainingResult]) -> TrainingResult:
    """The result of a single network; of an ensemble the curves of all members, and the best of all epochs.

    The rows of an ensemble have the number of the ``member``, from 1, and epochs are counted over all members.
    """
    if len(results) == 1:
        return results[0]
    rows = [(number, row) for number, result in enumerate(results, 1) for row in result.curves]
    curves = [{"member": number, **row, "epoch": epoch} for epoch, (number, row) in enumerate(rows, 1)]
    best = best_member(results)
    before = sum(len(result.curves) for result in results[:best])
    margins = Margins.joined([result.margins for result in results if result.margins is not None])
    return TrainingResult(curves, before + results[best].best_epoch, is_stopped=results[-1].is_stopped, margins=margins,
                          seconds=sum(result.seconds for result in results))  # fmt: skip
