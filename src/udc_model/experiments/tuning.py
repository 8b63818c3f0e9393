"""Hyperparameter search: each trial is a DVC experiment with its own MLflow run; a killed study can be resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from udc_model.config import Params, load_params
from udc_model.errors import UdcError
from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.settings import check_settings
from udc_model.experiments.shared_study import (
    SharedStudy,
    check_address,
    connect,
    locked,
    storage_errors,
    without_retried,
)
from udc_model.experiments.study_results import log_study, trials_table
from udc_model.experiments.trial_process import TrialLost, TrialPlace, TrialProcess
from udc_model.tracking.provenance import absent_from_copies, git, uncommitted
from udc_model.tracking.run import StageRun, stage_run
from udc_model.tracking.store import repository_root

if TYPE_CHECKING:
    from datetime import datetime

    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

STUDIES = Path(".udc") / "studies"
SAMPLERS = ("tpe", "random", "grid")
_KEY, _RANGES, _METRIC = "udc.key", "udc.ranges", "udc.metric"
_STATE, _RECORDED = "udc.state", "udc.recorded"


@dataclass(frozen=True)
class TuningPlan:
    """The arguments of ``udc tune``.

    ``metric`` is a name in ``evaluation/validation/metrics.csv`` after its split; ``storage`` the address of the
    database of a study that several workers share.
    """

    study: str
    ranges: Sequence[SearchRange]
    trials: int
    metric: str = "validation/mean_cost"
    sampler: str = "tpe"
    prune: bool = True
    storage: str | None = field(default=None, repr=False)  # may have a password

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Costs, losses and errors are minimised, all other metrics are maximised."""
        return "minimize" if re.search(r"cost|loss|error|brier", self.metric) else "maximize"


