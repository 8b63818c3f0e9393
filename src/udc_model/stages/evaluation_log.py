"""Logs an evaluation in its MLflow run: parameters, data, metrics, the served model, tables, figures and the report."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import udc_model
from udc_model.config import Params, with_json_mappings
from udc_model.data.quality.data_report import DATA_REPORT
from udc_model.decisions.policy import POLICY_FILE, Policy
from udc_model.evaluation.intervals import Intervals
from udc_model.evaluation.metrics import Metrics, rate_metric, recall_metric
from udc_model.evaluation.model_card import MODEL_CARD
from udc_model.evaluation.report import render_report
from udc_model.files import Workspace
from udc_model.inference.feature_statistics import FAMILIARITY_FILE
from udc_model.model_files.folder import CONFIG
from udc_model.stages.run_note import (
    baseline_revision,
    changes_since_baseline,
    digests,
    evaluation_note,
    interval,
    recorded_params,
)
from udc_model.tracking.journal import RUN_ID_PLACEHOLDER
from udc_model.tracking.pages import IMAGES
from udc_model.tracking.provenance import dvc_hash, identity
from udc_model.tracking.run import StageRun
from udc_model.tracking.tags import COMMIT, COST_INTERVAL, EVALUATED, NOTE, OUTS

Scores = dict[str, tuple[Metrics, Intervals]]
Counts = Mapping[str, Mapping[str, int]]

_PREPARED = "data/prepared"
TABLE = "metrics_with_intervals.json"
# Metrics of validation among those of the run; the table has the others.
_VALIDATION = ("mean_cost", "normalised_cost", "accuracy", "balanced_accuracy", "macro_f1", "log_loss")
_DECISIVE = ("test/mean_cost", "test/normalised_cost", "test/constant_mean_cost", "test/accuracy")  # first on the page
# Rates of actions, and these with recalls of classes, among the metrics of the run, which should not exceed 40.
_MOST_RATES, _MOST_BY_NAME = 2, 4

SHOWN = ("confusion_matrix", "confusion_cost", "reliability", "cost_curve")  # figures by which runs are compared
# What loading and running the served model imports.
_REQUIREMENTS = (
    "mlflow", "torch", "safetensors", "numpy", "scipy", "scikit-learn", "pandas", "pillow", "pydantic", "pyyaml",
)  # fmt: skip


def log_training(run: StageRun, record: Mapping[str, Any], dataset: Path, counts: Counts) -> None:
    """Log what the training run has logged, from ``training/record.json``, if the run is new.

    Parameters
    ----------
    dataset : ``data/prepared/dataset.json``.
    counts : images by split and class.
    """
    run.log_params(with_json_mappings(record["params"]), new_only=True)
    final = record["final_metrics"]
    run.log_metrics({f"training/{name}": final[name] for name in ("best_epoch", "epochs")}, new_only=True)
    curves = {f"training/{name}": value for name, value in final.items() if name not in ("best_epoch", "epochs")}
    run.log_metrics(curves, final["best_epoch"], new_only=True)
    run.log_dataset(**record["data"], context="training", counts=counts, new_only=True)
    run.log_file(dataset, "data", new_only=True)


def log_scores(run: StageRun, params: Params, policy: Policy, scores: Scores, metrics_json: str) -> None:
    """Log parameters and metrics of the evaluation; all metrics with their intervals are in a table."""
    sections = params.model_dump(include={"costs", "evaluate"})
    run.log_params(with_json_mappings(sections))
    run.log_params(digests(policy, params.evaluate))
    rates, recalls = map(rate_metric, policy.actions), map(recall_metric, params.evaluate.recall_of)
    by_name = [*islice(rates, _MOST_RATES), *recalls][:_MOST_BY_NAME]
    metrics = {f"test/{name}": value for name, value in scores["test"][0].items()
               if "/" not in name or name in by_name}  # fmt: skip
    metrics |= {f"validation/{name}": scores["validation"][0][name] for name in _VALIDATION}
    run.log_metrics({name: metrics[name] for name in dict.fromkeys((*_DECISIVE, *metrics))})
    rows = [(name, split, value, *intervals.get(name, (None, None)))
            for split, (values, intervals) in scores.items() for name, value in values.items()]  # fmt: skip
    run.log_table(TABLE, ("metric", "split", "value", "low", "high"), rows)
    run.log_text(metrics_json, "metrics.json")


def log_note(
    run: StageRun, folder: Path, params: Params, policy: Policy, record: Mapping[str, Any],
    test: tuple[Metrics, Intervals],
) -> None:  # fmt: skip
    """Log the description of the run, and the tags for the table of runs."""
    recorded = recorded_params(record["params"], params.costs, params.evaluate)
    changes = changes_since_baseline(recorded, baseline_revision(run.tags.get(COMMIT)))
    metrics, intervals = test
    note = evaluation_note(folder, metrics, intervals, params.evaluate.confidence, changes, record["data"],
                           policy.costs_digest)  # fmt: skip
    run.set_tags({NOTE: note} | changes.tags() | {COST_INTERVAL: interval(intervals, "mean_cost")}, fill_run_id=True)


def log_model(run: StageRun, model: Path, evaluation: Path) -> None:
    """Log a model folder, its policy and its model card together, as a model that MLflow can load and serve."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "classifier"
        shutil.copytree(model, Workspace(bundle).model)
        for name in (POLICY_FILE, FAMILIARITY_FILE, MODEL_CARD):
            shutil.copy(evaluation / name, bundle / name)
        is_timm = json.loads((model / CONFIG).read_text(encoding="utf-8"))["model_type"] == "timm"
        requirements = (*_REQUIREMENTS, "timm") if is_timm else _REQUIREMENTS
        run.log_classifier(bundle, Path(udc_model.__file__).parent, requirements)


def log_data_report(run: StageRun, prepared: Path) -> str | None:
    """Log the report about the images; returns its path among the artifacts, which is that in the project too.

    Data that an earlier version or a cross-validation prepared has none.
    """
    if not (prepared / DATA_REPORT).is_file():
        return None
    run.log_file(prepared / DATA_REPORT, _PREPARED)
    return f"{_PREPARED}/{DATA_REPORT}"


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
            run.log_image(figure, f"{IMAGES}/{name}")
            run.log_file(figure)  # MLflow's comparison of runs shows no files in folders side by side
    provenance = {"MLflow run": RUN_ID_PLACEHOLDER} | identity(run.tags) | dict(origin)
    run.log_text(render_report(folder, **report, provenance=provenance), "report.html", fill_run_id=True)
    run.set_tags({EVALUATED: "true", f"{OUTS}evaluation": dvc_hash(folder)})
