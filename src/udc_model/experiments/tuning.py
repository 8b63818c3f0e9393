"""Hyperparameter search: each trial is a DVC experiment with its own MLflow run; a killed study can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from udc_model.config import Params
from udc_model.errors import UdcError
from udc_model.experiments.objectives import Outcome, direction_of
from udc_model.experiments.opened_study import KEY, check_same_state, new_sampler, open_study
from udc_model.experiments.shared_study import SharedStudy, connect, locked, storage_errors, without_retried
from udc_model.experiments.stopping import outlook
from udc_model.experiments.study_results import log_study, log_trial, results_text
from udc_model.experiments.study_trials import IsEnough, LocalStudy, StudyTrials, never
from udc_model.experiments.trial_process import TrialLost, TrialPlace, TrialProcess
from udc_model.experiments.tuning_plan import TuningPlan
from udc_model.tracking.run import StageRun, stage_run
from udc_model.tracking.store import repository_root

if TYPE_CHECKING:
    from datetime import datetime

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

STUDIES = Path(".udc") / "studies"
_MOST_FAILURES = 3  # trials that fail one after the other, which has another cause than their values
_RECORDED = "udc.recorded"  # attribute of a shared study: number of trials in its run in MLflow


def tune(plan: TuningPlan) -> str:
    """Run the remaining trials of a study; returns a table of all trials, the best first.

    Raises
    ------
    UdcError
        The study exists with other ranges, a metric is of the test split, or a trial fails.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    params = plan.check()
    if plan.prune and not plan.can_prune:
        logger.info("trials are not pruned: Optuna compares curves for one metric only")
    root = repository_root()
    folder = root / STUDIES / plan.study
    folder.mkdir(parents=True, exist_ok=True)
    if plan.storage is not None:
        return _tune_with_others(plan, plan.storage, params, root)
    with _locked(folder / "lock", plan.study):
        study = open_study(plan, f"sqlite:///{folder / 'study.db'}")
        # seeded; a resumed study draws other values than its first process
        study.sampler = new_sampler(plan, params.seed + len(study.trials))
        with _study_run(study, plan) as run:
            trials = LocalStudy(study, plan.limit, plan.settings, _is_enough(plan))
            place = TrialPlace(root, folder, study.user_attrs[KEY])
            _run_trials(trials, plan, params, place, lambda trial: _log_progress(run, study, plan, trial))
            text = results_text(study, plan)
            log_study(study, plan, run, text)
    return text


def _tune_with_others(plan: TuningPlan, address: str, params: Params, root: Path) -> str:
    """Run trials of a shared study until it is complete; the first worker that sees its end records its run."""
    storage, engine = connect(address)
    with locked(engine, plan.study):
        study = open_study(plan, storage)
        check_same_state(study)
    shared = SharedStudy(storage, engine, study, plan.limit, lambda count: new_sampler(plan, params.seed + count),
                         plan.settings, _is_enough(plan))  # fmt: skip
    place = TrialPlace(root, root / STUDIES / plan.study, study.user_attrs[KEY], is_shared=True)
    _run_trials(shared, plan, params, place)
    return shared.patiently(partial(_record, shared, plan))


def _is_enough(plan: TuningPlan) -> IsEnough:
    """Whether a study ends before its number of trials: with ``--stop``, if further ones are unlikely to help."""

    def is_enough(trials: Sequence[FrozenTrial]) -> bool:
        expected = outlook(trials, plan)
        return expected is not None and expected.is_exhausted

    return is_enough if plan.stop else never


def _run_trials(
    trials: StudyTrials, plan: TuningPlan, params: Params, place: TrialPlace,
    on_result: Callable[[Trial], None] = lambda trial: None,
) -> None:  # fmt: skip
    """Run the trials of a study that this worker gets; ``on_result`` is called after each that it has stored."""
    failures = 0  # one after the other
    for claim in trials.trials():
        trial = claim.trial
        logger.info("trial %s of %d: %s", claim.name, plan.limit, ", ".join(claim.settings))
        process = TrialProcess(claim.name, claim.settings, place, trial.number)
        try:
            is_complete = process.run(_Watch(trials, trial, params.train.monitor, plan))
            outcome = process.outcome(plan.metrics, params.evaluate.confidence) if is_complete else None
            is_stored = trials.tell(trial, outcome)
        except TrialLost:
            is_stored = False
        except UdcError as error:
            failures += 1
            if not trials.fail(trial) or failures == _MOST_FAILURES:
                raise
            logger.warning("  failed: %s", error)
            continue
        except BaseException:
            trials.release(trial)
            raise
        failures = 0
        if is_stored:
            logger.info("  %s", _described(outcome, plan))
            on_result(trial)
        else:
            process.forget()
            logger.warning("  its heartbeats were missing, so another worker repeats it")