def tune(plan: TuningPlan) -> str:
    """Run the remaining trials of a study; returns a table of all trials, the best first.

    Raises
    ------
    UdcError
        The study exists with other ranges, the metric is of the test split, or a trial fails.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if plan.metric.startswith("test/"):
        raise UdcError(f"{plan.metric}: a search must not use the test split, whose metrics would be biased; "
                       f"use validation/{plan.metric.removeprefix('test/')}")  # fmt: skip
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", plan.study):
        raise UdcError(
            f"{plan.study}: the name of a study may have letters, digits, '_', '.' and '-' only, as DVC experiments"
        )
    if plan.storage is not None:
        check_address(plan.storage)
    params = _check_plan(plan)
    root = repository_root()
    folder = root / STUDIES / plan.study
    folder.mkdir(parents=True, exist_ok=True)
    if plan.storage is not None:
        return _tune_with_others(plan, plan.storage, params, root)
    with _locked(folder / "lock", plan.study):
        study = _open_study(plan, f"sqlite:///{folder / 'study.db'}")
        # seeded; a resumed study draws other values than its first process
        study.sampler = _sampler(plan, params.seed + len(study.trials))
        with _study_run(study, plan) as run:
            _run_trials(study, plan, params.train.monitor, run, root)
            table = trials_table(study, plan.metric)
            log_study(study, run, table)
    return table


def _open_study(plan: TuningPlan, storage: str | RDBStorage) -> Study:
    """The study in a storage, created if it does not exist."""
    import optuna

    study = optuna.create_study(
        storage=storage, study_name=plan.study, direction=plan.direction,
        load_if_exists=True, sampler=optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.MedianPruner() if plan.prune else optuna.pruners.NopPruner(),
    )  # fmt: skip
    _check_same(study, plan)
    return study


@contextmanager
def _study_run(study: Study, plan: TuningPlan) -> Iterator[StageRun]:
    """The MLflow run of a study, below which the runs of its trials are."""
    with stage_run("tune", {"mlflow.runName": plan.study, "study": plan.study}, study.user_attrs[_KEY]) as run:
        searched = {r.name: f"{r.kind}({', '.join(r.arguments)})" for r in plan.ranges}
        run.log_params({"study": {"metric": plan.metric, "sampler": plan.sampler}, "search": searched})
        yield run


def _tune_with_others(plan: TuningPlan, address: str, params: Params, root: Path) -> str:
    """Run trials of a shared study until it is complete; the first worker that sees its end records its run."""
    storage, engine = connect(address)
    with locked(engine, plan.study):
        study = _open_study(plan, storage)
        _check_same_state(study)
    shared = SharedStudy(storage, engine, study, plan.trials, lambda count: _sampler(plan, params.seed + count),
                         lambda trial: [f"{r.name}={r.suggest(trial)}" for r in plan.ranges])  # fmt: skip
    place = TrialPlace(root, root / STUDIES / plan.study, study.user_attrs[_KEY], is_shared=True)
    for claim in shared.trials():
        trial = claim.trial
        logger.info("trial %s of %d: %s", claim.name, plan.trials, ", ".join(claim.settings))
        process = TrialProcess(claim.name, claim.settings, place, trial.number)
        try:
            metrics = process.run(_Watch(shared, trial, params.train.monitor, plan))
            value = None if metrics is None else _metric(metrics, plan.metric)
            is_stored = shared.tell(trial, value)
        except TrialLost:
            is_stored = False
        except BaseException:
            shared.release(trial)
            raise
        if is_stored:
            logger.info("  %s", "pruned" if value is None else f"{plan.metric} {value:.4f}")
        else:
            process.forget()
            logger.warning("  its heartbeats were missing, so another worker repeats it")
    return shared.patiently(partial(_record, shared, plan))


def _record(shared: SharedStudy, plan: TuningPlan) -> str:
    """Log a complete study to its run in MLflow, unless another worker has done so; returns the table."""
    study, table = shared.study, trials_table(shared.study, plan.metric)
    with locked(shared.engine, f"{plan.study} record", timeout=600):
        trials = without_retried(study.trials)
        if study.user_attrs.get(_RECORDED) != len(trials):
            with _study_run(study, plan) as run:
                values: list[float] = []
                for trial in sorted((t for t in trials if t.state.name == "COMPLETE"), key=_completion):
                    values.append(trial.values[0])
                    best = min(values) if plan.direction == "minimize" else max(values)
                    run.log_metrics({"study/value": values[-1], "study/best": best}, step=trial.number,
                                    measured=int(_completion(trial).timestamp() * 1000))  # fmt: skip
                log_study(study, run, table)
            study.set_user_attr(_RECORDED, len(trials))
    return table


def _completion(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None
    return trial.datetime_complete


def _check_same_state(study: Study) -> None:
    """Store in a new study what its trials start from; :class:`UdcError` if those of this clone would differ."""
    changes = hashlib.sha256(uncommitted().encode(errors="surrogateescape")).hexdigest()
    state = [git("rev-parse", "HEAD"), changes]
    if _STATE not in study.user_attrs:
        study.set_user_attr(_STATE, state)
    if study.user_attrs[_STATE] != state:
        first = study.user_attrs[_STATE][0][:12]
        raise UdcError(f"study {study.study_name}: it started from commit {first}, here is {state[0][:12]}, or the "
                       "uncommitted changes differ; trials of other code or parameters cannot be compared: commit and "
                       f"push all changes, then run `git checkout {first}` in each clone")  # fmt: skip


class _Watch:
    """Decides about pruning while a trial runs, and records that its worker lives."""

    def __init__(self, shared: SharedStudy, trial: Trial, monitor: str, plan: TuningPlan) -> None:
        self.shared, self.trial, self.monitor, self.plan = shared, trial, monitor, plan
        self._num_epochs = 0

    def __call__(self, metrics: dict[int, dict[str, float]]) -> bool:
        import optuna

        if not self.shared.holds(self.trial):
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


def _check_plan(plan: TuningPlan) -> Params:
    """The parameters of ``params.yaml``; :class:`UdcError` if a trial could fail because of its parameters or data."""
    extremes = [search_range.extremes for search_range in plan.ranges]
    for k in range(max(map(len, extremes), default=0)):
        values = zip(plan.ranges, extremes, strict=True)
        params = check_settings([f"{each.name}={texts[min(k, len(texts) - 1)]}" for each, texts in values])
        if params.data.source != "digits" and (absent := absent_from_copies(Path(params.data.path))):
            raise UdcError(f"data.path: trials run in a copy of the repository, which would lack the images: {absent}")
    return load_params()


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


def _check_same(study: Study, plan: TuningPlan) -> None:
    """Store ranges and metric in a new study; :class:`UdcError` if an existing study has others."""
    ranges = {r.name: [r.kind, *r.arguments] for r in plan.ranges}
    if _KEY not in study.user_attrs:
        study.set_user_attr(_RANGES, ranges)
        study.set_user_attr(_METRIC, plan.metric)
        study.set_user_attr(_KEY, uuid.uuid4().hex)
    if study.user_attrs[_RANGES] != ranges or study.user_attrs[_METRIC] != plan.metric:
        raise UdcError(f"study {plan.study} exists, with other ranges or another metric "
                       f"({study.user_attrs[_METRIC]}; {json.dumps(study.user_attrs[_RANGES])}); "
                       "use the same, or another --study")  # fmt: skip


def _sampler(plan: TuningPlan, seed: int) -> BaseSampler:
    import optuna

    if plan.sampler == "random":
        return optuna.samplers.RandomSampler(seed)
    if plan.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
    searched = [r for r in plan.ranges if r.kind != "value"]
    if continuous := [r.name for r in searched if r.kind != "choice"]:
        raise UdcError(f"{', '.join(continuous)}: a grid needs choice(x,y,…) for every parameter")

    class Grid(optuna.samplers.GridSampler):
        def after_trial(self, *_: Any) -> None:
            """Nothing: at the end of the grid, optuna's would stop a loop ``optimize``, which there is not."""

    return Grid({r.name: list(r.arguments) for r in searched}, seed=0)


