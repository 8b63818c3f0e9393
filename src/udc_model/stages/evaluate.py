"""Stage ``evaluate``: scores the trained model, writes tables, figures and a report, logs them in its MLflow run."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.config import EvaluateParams, Params
from udc_model.data.background import run_in_background
from udc_model.data.packed import PackedDataset, PackedSplit, group_indices
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.lint import lint_costs
from udc_model.decisions.matrix import display_order
from udc_model.decisions.policy import POLICY_FILE, Policy, fit_policy
from udc_model.errors import UdcError
from udc_model.evaluation.explanations import Explanations
from udc_model.evaluation.figures import FigureProcess
from udc_model.evaluation.intervals import Intervals
from udc_model.evaluation.label_findings import LabelFindings, find_label_errors, with_test_corrections
from udc_model.evaluation.label_quality import write_label_quality
from udc_model.evaluation.metrics import Metrics, Scored
from udc_model.evaluation.model_card import write_card
from udc_model.evaluation.overlaps import overlap_sentences, overlapping_pairs, shortcut_sentence
from udc_model.evaluation.precision import REFERENCE, PrecisionCheck, compared_rows, resolve_precision
from udc_model.evaluation.relatives import relatives_sentence
from udc_model.evaluation.report import model_identity, write_report
from udc_model.evaluation.subgroups import read_sentences
from udc_model.evaluation.tables import read_warnings, write_curves, write_predictions, write_split
from udc_model.evaluation.training_record import TRAINING_RECORD, read_training_record
from udc_model.evaluation.unfamiliar import UnfamiliarImages, read_unfamiliar, write_unfamiliar
from udc_model.evaluation.what_if import WhatIf
from udc_model.files import Workspace, atomic_folder, only_writer, sha256_of, write_atomically
from udc_model.inference.feature_statistics import FAMILIARITY_FILE, MOST_REFERENCES, FeatureStatistics
from udc_model.inference.stored_logits import Logits, familiarity_arrays, familiarity_in, stored_logits
from udc_model.installed import check_pin
from udc_model.model_files.folder import ModelFolder
from udc_model.native.memory import keep_freed_memory
from udc_model.program import exit_status
from udc_model.stages.code import LOGITS, code_files
from udc_model.stages.evaluation_log import (
    Scores,
    log_data_report,
    log_evaluation,
    log_model,
    log_note,
    log_scores,
    log_training,
)
from udc_model.stages.explanations import ExplanationStore
from udc_model.stages.resolve import load_evaluation_params
from udc_model.stages.run_note import run_name
from udc_model.tracking.provenance import dvc_hash
from udc_model.tracking.run import StageRun, stage_run
from udc_model.tracking.store import repository_root
from udc_model.tracking.tags import MODEL_SHA256, OUTS

logger = logging.getLogger("udc_model.stages.evaluate")  # __name__ is __main__ if DVC runs the stage

# What metrics.json has of each split: DVC shows each number as a column. All metrics are in the splits' metrics.csv.
HEADLINES = {
    "test": ("mean_cost", "normalised_cost", "accuracy", "referral_rate", "log_loss"),
    "validation": ("mean_cost", "log_loss"),
}
SCORED = tuple(HEADLINES)
CACHE = ".udc"  # in the repository: logits and figures of earlier evaluations


def evaluate(params: Params, workspace: Workspace) -> dict[str, Metrics]:
    """Evaluate the model folder; writes ``evaluation/`` and ``metrics.json``, and returns all metrics of each split.

    Parameters
    ----------
    params : sections ``costs`` and ``evaluate`` apply; their class names are those of the data.

    Raises
    ------
    UdcError
        The model or the prepared data is missing, they do not belong together, or the calibration split is too small
        for the policy.
    """
    with only_writer(workspace):
        return _evaluate(params, workspace)


@dataclass(frozen=True)
class _Evaluation:
    """What is evaluated: the images, what the network computes of them, and the policy.

    Attributes
    ----------
    params : with the precision resolved.
    record : of the training run.
    logits, distances : of the images of each split; see `run_model` for what else is in ``logits``.
    statistics : contents of the file with the statistics of features.
    weights_sha256 : digest of the weights.
    explanations : of test images, those that no cost changes.
    """

    params: Params
    dataset: PackedDataset
    record: dict[str, Any]
    splits: dict[str, PackedSplit]
    logits: Logits
    distances: dict[str, NDArray[np.float32]]
    statistics: bytes
    weights_sha256: str
    policy: Policy
    explanations: Explanations

    @classmethod
    def of(cls, params: Params, workspace: Workspace) -> _Evaluation:
        """Run the network, unless its logits are stored, and fit the policy."""
        dataset = PackedDataset.open(workspace.prepared)
        record = read_record(workspace, dataset)
        params = resolve_precision(params, record)
        splits = {name: dataset.split(name) for name in ("calibration", *SCORED)}
        logits = stored_logits(
            repository_root() / CACHE / "logits", workspace.model, dataset.info["digest"], params.evaluate,
            code_files(LOGITS), lambda: run_model(workspace, dataset, splits, params.evaluate),
        )  # fmt: skip
        statistics, distances = familiarity_in(logits)
        contents, calibration = statistics.to_bytes(), splits["calibration"]
        groups = group_indices(calibration.groups)
        frequencies = TrainingFrequencies(dataset.training_counts, record.get("learned_prior"))
        policy = fit_policy(params.evaluate, params.costs, dataset.classes, frequencies, logits["calibration"],
                            calibration.labels, groups)  # fmt: skip
        familiarity = Familiarity.fit(hashlib.sha256(contents).hexdigest(), statistics.centre.shape,
                                      distances["calibration"], groups, params.costs.unfamiliar)  # fmt: skip
        weights = sha256_of(workspace.model / "model.safetensors")
        policy = replace(policy, model_sha256=weights, precision=params.evaluate.precision, familiarity=familiarity)
        store = ExplanationStore(workspace, dataset, params.evaluate)
        explanations = store.explanations(logits["test"], distances["test"])
        return cls(params, dataset, record, splits, logits, distances, contents, weights, policy, explanations)


def _evaluate(params: Params, workspace: Workspace) -> dict[str, Metrics]:
    evaluation = _Evaluation.of(params, workspace)
    params, dataset, record, policy = evaluation.params, evaluation.dataset, evaluation.record, evaluation.policy
    findings = lint_costs(np.array(policy.class_costs), policy.classes, policy.refer, policy.actions)
    for finding in findings:
        logger.warning("%s", finding)
    tags = {MODEL_SHA256: evaluation.weights_sha256, f"{OUTS}model": dvc_hash(workspace.model)}
    with (
        FigureProcess(workspace.prepared, repository_root() / CACHE / "figures") as figures,
        atomic_folder(workspace.evaluation) as folder,
        stage_run("evaluate", tags, name=run_name(record["params"]), hardware=record["hardware"]) as run,
    ):
        scores, test, unfamiliar = _write_splits(folder, evaluation, figures)
        labels = find_label_errors(dataset, evaluation.splits, evaluation.logits, workspace.training, record, policy)
        labels = with_test_corrections(labels, dataset, evaluation.splits["test"], test, policy)
        write_label_quality(folder, labels.table)
        metrics_json = json.dumps(headlines(scores), indent=2) + "\n"
        log_scores(run, params, policy, scores, metrics_json)
        log_precision(run, policy, evaluation.splits["calibration"], evaluation.logits)
        run.log_metrics({"test/unfamiliar_rate": unfamiliar.share})
        log_training(run, record, workspace.prepared / "dataset.json", dataset.info["counts"])
        run.log_dataset(**record["data"], context="evaluation", counts=dataset.info["counts"])
        log_note(run, folder, params, policy, record, scores["test"])
        origin = model_identity(record, evaluation.weights_sha256, tags[f"{OUTS}model"])
        findings += data_findings(evaluation, test, scores["test"][0]["balanced_accuracy"])
        facts = {"record": record, "counts": dataset.info["counts"], "findings": findings,
                 "confidence": params.evaluate.confidence, "data_notes": dataset.notes, "labels": labels}  # fmt: skip
        write_card(folder, provenance=origin, **facts)
        log_model(run, workspace.model, folder)
        figures.finish()
        what_if = WhatIf.of(policy, params.costs, test, evaluation.logits["test"], evaluation.distances["test"])
        report = facts | {"training": workspace.training, "images": evaluation.splits["test"].images,
                          "explanations": evaluation.explanations, "what_if": what_if,
                          "training_images": dataset.split("train").images}  # fmt: skip
        data_report = log_data_report(run, workspace.prepared)
        write_report(folder, **report, provenance=origin, data_report=f"../{data_report}" if data_report else None)
        log_evaluation(run, folder, origin, report | {"data_report": data_report})
    _report(workspace.evaluation / "test", *scores["test"], params.evaluate.confidence, labels, run)
    write_atomically(workspace.metrics, metrics_json)
    return {name: values for name, (values, _) in scores.items()}


def _write_splits(
    folder: Path, evaluation: _Evaluation, figures: FigureProcess
) -> tuple[Scores, Scored, UnfamiliarImages]:
    """Write the policy and the tables of all splits, and start their figures.

    Returns
    -------
    The scores of all splits; the images of test, as they were scored; those of them that are unfamiliar.
    """
    params, dataset, policy = evaluation.params, evaluation.dataset, evaluation.policy
    splits, logits, distances = evaluation.splits, evaluation.logits, evaluation.distances
    (folder / POLICY_FILE).write_text(policy.to_json(), encoding="utf-8")
    (folder / FAMILIARITY_FILE).write_bytes(evaluation.statistics)
    order, subgroups = display_order(params.costs, dataset.classes), dataset.subgroups("test")
    scores: Scores = {}
    with run_in_background() as run:
        write_predictions(folder / "calibration", splits["calibration"], logits["calibration"], policy,
                          distances["calibration"], run)  # fmt: skip
        for name in SCORED:
            scored, metrics, intervals = write_split(
                folder / name, splits[name], logits[name], policy, params.evaluate, order,
                subgroups if name == "test" else None, distances[name], run,
            )  # fmt: skip
            scores[name] = metrics, intervals
            figures.draw(folder / name, "classes")
            if name == "test":
                test = scored
                write_curves(folder / name, scored, policy, logits[name], params.evaluate, distances[name])
                unfamiliar = write_unfamiliar(folder / name, splits[name], scored, policy, distances[name],
                                              params.evaluate.confidence)  # fmt: skip
                figures.draw(folder / name, "curves")
    return scores, test, unfamiliar


def headlines(scores: Scores) -> dict[str, Metrics]:
    """The contents of ``metrics.json``: the metrics in ``HEADLINES``, and the interval of the cost on test."""
    metrics: dict[str, Metrics] = {}
    for split, (values, intervals) in scores.items():
        low, high = intervals["mean_cost"]
        interval = {"mean_cost_low": low, "mean_cost_high": high} if split == "test" else {}
        first, *others = HEADLINES[split]
        metrics[split] = {first: values[first]} | interval | {name: values[name] for name in others}
    return metrics


def _report(
    folder: Path, metrics: Metrics, intervals: Intervals, confidence: float, labels: LabelFindings, run: StageRun
) -> None:
    """Log the result on test, whose tables are in ``folder``, and what is suspicious about labels."""
    low, high = intervals["mean_cost"]
    logger.info("test: mean cost %.4f (%.0f%% interval %.4f to %.4f), of argmax %.4f; MLflow run %s",
                metrics["mean_cost"], 100 * confidence, low, high, metrics["argmax_mean_cost"], run)  # fmt: skip
    for sentence in read_sentences(folder, confidence):
        logger.info("test: %s", sentence)
    for warning in read_warnings(folder):
        logger.warning("test: %s", warning)
    for sentence in labels.sentences:
        logger.info("labels: %s", sentence)
    if labels.num_suspicious:
        logger.info("labels: %s `udc labels review` shows them", labels.summary)
    if (unfamiliar := read_unfamiliar(folder)) is not None:
        logger.info("test: %s", unfamiliar.to_text())


def data_findings(evaluation: _Evaluation, test: Scored, balanced_accuracy: float | None) -> list[str]:
    """Sentences about what the data does to the result.

    Objects that are in training and test, classes that overlap in all images that did not train the model, shortcuts.
    """
    dataset, splits, logits = evaluation.dataset, evaluation.splits, evaluation.logits
    relatives = None
    if pattern := dataset.info.get("group_proposal"):
        relatives = relatives_sentence(pattern, dataset.split("train").paths, splits["test"].paths, test,
                                       evaluation.params.evaluate.confidence)  # fmt: skip
    names = [name for name in splits if len(splits[name])]
    labels = np.concatenate([splits[name].labels for name in names])
    decided = np.concatenate([logits[name].argmax(axis=1) for name in names])
    units = group_indices([group for name in names for group in splits[name].groups])
    pairs = overlapping_pairs(dataset.classes, labels, decided, units)
    shortcuts = shortcut_sentence(dataset.info.get("shortcuts", []), balanced_accuracy)
    findings = [*([relatives] if relatives else []), *overlap_sentences(pairs), *shortcuts]
    for finding in findings:
        logger.warning("%s", finding)
    return findings


def log_precision(run: StageRun, policy: Policy, calibration: PackedSplit, logits: Logits) -> None:
    """Report which decisions the precision changes, if it is not fp32."""
    if REFERENCE not in logits:
        return
    rows = compared_rows(calibration)
    check = PrecisionCheck.of(policy, logits["calibration"][rows], logits[REFERENCE], calibration.labels[rows])
    logger.info("%s", check.to_text(policy.precision))
    run.log_metrics(check.metrics())


def run_model(
    workspace: Workspace, dataset: PackedDataset, splits: dict[str, PackedSplit], evaluate: EvaluateParams
) -> Logits:
    """The logits of each split, with another precision those in fp32 of `compared_rows`, and `familiarity_arrays`.

    Distances are those to the features of some training images, which are computed first.

    Raises
    ------
    UdcError
        The model is incomplete or has other classes.
    """
    from udc_model.inference.classifier import TrainedClassifier  # torch, which stored logits do not need

    keep_freed_memory()
    stored = ModelFolder.open(workspace.model), Preprocessing.load(workspace.model)
    classifier = TrainedClassifier.of(*stored, evaluate.flip_averaging, evaluate.precision)
    if classifier.classes != dataset.classes:
        raise UdcError(f"{workspace.model} was trained on other classes than {workspace.prepared}; run `dvc repro`")
    references = ExplanationStore(workspace, dataset, evaluate).compute_training_features(classifier)
    statistics = FeatureStatistics.fit(references.features[:MOST_REFERENCES])
    classifier.use_statistics(statistics)
    outputs = {name: classifier.outputs_of_stored(split.images, evaluate.batch_size, f"scoring {name}")
               for name, split in splits.items()}  # fmt: skip
    logits = {name: each.logits for name, each in outputs.items()}
    distances = {name: each.distances for name, each in outputs.items() if each.distances is not None}
    logits |= familiarity_arrays(statistics, distances)
    if evaluate.precision != REFERENCE:
        exact = TrainedClassifier.of(*stored, evaluate.flip_averaging)
        calibration = splits["calibration"]
        images = calibration.images[compared_rows(calibration)]
        logits[REFERENCE] = exact.logits_of_stored(images, evaluate.batch_size, "scoring calibration in fp32")
    return logits


def read_record(workspace: Workspace, dataset: PackedDataset) -> dict[str, Any]:
    """Contents of ``training/record.json``; :class:`UdcError` if it is missing, damaged, or of other data."""
    record = read_training_record(workspace)
    if record["data"]["digest"] != dataset.info["digest"]:
        raise UdcError(f"{workspace.training / TRAINING_RECORD}: {workspace.model} was trained on other data than "
                       f"{workspace.prepared}; run `dvc repro`")  # fmt: skip
    return record


def main() -> None:
    """Run the stage in the current folder."""
    check_pin()
    workspace = Workspace()
    evaluate(load_evaluation_params(workspace), workspace)


if __name__ == "__main__":
    sys.exit(exit_status(main))
