"""Stage ``evaluate``: a trained model to calibrated decisions, metrics, tables and pictures, in its MLflow run."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import udc_model
from udc_model.config import EvaluateParams, Params
from udc_model.data.packed import PackedDataset, PackedSplit, group_indices
from udc_model.decisions.matrix import lint_costs
from udc_model.decisions.policy import POLICY_FILE, Policy, fit_policy
from udc_model.errors import UdcError
from udc_model.evaluation.intervals import Intervals, metric_intervals
from udc_model.evaluation.metrics import Metrics, Scored, split_metrics
from udc_model.evaluation.report import model_identity, render_report, write_report
from udc_model.evaluation.tables import (
    costliest_mistakes,
    metrics_table,
    predictions_table,
    write_confusion,
    write_csv,
    write_curves,
)
from udc_model.files import Workspace, atomic_folder, exit_status, sha256_of, write_atomically
from udc_model.inference.stored_logits import Logits, stored_logits
from udc_model.stages.resolve import load_evaluation_params
from udc_model.tracking.delivery import EVALUATED, MODEL_SHA256
from udc_model.tracking.journal import RUN_ID_PLACEHOLDER
from udc_model.tracking.provenance import OUTS, dvc_hash, identity
from udc_model.tracking.run import StageRun, stage_run
from udc_model.tracking.store import repository_root

logger = logging.getLogger("udc_model.stages.evaluate")  # __name__ is __main__ when DVC runs the stage

SCORED = ("test", "validation")
SHOWN = ("confusion_matrix", "confusion_cost", "reliability", "cost_curve")  # pictures that runs are compared by
CACHE = Path(".udc") / "logits"
# What loading and running the served model imports.
_REQUIREMENTS = (
    "mlflow", "torch", "safetensors", "numpy", "scipy", "scikit-learn", "pandas", "pillow", "pydantic", "pyyaml",
)  # fmt: skip


Scores = dict[str, tuple[Metrics, Intervals]]


def evaluate(params: Params, workspace: Workspace) -> dict[str, Metrics]:
    """Score the model folder; writes ``evaluation/`` and ``metrics.json``, and returns the latter's contents.

    Raises
    ------
    UdcError
        The model or the prepared data is missing, or they do not belong together, or the calibration split is too
        small for what ``params.evaluate`` asks.
    """
    dataset = PackedDataset.open(workspace.prepared)
    record = read_record(workspace)
    if record["data"]["digest"] != dataset.info["digest"]:
        raise UdcError(f"{workspace.model} was trained on other data than {workspace.prepared}; run train again")
    recall_of = named_classes(params.evaluate, dataset.classes)
    splits = {name: dataset.split(name) for name in ("calibration", *SCORED)}
    logits = stored_logits(
        repository_root() / CACHE, workspace.model, dataset.info["digest"], params.evaluate,
        lambda: run_model(workspace, dataset.classes, splits, params.evaluate),
    )  # fmt: skip
    policy = fit_policy(
        params.evaluate, params.costs, dataset.classes, dataset.training_counts, logits["calibration"],
        splits["calibration"].labels, group_indices(splits["calibration"].groups),
    )  # fmt: skip
    findings = lint_costs(np.array(policy.class_costs), policy.classes, policy.refer)
    for finding in findings:
        logger.warning("%s", finding)

    tags = {MODEL_SHA256: sha256_of(workspace.model / "model.safetensors"), f"{OUTS}model": dvc_hash(workspace.model),
            "udc.seed": str(record["params"]["seed"])}  # fmt: skip
    with (
        _Pictures(workspace.prepared) as pictures,
        atomic_folder(workspace.evaluation) as folder,
        stage_run("evaluate", record["hardware"] | tags) as run,
    ):
        _carry_over(run, record, dataset)
        (folder / POLICY_FILE).write_text(policy.to_json(), encoding="utf-8")
        scores = {}
        for name, split in splits.items():
            found = write_split(folder / name, split, logits[name], policy, params.evaluate, recall_of)
            if found is not None:
                scores[name] = found
                pictures.draw(folder / name)
        _log(run, params, workspace, dataset, record, folder, scores, findings, pictures)
    test, interval = scores["test"][0], scores["test"][1]["mean_cost"]
    logger.info("test: mean cost %.4f (%.0f%% interval %.4f to %.4f), of argmax %.4f; MLflow run %s", test["mean_cost"],
                100 * params.evaluate.confidence, *interval, test["argmax_mean_cost"], run)  # fmt: skip
    metrics = {name: values for name, (values, _) in scores.items()}
    write_atomically(workspace.metrics, _json(metrics))
    return metrics


def _json(metrics: dict[str, Metrics]) -> str:
    return json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"


def run_model(
    workspace: Workspace, classes: list[str], splits: dict[str, PackedSplit], evaluate: EvaluateParams
) -> Logits:
    """The logits of each split; :class:`UdcError` if the model is not whole or knows other classes."""
    from udc_model.inference.classifier import TrainedClassifier  # torch, which stored logits do not need

    classifier = TrainedClassifier.load(workspace.model, evaluate.flip_averaging)
    if classifier.classes != classes:
        raise UdcError(f"{workspace.model} was trained on other classes than {workspace.prepared}; run train again")
    return {name: classifier.logits_of_stored(split.images, evaluate.batch_size, f"scoring {name}")
            for name, split in splits.items()}  # fmt: skip


def read_record(workspace: Workspace) -> dict[str, Any]:
    """``training/record.json``; :class:`UdcError` if there is none."""
    path = workspace.training / "record.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UdcError(f"{path}: cannot be read ({error}); run train first (dvc repro)") from None


def named_classes(evaluate: EvaluateParams, classes: list[str]) -> list[tuple[int, str]]:
    """Index and name of the classes in ``evaluate.recall_of``; :class:`UdcError` if the data lacks one."""
    for name in evaluate.recall_of:
        if name not in classes:
            raise UdcError(f"evaluate.recall_of: the data has no class {name!r}; its classes are {', '.join(classes)}")
    return [(classes.index(name), name) for name in evaluate.recall_of]


def write_split(
    folder: Path,
    split: PackedSplit,
    logits: NDArray[np.float32],
    policy: Policy,
    evaluate: EvaluateParams,
    recall_of: list[tuple[int, str]],
) -> tuple[Metrics, Intervals] | None:
    """Write a split's tables into the folder that is called as it; returns its metrics with intervals, None for the
    calibration split."""
    folder.mkdir()
    decisions = policy.apply(logits)
    predictions = predictions_table(split, decisions, logits, policy)
    write_csv(predictions, folder / "predictions.csv")
    if folder.name not in SCORED:
        return None
    scored = Scored(split.labels, decisions.decided, decisions.probabilities, policy.outcome_costs,
                    policy.weights(split.labels), group_indices(split.groups))  # fmt: skip
    metrics = split_metrics(scored, evaluate.ece_bins, recall_of)
    intervals = metric_intervals(scored, metrics, evaluate.ece_bins, recall_of, evaluate.resamples, evaluate.confidence)
    write_csv(metrics_table(metrics, intervals), folder / "metrics.csv")
    write_confusion(folder, scored, policy)
    if folder.name == "test":
        write_curves(folder, scored, policy, logits, evaluate)
    write_csv(costliest_mistakes(predictions, scored), folder / "costliest_mistakes.csv")
    return metrics, intervals


def _log(
    run: StageRun,
    params: Params,
    workspace: Workspace,
    dataset: PackedDataset,
    record: dict[str, Any],
    folder: Path,
    scores: Scores,
    findings: list[str],
    pictures: _Pictures,
) -> None:
    """Fill the MLflow run while the pictures are drawn, then write the report and log everything."""
    origin = model_identity(record, run.tags[MODEL_SHA256])
    about = {"record": record, "counts": dataset.info["counts"], "findings": findings,
             "confidence": params.evaluate.confidence}  # fmt: skip
    run.log_params({"costs": params.costs.model_dump(), "evaluate": params.evaluate.model_dump()})
    run.log_dataset(**record["data"], context="evaluation")
    named: dict[str, float | None] = {}
    for split, (values, intervals) in scores.items():
        named |= {f"{split}/{name}": value for name, value in values.items()}
        for name, (low, high) in intervals.items():
            named |= {f"interval/{split}/{name}_low": low, f"interval/{split}/{name}_high": high}
    run.log_metrics(named)
    run.log_text(_json({split: values for split, (values, _) in scores.items()}), "metrics.json")
    _log_model(run, folder, workspace)
    pictures.finish()
    write_report(folder, **about, provenance=origin)
    run.log_folder(folder, "evaluation")
    for name in SHOWN:
        if (picture := folder / "test" / f"{name}.png").exists():
            run.log_image(picture, f"test/{name}")
            run.log_file(picture)  # MLflow's page of two runs shows no files in folders side by side
    provenance = {"MLflow run": RUN_ID_PLACEHOLDER} | identity(run.tags) | origin
    run.log_text(render_report(folder, **about, provenance=provenance), "report.html", fill_run_id=True)
    run.set_tags({EVALUATED: "true", f"{OUTS}evaluation": dvc_hash(folder)})


class _Pictures:
    """A process that draws the pictures beside the rest of the stage; it loads its libraries while tables are made."""

    def __init__(self, prepared: Path) -> None:
        command = [sys.executable, "-m", "udc_model.evaluation.figures", str(prepared)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> _Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def draw(self, split: Path) -> None:
        """Begin to draw from the tables in a split's folder."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # finish() says why
            self.process.stdin.write(f"{split}\n")
            self.process.stdin.flush()

    def finish(self) -> None:
        """Wait for the pictures."""
        _, told = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError(f"drawing the pictures failed: {told}")


def _carry_over(run: StageRun, record: dict[str, Any], dataset: PackedDataset) -> None:
    """Give a new run what the run that trained already has: parameters, final metrics, the training data."""
    run.log_params(record["params"], new_only=True)
    run.log_metrics({f"train/{name}": value for name, value in record["final_metrics"].items()}, new_only=True)
    run.log_dataset(**record["data"], context="training", new_only=True)


def _log_model(run: StageRun, folder: Path, workspace: Workspace) -> None:
    """Log weights and decision policy together, as a model that MLflow can load and serve."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "classifier"
        shutil.copytree(workspace.model, Workspace(bundle).model)
        shutil.copy(folder / POLICY_FILE, bundle / POLICY_FILE)
        run.log_classifier(bundle, Path(udc_model.__file__).parent, _REQUIREMENTS)


def main() -> None:
    """Run the stage in the current folder."""
    workspace = Workspace()
    evaluate(load_evaluation_params(workspace), workspace)


if __name__ == "__main__":
    sys.exit(exit_status(main))
