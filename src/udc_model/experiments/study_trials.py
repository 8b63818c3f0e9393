"""The trials of a study: how a worker takes them and stores their results, and the study of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from udc_model.experiments.objectives import Outcome

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

ERRORS = "udc.standard_errors"  # attribute of a trial: of its values
IsEnough = Callable[[Sequence["FrozenTrial"]], bool]  # whether a study with these trials needs no others


def never(_: Sequence[FrozenTrial]) -> bool:
    """An `IsEnough` that lets all trials run."""
    return False


@dataclass(frozen=True)
class Claim:
    """A trial that this worker runs, the name of its DVC experiment, and its values for DVC's option ``-S``."""

    trial: Trial
    name: str
    settings: list[str]


class StudyTrials(Protocol):
    """What the loop over the trials of a study needs of it."""

    def trials(self) -> Iterator[Claim]:
        """The trials for this worker, until the study is complete."""

    def holds(self, trial: Trial) -> bool:
        """Whether a trial is still this worker's."""

    def tell(self, trial: Trial, outcome: Outcome | None) -> bool:
        """Store the outcome of a trial, None if it was pruned; false if the trial is not this worker's any more."""

    def fail(self, trial: Trial) -> bool:
        """Give up a trial that ended with an error; returns whether further trials can be expected to succeed."""

    def release(self, trial: Trial) -> None:
        """Give up a trial that this worker does not complete."""


class LocalStudy:
    """A study that one process at a time runs.

    Parameters
    ----------
    limit : number of trials in all.
    suggest : draws the values of a trial.
    is_enough : ends the study before its limit.
    """

    def __init__(self, study: Study, limit: int, suggest: Callable[[Trial], list[str]],
                 is_enough: IsEnough = never) -> None:  # fmt: skip
        self.study, self.limit, self.suggest, self.is_enough = study, limit, suggest, is_enough

    def trials(self) -> Iterator[Claim]:
        """First the trial that a kill interrupted, then new trials."""
        import optuna

        for frozen in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            # optuna has no public way from a stored trial back to one that can be continued under its number
            yield self._claim(optuna.trial.Trial(self.study, frozen._trial_id))
        while len(trials := self.study.get_trials(deepcopy=False)) < self.limit and not self.is_enough(trials):
            yield self._claim(self.study.ask())

    def _claim(self, trial: Trial) -> Claim:
        return Claim(trial, f"{self.study.study_name}-{trial.number}", self.suggest(trial))

    def holds(self, trial: Trial) -> bool:
        """Nobody else takes it."""
        return True

    def tell(self, trial: Trial, outcome: Outcome | None) -> bool:
        """Store the outcome of a trial, None if it was pruned."""
        store_outcome(self.study, trial, outcome)
        return True

    def fail(self, trial: Trial) -> bool:
        """Store that a trial failed, so that no ``udc tune`` resumes it; true if an earlier one succeeded."""
        import optuna

        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        ended = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
        return bool(self.study.get_trials(deepcopy=False, states=ended))

    def release(self, trial: Trial) -> None:
        """Nothing: the next ``udc tune`` resumes it."""


def store_outcome(study: Study, trial: Trial, outcome: Outcome | None) -> None:
    """Store the outcome of a running trial, None if it was pruned."""
    import optuna

    if outcome is None:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        trial.set_user_attr(ERRORS, list(outcome.errors))
        study.tell(trial, outcome.values)