def _run_trials(study: Study, plan: TuningPlan, monitor: str, run: StageRun, root: Path) -> None:
    """Run first the trial that a kill interrupted, then new trials."""
    import optuna

    interrupted = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    # optuna has no public way from a stored trial back to one that can be continued under its number
    pending = [optuna.trial.Trial(study, frozen._trial_id) for frozen in interrupted]
    while pending or len(study.trials) < plan.trials:
        trial = pending.pop(0) if pending else study.ask()
        settings = [f"{r.name}={r.suggest(trial)}" for r in plan.ranges]
        name = f"{plan.study}-{trial.number}"
        logger.info("trial %d of %d: %s", trial.number + 1, plan.trials, ", ".join(settings))
        process = TrialProcess(name, settings, TrialPlace(root, root / STUDIES / plan.study, run.key))
        metrics = process.run(partial(_should_prune, trial, monitor, plan))
        if metrics is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            logger.info("  pruned")
        else:
            value = _metric(metrics, plan.metric)
            study.tell(trial, value)
            run.log_metrics({"study/value": value, "study/best": study.best_value}, step=trial.number)
            logger.info("  %s %.4f, best so far %.4f", plan.metric, value, study.best_value)


def _should_prune(trial: Trial, monitor: str, plan: TuningPlan, metrics: dict[int, dict[str, float]]) -> bool:
    """Report the new epochs of a trial's validation curve to the study; returns whether to prune the trial."""
    is_minimised = monitor in ("log_loss", "normalised_cost")
    reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for step, values in metrics.items():
        value = values.get(f"training/validation_{monitor}")
        if step not in reported and value is not None:
            trial.report(value if is_minimised == (plan.direction == "minimize") else -value, step)
    return plan.prune and bool(metrics) and trial.should_prune()


def _metric(metrics: Mapping[str, float | None], name: str) -> float:
    value = metrics.get(name.removeprefix("validation/"))
    if value is None:
        raise UdcError(f"{name}: the trials have no such metric; it can be "
                       f"{', '.join(f'validation/{each}' for each in metrics)}")  # fmt: skip
    return value
