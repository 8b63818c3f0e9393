"""The results of a study of ``udc tune``: a table, and what its run in MLflow has."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.experiments.shared_study import attempt_name, attempt_number, without_retried
from udc_model.tracking.run import StageRun

if TYPE_CHECKING:
    from optuna import Study


def trials_table(study: Study, metric: str) -> str:
    """All trials as a text table, the best first, and what follows from it; ``trial`` is the number in the name of the
    DVC experiment."""
    import pandas as pd

    sign = 1 if study.direction.name == "MINIMIZE" else -1
    rows = [
        {"trial": attempt_number(t), "state": t.state.name.lower(), metric: t.value, **t.params}
        for t in sorted(
            without_retried(study.trials), key=lambda t: (t.value is None, sign * (t.value or 0.0), t.number)
        )
    ]
    return pd.DataFrame(rows).to_string(index=False, na_rep="-") + "\n" + _selection(rows, metric)


def _selection(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """That the best of several trials is not proved to be better, as a line; nothing for fewer than two trials."""
    count = sum(row[metric] is not None for row in rows)
    if count < 2:
        return ""
    return (f"The first row is the best of {count} by {metric}: its value is too good by selection, and no difference "
            "is proved. `udc compare` tests two of them on the test split.\n")  # fmt: skip


def log_study(study: Study, run: StageRun, table: str) -> None:
    """Log the `trials_table`, the best parameters, and plots of optimisation history and parameter importance."""
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
    run.set_tags({"best experiment": attempt_name(study.study_name, study.best_trial)})
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
