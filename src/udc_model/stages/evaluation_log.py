"""Logs an evaluation in its MLflow run: parameters, data, metrics, the served model, tables, figures and the report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import udc_model
from udc_model.config import Params, with_json_mappings
from udc_model.decisions.policy import POLICY_FILE
from udc_model.evaluation.intervals import Intervals
from udc_model.evaluation.metrics import Metrics
from udc_model.evaluation.report import render_report
from udc_model.files import Workspace
from udc_model.tracking.delivery import EVALUATED
from udc_model.tracking.journal import RUN_ID_PLACEHOLDER
from udc_model.tracking.provenance import OUTS, dvc_hash, identity
from udc_model.tracking.run import StageRun

Scores = dict[str, tuple[Metrics, Intervals]]

SHOWN = ("confusion_matrix", "confusion_cost", "reliability", "cost_curve")  # figures by which runs are compared
# What loading and running the served model imports.
_REQUIREMENTS = (
    "mlflow", "torch", "safetensors", "numpy", "scipy", "scikit-learn", "pandas", "pillow", "pydantic", "pyyaml",
)  # fmt: skip


def log_training(run: StageRun, record: Mapping[str, Any]) -> None:
    """Log parameters, final metrics and data of the training run, from ``training/record.json``, if the run is new."""
    run.log_params(with_json_mappings(record["params"]), new_only=True)
    run.log_metrics({f"train/{name}": value for name, value in record["final_metrics"].items()}, new_only=True)
    run.log_dataset(**record["data"], context="training", new_only=True)


def log_scores(run: StageRun, params: Params, record: Mapping[str, Any], scores: Scores, metrics_json: str) -> None:
    """Log parameters and data of the evaluation, and the metrics of each split with their intervals."""
    run.log_params(with_json_mappings(params.model_dump(include={"costs", "evaluate"})))
    run.log_dataset(**record["data"], context="evaluation")
    metrics: dict[str, float | None] = {}
    for split, (values, intervals) in scores.items():
        metrics |= {f"{split}/{name}": value for name, value in values.items()}
        for name, (low, high) in intervals.items():
            metrics |= {f"interval/{split}/{name}_low": low, f"interval/{split}/{name}_high": high}
    run.log_metrics(metrics)
    run.log_text(metrics_json, "metrics.json")


def log_model(run: StageRun, model: Path, policy: Path) -> None:
    """Log a model folder and a policy file together, as a model that MLflow can load and serve."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "classifier"
        shutil.copytree(model, Workspace(bundle).model)
        shutil.copy(policy, bundle / POLICY_FILE)
        run.log_classifier(bundle, Path(udc_model.__file__).parent, _REQUIREMENTS)


def log_evaluation(run: StageRun, folder: Path, origin: Mapping[str, str], report: Mapping[str, Any]) -> None:
    """Log the evaluation folder, the figures in ``SHOWN``, and a report that names the MLflow run.

    Parameters
    ----------
    origin : names and values of what identifies the model.
    report : the other arguments of `render_report`.
    """
    run.log_folder(folder, "evaluation")
    for name in SHOWN:
        if (figure := folder / "test" / f"{name}.png").exists():
            run.log_image(figure, f"test/{name}")
            run.log_file(figure)  # MLflow's comparison of runs shows no files in folders side by side
    provenance = {"MLflow run": RUN_ID_PLACEHOLDER} | identity(run.tags) | dict(origin)
    run.log_text(render_report(folder, **report, provenance=provenance), "report.html", fill_run_id=True)
    run.set_tags({EVALUATED: "true", f"{OUTS}evaluation": dvc_hash(folder)})
