"""The results of a study of ``udc tune``: a table, and what its run in MLflow has."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.experiments.shared_study import attempt_name, attempt_number, without_retried
from udc_model.experiments.stopping import outlook
from udc_model.experiments.study_trials import ERRORS
from udc_model.experiments.tuning_plan import TuningPlan
from udc_model.tracking.run import StageRun

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from udc_model.experiments.study_plots import PlottedTrials

_MIN_FOR_IMPORTANCE = 3  # completed trials


def results_text(study: Study, plan: TuningPlan) -> str:
    """The trials as text tables, the best first, and what follows from them; ``experiment`` is the DVC experiment.

    With several metrics, the first table has the Pareto-optimal trials, the second all others.
    """
    sign = 1 if plan.directions[0] == "minimize" else -1
    trials = sorted(
        without_retried(study.trials),
        key=lambda t: (t.values is None, sign * t.values[0] if t.values else 0.0, t.number),
    )
    if len(plan.metrics) == 1:
        expected = outlook(trials, plan)
        num_complete = sum(trial.values is not None for trial in trials)
        return _table(study, plan, trials) + _selection(num_complete, plan) + str(expected or "")
    best = {trial.number for trial in study.best_trials}
    chosen, others = ([t for t in trials if (t.number in best) == is_best] for is_best in (True, False))
    text = "Pareto-optimal trials: no other one is better in a metric and as good in all others.\n"
    text += _table(study, plan, chosen) if chosen else "none\n"
    text += f"\nOther trials:\n{_table(study, plan, others)}" if others else ""
    return text + ("\n" + _selection(len(chosen), plan) if chosen else "")


def _table(study: Study, plan: TuningPlan, trials: Sequence[FrozenTrial]) -> str:
    import pandas as pd

    rows: list[Mapping[str, Any]] = [
        {"experiment": attempt_name(study.study_name, t), "state": t.state.name.lower()}
        | dict(zip(plan.metrics, t.values or [None] * len(plan.metrics), strict=True)) | t.params
        for t in trials
    ]  # fmt: skip
    return pd.DataFrame(rows).to_string(index=False, na_rep="-") + "\n"


def _selection(count: int, plan: TuningPlan) -> str:
    """That the best of several trials is not proved to be better, as a line; nothing for fewer than two trials."""
    if count < 2:
        return ""
    if len(plan.metrics) > 1:
        return ("Their values are too good by selection, and no difference is proved. `udc compare` tests two of them "
                "on the test split.\n")  # fmt: skip
    return (f"The first row is the best of {count} by {plan.metrics[0]}: its value is too good by selection, and no "
            "difference is proved. `udc compare` tests two of them on the test split.\n")  # fmt: skip


def log_trial(
    run: StageRun, plan: TuningPlan, trial: FrozenTrial, complete: Sequence[FrozenTrial], measured: int | None = None
) -> None:
    """Log the values of a trial to the run of its study.

    Parameters
    ----------
    complete : the completed trials so far, this one included.
    measured : time of its end in ms since 1970 (default: now).
    """
    values = {f"study/{name}": value for name, value in zip(plan.metrics, trial.values, strict=True)}
    if len(plan.metrics) == 1:
        better = min if plan.directions[0] == "minimize" else max
        values = {"study/value": trial.values[0], "study/best": better(each.values[0] for each in complete)}
    run.log_metrics(values, step=trial.number, measured=measured)


def log_study(study: Study, plan: TuningPlan, run: StageRun, text: str) -> None:
    """Log the `results_text`, the best parameters, and plots: the importance of the parameters, and the history of one
    metric or the trade-offs of several."""
    run.log_text(text, "study/trials.txt")
    complete = [t for t in study.trials if t.values is not None]
    if not complete:
        return
    names = [attempt_name(study.study_name, trial) for trial in study.best_trials]
    if len(plan.metrics) == 1:
        run.log_text(json.dumps(study.best_params, indent=2) + "\n", "study/best_params.json")
        run.set_tags({"best experiment": attempt_name(study.study_name, study.best_trial)})
    else:
        best = {name: trial.params for name, trial in zip(names, study.best_trials, strict=True)}
        run.log_text(json.dumps(best, indent=2) + "\n", "study/best_params.json")
        run.set_tags({"Pareto-optimal experiments": ", ".join(names)})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "plots"
        folder.mkdir()
        write_plots(study, plan, folder)
        run.log_folder(folder, "study")


def write_plots(study: Study, plan: TuningPlan, folder: Path) -> None:
    """Write ``importance.png``, and ``history.png`` of one metric or ``trade_offs.png`` of several."""
    from udc_model.experiments.study_plots import plot_history, plot_importances, plot_trade_offs

    trials = _plotted(study, plan)
    if len(plan.metrics) == 1:
        plot_history(folder / "history.png", trials)
    else:
        plot_trade_offs(folder / "trade_offs.png", trials)
    if importances := _importances(study, plan, trials):
        plot_importances(folder / "importance.png", importances)


def _plotted(study: Study, plan: TuningPlan) -> PlottedTrials:
    import numpy as np

    from udc_model.experiments.study_plots import PlottedTrials

    complete = [t for t in study.trials if t.values is not None]
    complete.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete))
    best = {trial.number for trial in study.best_trials}
    missing = [None] * len(plan.metrics)
    return PlottedTrials(
        study.study_name, [attempt_number(trial) for trial in complete], plan.metrics, plan.directions,
        np.array([trial.values for trial in complete], dtype=np.float64),
        np.array([trial.user_attrs.get(ERRORS, missing) for trial in complete], dtype=np.float64),
        np.array([trial.number in best for trial in complete]),
    )  # fmt: skip


def _importances(study: Study, plan: TuningPlan, trials: PlottedTrials) -> list[tuple[str, dict[str, float]]]:
    """The importance of each parameter by metric; of those only whose values differ."""
    import optuna

    found: list[tuple[str, dict[str, float]]] = []
    if len(trials.numbers) < _MIN_FOR_IMPORTANCE:
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is experimental, and that lower values must be the better ones
        for k, metric in enumerate(plan.metrics):
            sign = 1 if plan.directions[k] == "minimize" else -1
            if len(set(trials.values[:, k])) > 1:
                shares = optuna.importance.get_param_importances(study, target=partial(_signed_value, k, sign))
                found.append((metric, dict(shares)))
    return found


def _signed_value(metric: int, sign: int, trial: FrozenTrial) -> float:
    return float(sign * trial.values[metric])
