"""Stage ``evaluate``: a trained model to calibrated decisions, metrics, tables and pictures, in its MLflow run."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

import udc_model
from udc_model.classifier import DecisionRule, TrainedClassifier, check_same_classes
from udc_model.costs.calibration import fit_temperature
from udc_model.costs.matrix import cost_matrix, lint_costs
from udc_model.data.packed import PackedDataset, PackedSplit
from udc_model.errors import UdcError
from udc_model.evaluation.metrics import per_class_table, split_metrics
from udc_model.evaluation.plots import plot_confusion_matrix, plot_precision_recall, plot_roc
from udc_model.evaluation.tables import precision_recall_points, predictions_table, roc_points
from udc_model.params import Params, load_params
from udc_model.serving import DECISION_FILE, MODEL_FOLDER
from udc_model.stages.files import Workspace, exit_status, whole_folder, write_whole
from udc_model.stages.train import sha256_of
from udc_model.tracking.run import (
    EVALUATED,
    evaluation_run,
    log_classifier,
    log_dataset,
    log_folder,
    log_metrics,
    log_params,
    log_text,
    mark,
)

logger = logging.getLogger("udc_model.stages.evaluate")  # __name__ is __main__ when DVC runs the stage

SCORED = ("test", "validation")
# What loading and running the served model imports.
_REQUIREMENTS = ("mlflow", "torch", "safetensors", "numpy", "scipy", "pandas", "pillow", "pydantic", "pyyaml")

Metrics = dict[str, dict[str, float | None]]


def evaluate(params: Params, workspace: Workspace) -> Metrics:
    """Score the model folder; writes ``evaluation/`` and ``metrics.json``, and returns the latter's contents.

    Raises
    ------
    UdcError
        The model or the prepared data is missing, or they do not belong together.
    """
    dataset = PackedDataset.open(workspace.prepared)
    classifier = TrainedClassifier.load(workspace.model)
    record = read_record(workspace)
    if classifier.classes != dataset.classes or record["data"]["digest"] != dataset.info["digest"]:
        raise UdcError(f"{workspace.model} was trained on other data than {workspace.prepared}; run train again")
    rule = fit_rule(params, dataset, classifier)

    with (
        whole_folder(workspace.evaluation) as folder,
        evaluation_run(sha256_of(workspace.model / "model.safetensors"), record["hardware"]) as (run, is_new),
    ):
        if is_new:
            _carry_over(record, dataset)
        (folder / DECISION_FILE).write_text(rule.to_json(), encoding="utf-8")
        metrics = {name: score(params, dataset, classifier, rule, name, folder) for name in SCORED}
        text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
        log_params({"costs": params.costs.model_dump(), "evaluate": params.evaluate.model_dump()})
        log_dataset(**record["data"], context="evaluation")
        log_metrics({f"{split}/{name}": value for split, own in metrics.items() for name, value in own.items()})
        log_text(text, "metrics.json")
        log_folder(folder, "evaluation")
        _log_model(folder, workspace)
        mark(EVALUATED, "true")
    write_whole(workspace.metrics, text)
    test = metrics["test"]
    logger.info("test: accuracy %.4f, mean cost %.4f (argmax: %.4f, %.4f); MLflow run %s", test["accuracy"],
                test["mean_cost"], test["argmax_accuracy"], test["argmax_mean_cost"], run.info.run_id)  # fmt: skip
    return metrics


def read_record(workspace: Workspace) -> dict[str, Any]:
    """``training/record.json``; :class:`UdcError` if there is none."""
    path = workspace.training / "record.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UdcError(f"{path}: cannot be read ({error}); run train first (dvc repro)") from None


def fit_rule(params: Params, dataset: PackedDataset, classifier: TrainedClassifier) -> DecisionRule:
    """The decision rule that ``evaluate`` and ``costs`` ask for, calibrated on the calibration split."""
    temperature = 1.0
    if params.evaluate.calibration == "temperature":
        split = dataset.split("calibration")
        if not len(split):
            raise UdcError("evaluate.calibration: temperature needs images, but the calibration split is empty; "
                           "raise data.splits.calibration or set evaluate.calibration: none")  # fmt: skip
        logits = classifier.logits_of_stored(split.images, params.evaluate.batch_size)
        temperature = fit_temperature(logits.astype(np.float64), split.labels)
    costs = cost_matrix(params.costs, dataset.classes)
    for finding in lint_costs(costs, dataset.classes):
        logger.warning("%s", finding)
    rule = DecisionRule(dataset.classes, costs.tolist(), params.evaluate.decision, temperature)
    check_same_classes(classifier, rule, "the prepared data")
    return rule


def score(
    params: Params, dataset: PackedDataset, classifier: TrainedClassifier, rule: DecisionRule, name: str, folder: Path
) -> dict[str, float | None]:
    """Score one split: returns its metrics, writes its tables and pictures into ``folder/name``."""
    split = dataset.split(name)
    logits = classifier.logits_of_stored(split.images, params.evaluate.batch_size, f"scoring {name}")
    decisions = rule.apply(logits)
    own = folder / name
    own.mkdir()
    predictions = predictions_table(
        split.paths, split.groups, split.labels, decisions.decided, decisions.expected_cost, logits, rule.classes
    )
    write_csv(predictions, own / "predictions.csv")
    write_csv(per_class_table(split.labels, decisions.decided, rule.classes), own / "per_class.csv")
    _write_curves(split, decisions.probabilities, own)
    _write_confusion(split, decisions.decided, rule.classes, name, own)
    if name == "test":
        plot_roc(own / "roc.png", split.labels, decisions.probabilities, rule.classes)
        plot_precision_recall(own / "precision_recall.png", split.labels, decisions.probabilities, rule.classes)
    costs = np.array(rule.costs)
    return split_metrics(split.labels, decisions.decided, decisions.probabilities, costs, params.evaluate.ece_bins)


def _write_curves(split: PackedSplit, probabilities: NDArray[np.float64], folder: Path) -> None:
    write_csv(roc_points(split.labels, probabilities), folder / "roc.csv")
    write_csv(precision_recall_points(split.labels, probabilities), folder / "precision_recall.csv")


def _write_confusion(
    split: PackedSplit, decided: NDArray[np.intp], classes: list[str], name: str, folder: Path
) -> None:
    counts = confusion_matrix(split.labels, decided, labels=np.arange(len(classes)))
    text = json.dumps({"classes": classes, "rows": "true", "columns": "decided", "counts": counts.tolist()}, indent=2)
    (folder / "confusion_matrix.json").write_text(text + "\n", encoding="utf-8")
    names = np.array(classes, dtype=object)
    write_csv(pd.DataFrame({"true": names[split.labels], "decided": names[decided]}), folder / "confusion.csv")
    title = f"Confusion matrix, {name} ({len(split):,} images)"
    plot_confusion_matrix(folder / "confusion_matrix.png", counts, classes, title)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table with full precision and the same bytes on every system."""
    table.to_csv(path, index=False, lineterminator="\n")


def _carry_over(record: dict[str, Any], dataset: PackedDataset) -> None:
    """Give a new run what the run that trained already has: parameters, final metrics, the training data."""
    log_params(record["params"])
    log_metrics({f"train/{name}": value for name, value in record["final_metrics"].items()})
    log_dataset(**record["data"], context="training")


def _log_model(folder: Path, workspace: Workspace) -> None:
    """Log weights and decision rule together, as a model that MLflow can load and serve."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "classifier"
        shutil.copytree(workspace.model, bundle / MODEL_FOLDER)
        shutil.copy(folder / DECISION_FILE, bundle / DECISION_FILE)
        log_classifier(bundle, Path(udc_model.__file__).parent, _REQUIREMENTS)


def main() -> None:
    """Run the stage in the current folder."""
    evaluate(load_params(), Workspace())


if __name__ == "__main__":
    sys.exit(exit_status(main))
