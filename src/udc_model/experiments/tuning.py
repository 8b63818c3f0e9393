"""Hyperparameter search: each trial is a DVC experiment with its own MLflow run; a killed study can be resumed."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from udc_model.config import Params, full_name, load_params
from udc_model.errors import UdcError
from udc_model.evaluation.tables import read_metrics
from udc_model.experiments.settings import check_settings
from udc_model.experiments.stored import from_dvc
from udc_model.tracking.journal import pending_journals, read_entries, wait_for_senders
from udc_model.tracking.links import dvc_experiments
from udc_model.tracking.provenance import STUDY_KEY, absent_from_copies
from udc_model.tracking.run import StageRun, stage_run
from udc_model.tracking.store import repository_root
from udc_model.tracking.tags import EXPERIMENT_NAME, read_tag, runs_with_tag

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

logger = logging.getLogger(__name__)

STUDIES = Path(".udc") / "studies"
SAMPLERS = ("tpe", "random", "grid")
_RANGE = re.compile(r"(?P<kind>log|uniform|int|choice)\((?P<arguments>.*)\)", re.DOTALL)
_KEY, _RANGES, _METRIC = "udc.key", "udc.ranges", "udc.metric"
_POLL = 0.5  # seconds between two checks of a trial's validation curve


@dataclass(frozen=True)
class SearchRange:
    """The values of one parameter in a search.

    ``log(a,b)`` draws floats whose logarithm is uniform, ``uniform(a,b)`` floats, ``int(a,b)`` integers from a to b,
    ``choice(x,y,…)`` one of the texts; anything else is the value of all trials.
    """

    name: str
    kind: str
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, setting: str) -> SearchRange:
        """Parse ``full.name=log(1e-4,1e-2)``; :class:`UdcError` if the text is malformed."""
        name, equals, text = setting.partition("=")
        if not equals:
            raise UdcError(f"{setting}: must be name=value or name=log(a,b), uniform(a,b), int(a,b) or choice(x,y,…)")
        name = full_name(name.strip())
        match = _RANGE.fullmatch(text.strip())
        if match is None:
            return cls(name, "value", (text,))
        arguments = tuple(part.strip() for part in match["arguments"].split(","))
        search_range = cls(name, match["kind"], arguments)
        if search_range.kind != "choice":
            try:
                low, high = search_range.bounds()
            except ValueError:
                raise UdcError(f"{setting}: {search_range.kind}(a,b) takes two numbers") from None
            if not low < high or (search_range.kind == "log" and low <= 0):
                raise UdcError(f"{setting}: the first number must be smaller" + (" and above 0" if low <= 0 else ""))
        elif "" in arguments:
            raise UdcError(f"{setting}: a value of choice(x,y,…) is empty")
        return search_range

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value; :class:`ValueError` if there are not two numbers."""
        low, high = map(float, self.arguments)
        return low, high

    @property
    def extremes(self) -> tuple[str, ...]:
        """All values of a choice, otherwise the lowest and the highest value, as texts for DVC's option ``-S``."""
        if self.kind in ("value", "choice"):
            return self.arguments
        return tuple(str(int(bound)) if self.kind == "int" else repr(bound) for bound in self.bounds())

    def suggest(self, trial: Trial) -> str:
        """The value for a trial, as text for DVC's option ``-S``."""
        match self.kind:
            case "value":
                return self.arguments[0]
            case "choice":
                return str(trial.suggest_categorical(self.name, self.arguments))
            case "int":
                low, high = self.bounds()
                return str(trial.suggest_int(self.name, int(low), int(high)))
            case _:
                low, high = self.bounds()
                return repr(trial.suggest_float(self.name, low, high, log=self.kind == "log"))


@dataclass(frozen=True)
class TuningPlan:
    """The arguments of ``udc tune``; ``metric`` is a name in ``evaluation/validation/metrics.csv`` after its split."""

    study: str
    ranges: Sequence[SearchRange]
    trials: int
    metric: str = "validation/mean_cost"
    sampler: str = "tpe"
    prune: bool = True

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
    params = _check_plan(plan)
    root = repository_root()
    folder = root / STUDIES / plan.study
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock", plan.study):
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}", study_name=plan.study, direction=plan.direction,
            load_if_exists=True, sampler=optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.MedianPruner() if plan.prune else optuna.pruners.NopPruner(),
        )  # fmt: skip
        _check_same(study, plan)
        # seeded; a resumed study draws other values than its first process
        study.sampler = _sampler(plan, params.seed + len(study.trials))
        with stage_run("tune", {"mlflow.runName": plan.study, "study": plan.study}, study.user_attrs[_KEY]) as run:
            searched = {r.name: f"{r.kind}({', '.join(r.arguments)})" for r in plan.ranges}
            run.log_params({"study": {"metric": plan.metric, "sampler": plan.sampler}, "search": searched})
            _run_trials(study, plan, params.train.monitor, run, root)
            table = _table(study)
            _log_study(study, run, plan, table)
    return table


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
    return optuna.samplers.GridSampler({r.name: list(r.arguments) for r in searched}, seed=0)


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
        process = TrialProcess(name, settings, root, root / STUDIES / plan.study, run.key)
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


