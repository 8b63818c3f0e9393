"""The short table that ends ``make demo``: what was trained, how good it is, where everything lies, what next."""

from __future__ import annotations

import json
from typing import Any

from udc_model.errors import UdcError
from udc_model.stages.files import Workspace
from udc_model.tracking.store import tracking_uri, without_credentials

_HEADLINES = (
    ("accuracy", "accuracy"),
    ("balanced accuracy", "balanced_accuracy"),
    ("macro F1", "macro_f1"),
    ("ROC AUC", "roc_auc"),
    ("log loss", "log_loss"),
    ("mean cost", "mean_cost"),
    ("mean cost of argmax", "argmax_mean_cost"),
)


def summary(workspace: Workspace) -> str:
    """The table for a workspace that went through all stages.

    Raises
    ------
    UdcError
        A stage has not run yet.
    """
    metrics = _read(workspace.metrics)
    record = _read(workspace.training / "record.json")
    info = _read(workspace.prepared / "dataset.json")
    model_type = record["params"]["model"]["model_type"]
    splits = ", ".join(f"{name} {sum(counts.values()):,}" for name, counts in info["counts"].items())
    lines = [
        f"trained     {model_type}, best epoch {record['best_epoch']} of {record['final_metrics']['epochs']}"
        f" ({record['hardware']['device']}, {record['hardware']['precision']})",
        f"images      {info['images']:,} of {record['data']['name']}: {splits}",
        "",
        f"{'metric':<22}{'test':>8}{'validation':>12}",
        *(f"{title:<22}{_number(metrics['test'][key])}{_number(metrics['validation'][key], 12)}"
          for title, key in _HEADLINES),
        "",
        f"model       {workspace.model}/",
        f"plots       {workspace.evaluation}/test/*.png, {workspace.training}/curves.png",
        f"MLflow runs {without_credentials(tracking_uri())}",
        "",
        "Next:       make ui                                         (runs, curves and models in the browser)",
        "            . .venv/bin/activate && udc predict data/samples  (decide ten images)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _number(value: float | None, width: int = 8) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.4f}"


def _read(path: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UdcError(f"{path}: cannot be read ({error}); run the pipeline first (dvc repro)") from None
