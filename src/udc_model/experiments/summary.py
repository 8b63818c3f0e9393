"""The summary at the end of ``make demo``: what was trained, its metrics, where the files are, and the next steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from udc_model.data.dataset_file import read_dataset
from udc_model.errors import UdcError, without_credentials
from udc_model.evaluation.tables import read_warnings
from udc_model.evaluation.training_record import read_training_record
from udc_model.files import Workspace
from udc_model.tracking.store import tracking_uri

_ADVICE = "run the pipeline first (dvc repro)"

_HEADLINES = (
    "mean_cost", "normalised_cost", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss",
    "expected_calibration_error",
)  # fmt: skip


def summary(workspace: Workspace) -> str:
    """The summary of a workspace.

    Raises
    ------
    UdcError
        A stage has not run yet.
    """
    record = read_training_record(workspace)
    info = read_dataset(workspace.prepared)
    test, validation = (_table(workspace, name, "metrics").set_index("metric") for name in ("test", "validation"))
    is_0_1 = (workspace.evaluation / "test" / "rules.csv").exists()  # its name in version 0.1.0
    baselines = _table(workspace, "test", "rules" if is_0_1 else "baselines").itertuples(index=False)
    model_type = record["params"]["model"]["model_type"]
    splits = ", ".join(f"{name} {sum(counts.values()):,}" for name, counts in info["counts"].items())
    rows = [(name, *test.loc[name], validation.loc[name, "value"]) for name in _HEADLINES]
    lines = [
        f"trained     {_trained(model_type, record)}"
        f" ({', '.join(record['hardware'][name] for name in ('device', 'precision') if name in record['hardware'])})",
        f"images      {info['images']:,} of {record['data']['name']}: {splits}",
        "",
        f"{'decision, on test':<28}{'mean cost':>10}{'normalised':>12}{'accuracy':>10}",
        *(f"{decision:<28}{_number(cost, 10)}{_number(normalised, 12)}{_number(accuracy, 10)}"
          for decision, cost, normalised, accuracy in baselines),
        *(f"note        {warning}" for warning in read_warnings(workspace.evaluation / "test")),
        "",
        f"{'metric':<28}{'test':>10}{'interval':>22}{'validation':>12}",
        *(f"{name.replace('_', ' '):<28}{_number(value, 10)}{_interval(low, high):>22}{_number(on_validation, 12)}"
          for name, value, low, high, on_validation in rows),
        "",
        f"report      {workspace.evaluation}/report.html  (everything above with plots; open it in a browser)",
        f"model       {workspace.model}/",
        f"plots       {workspace.evaluation}/test/*.png, {workspace.training}/curves.png",
        f"MLflow runs {without_credentials(tracking_uri())}",
        "",
        'Next:       git add . && git commit -m "First result"        (later experiments are compared with it)',
        "            make ui                                           (runs, curves and models in the browser)",
        _predict_command(workspace.root),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _predict_command(root: Path) -> str:
    """How to decide images: those that the repository of this package has, or a person's own."""
    if (root / "data/samples").is_dir() and (root / ".venv").is_dir():
        return "            . .venv/bin/activate && udc predict data/samples  (decide ten images)"
    return "            udc predict FILE                                  (decide another image)"


def _trained(model_type: str, record: Mapping[str, Any]) -> str:
    if members := record.get("members"):
        best = ", ".join(str(member["best_epoch"]) for member in members)
        return f"ensemble of {len(members)} {model_type}, best epochs {best}"
    return f"{model_type}, best epoch {record['best_epoch']} of {record['final_metrics']['epochs']}"


def _number(value: float, width: int) -> str:
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:>{width}.4f}"


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def _table(workspace: Workspace, split: str, name: str) -> pd.DataFrame:
    path = workspace.evaluation / split / f"{name}.csv"
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UdcError(f"{path}: cannot be read ({error}); {_ADVICE}") from None