class TrialProcess:
    """One trial: ``dvc exp run --temp`` in its own session, which continues if ``udc tune`` is killed.

    The process inherits a lock and holds it as long as it runs, so that the next ``udc tune`` waits for it. The lock is
    taken with ``fcntl``, because filelock closes its descriptor on exec and cannot pass it to a child process.
    """

    def __init__(self, name: str, settings: Sequence[str], root: Path, folder: Path, study_key: str) -> None:
        self.name, self.settings, self.root, self.study_key = name, settings, root, study_key
        self.lock, self.prune_file, self.log = (folder / f"{name}.{kind}" for kind in ("lock", "prune", "log"))

    def run(self, should_prune: Callable[[dict[int, dict[str, float]]], bool]) -> Mapping[str, float | None] | None:
        """Run the experiment unless it exists; returns its validation metrics, or None if it was pruned."""
        with self.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # wait for a process that a killed `udc tune` started
        if self.prune_file.exists() and self.name not in dvc_experiments():
            return None
        if self.name not in dvc_experiments():
            self._delete_interrupted()
            if not self._execute(should_prune):
                return None
        commit = dvc_experiments()[self.name]
        with tempfile.TemporaryDirectory() as scratch:
            return read_metrics(from_dvc(self.name, commit, "evaluation/validation/metrics.csv", Path(scratch)))

    def _delete_interrupted(self) -> None:
        """Delete (in MLflow's reversible way) the run of an interrupted attempt, because the trial starts again."""
        import mlflow

        from udc_model.tracking.sender import deliver_pending
        from udc_model.tracking.store import open_store

        wait_for_senders(self.root)
        deliver_pending(self.root)
        try:
            experiments = [open_store()]
        except UdcError:
            return  # the tracking server cannot be reached
        client = mlflow.MlflowClient()
        for run in runs_with_tag(client, experiments, EXPERIMENT_NAME, self.name):
            if run.info.status in ("RUNNING", "KILLED", "FAILED"):
                client.delete_run(run.info.run_id)

    def _execute(self, should_prune: Callable[[dict[int, dict[str, float]]], bool]) -> bool:
        """Run the experiment; False if it was pruned."""
        command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", self.name]
        command += [part for setting in self.settings for part in ("-S", setting)]
        env = os.environ | {"UDC_PRUNE_FILE": str(self.prune_file), STUDY_KEY: self.study_key}
        with self.lock.open("w") as lock, self.log.open("wb") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True,
                                       pass_fds=[lock.fileno()])  # fmt: skip
        try:
            while True:
                try:
                    process.wait(_POLL)
                    break
                except subprocess.TimeoutExpired:
                    if not self.prune_file.exists() and should_prune(self._curve()):
                        self.prune_file.touch()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        if process.returncode and not self.prune_file.exists():
            output = self.log.read_text(encoding="utf-8", errors="replace").strip()
            raise UdcError(f"trial {self.name} failed:\n{output[-3000:]}")
        return not process.returncode

    def _curve(self) -> dict[int, dict[str, float]]:
        """The metrics by epoch so far, from the journal of the trial's training run."""
        for folder in reversed(pending_journals(self.root)):
            try:
                entries = [entry for entry, _ in read_entries(folder)]
            except FileNotFoundError:  # delivered meanwhile
                continue
            if (
                entries
                and entries[0]["stage"] == "train"
                and read_tag(entries[0]["tags"], EXPERIMENT_NAME) == self.name
            ):
                return {e["step"]: e["metrics"] for e in entries if e.get("step") is not None and "metrics" in e}
        return {}


def _table(study: Study) -> str:
    import pandas as pd

    sign = 1 if study.direction.name == "MINIMIZE" else -1
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), study.user_attrs[_METRIC]: t.value, **t.params}
        for t in sorted(study.trials, key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number))
    ]
    return pd.DataFrame(rows).to_string(index=False, na_rep="-") + "\n" + _selection(rows, study.user_attrs[_METRIC])


def _selection(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """That the best of several trials is not proved to be better, as a line; nothing for fewer than two trials."""
    count = sum(row[metric] is not None for row in rows)
    if count < 2:
        return ""
    return (f"The first row is the best of {count} by {metric}: its value is too good by selection, and no difference "
            "is proved. `udc compare` tests two of them on the test split.\n")  # fmt: skip


def _log_study(study: Study, run: StageRun, plan: TuningPlan, table: str) -> None:
    """Log the table, the best parameters, and plots of the optimisation history and of parameter importance."""
    import warnings

    import matplotlib as mpl
    import optuna

    mpl.use("Agg")
    from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances

    run.log_text(table, "study/trials.txt")
    complete = [t for t in study.trials if t.value is not None]
    if not complete:
        return
    run.log_text(json.dumps(study.best_params, indent=2) + "\n", "study/best_params.json")
    run.set_tags({"best experiment": f"{plan.study}-{study.best_trial.number}"})
    plots: list[tuple[str, Callable[[Study], Any]]] = [("history", plot_optimization_history)]
    if len({t.value for t in complete}) > 1 and len(complete) > 2:
        plots.append(("importance", plot_param_importances))
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        folder = Path(scratch) / "plots"
        folder.mkdir()
        for name, plot in plots:
            figure = plot(study).figure
            figure.set_size_inches(8, 5)
            figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        run.log_folder(folder, "study")