def _described(outcome: Outcome | None, plan: TuningPlan) -> str:
    if outcome is None:
        return "pruned"
    return ", ".join(f"{name} {value:.4f}" for name, value in zip(plan.metrics, outcome.values, strict=True))


@contextmanager
def _study_run(study: Study, plan: TuningPlan) -> Iterator[StageRun]:
    """The MLflow run of a study, below which the runs of its trials are."""
    with stage_run("tune", {"mlflow.runName": plan.study, "study": plan.study}, study.user_attrs[KEY]) as run:
        searched = {r.name: f"{r.kind}({', '.join(r.arguments)})" for r in plan.ranges}
        run.log_params({"study": {"metric": ", ".join(plan.metrics), "sampler": plan.sampler}, "search": searched})
        yield run


def _log_progress(run: StageRun, study: Study, plan: TuningPlan, trial: Trial) -> None:
    """Log a trial of a local study, which has ended, to the study's run."""
    trials = study.get_trials(deepcopy=False)
    if trials[trial.number].state.name == "COMPLETE":
        log_trial(run, plan, trials[trial.number], [t for t in trials if t.state.name == "COMPLETE"])


def _record(shared: SharedStudy, plan: TuningPlan) -> str:
    """Log a complete study to its run in MLflow, unless another worker has done so; returns the table."""
    study, text = shared.study, results_text(shared.study, plan)
    with locked(shared.engine, f"{plan.study} record", timeout=600):
        trials = without_retried(study.trials)
        if study.user_attrs.get(_RECORDED) != len(trials):
            with _study_run(study, plan) as run:
                complete = sorted((t for t in trials if t.state.name == "COMPLETE"), key=_completion)
                for count, trial in enumerate(complete, 1):
                    log_trial(run, plan, trial, complete[:count], int(_completion(trial).timestamp() * 1000))
                log_study(study, plan, run, text)
            study.set_user_attr(_RECORDED, len(trials))
    return text


def _completion(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None
    return trial.datetime_complete


class _Watch:
    """Decides about pruning while a trial runs, and records that its worker lives."""

    def __init__(self, trials: StudyTrials, trial: Trial, monitor: str, plan: TuningPlan) -> None:
        self.trials, self.trial, self.monitor, self.plan = trials, trial, monitor, plan
        self._num_epochs = 0

    def __call__(self, metrics: dict[int, dict[str, float]]) -> bool:
        import optuna

        if not self.trials.holds(self.trial):
            raise TrialLost
        if len(metrics) == self._num_epochs:
            return False  # no request for each check
        try:
            decision = _should_prune(self.trial, self.monitor, self.plan, metrics)
        except storage_errors():
            return False  # the next check asks again
        except optuna.exceptions.UpdateFinishedTrialError:
            raise TrialLost from None
        self._num_epochs = len(metrics)
        return decision


def _should_prune(trial: Trial, monitor: str, plan: TuningPlan, metrics: dict[int, dict[str, float]]) -> bool:
    """Report the new epochs of a trial's validation curve to the study; returns whether to prune the trial."""
    if len(plan.metrics) > 1:
        return False  # optuna stores curves of studies with one metric only
    reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for step, values in metrics.items():
        value = values.get(f"training/validation_{monitor}")
        if step not in reported and value is not None:
            trial.report(value if direction_of(monitor) == plan.directions[0] else -value, step)
    return plan.prune and bool(metrics) and trial.should_prune()


@contextmanager
def _locked(lock: Path, study: str) -> Iterator[None]:
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        raise UdcError(f"study {study}: another udc tune is running it") from None
    try:
        yield
    finally:
        file_lock.release()
