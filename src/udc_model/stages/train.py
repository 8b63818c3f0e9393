"""Stage ``train``: packed splits to a trained model and its record, in an MLflow run."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from udc_model.costs.decision import normalised_cost
from udc_model.costs.losses import TrainingLoss
from udc_model.costs.matrix import cost_matrix
from udc_model.costs.rule import fit_rule
from udc_model.data.packed import PackedDataset, group_indices
from udc_model.data.transforms import Preprocessing
from udc_model.errors import PrunedError, UdcError
from udc_model.evaluation.plots import plot_training_curves
from udc_model.models import build_model
from udc_model.models.checkpoints import WeightsReport, load_weights
from udc_model.models.pretrained import find_weights
from udc_model.models.staged import ImageClassifier
from udc_model.params import ModelParams, Params, load_params
from udc_model.stages.files import Workspace, exit_status, sha256_of, whole_folder
from udc_model.stages.prepare import check_classes
from udc_model.tracking.delivery import MODEL_SHA256
from udc_model.tracking.provenance import OUTS, dvc_hash
from udc_model.tracking.run import StageRun, stage_run
from udc_model.tracking.store import repository_root
from udc_model.training.checkpoint import open_checkpoints
from udc_model.training.contact_sheet import contact_sheet
from udc_model.training.hardware import Hardware, keep_freed_memory, pick_hardware
from udc_model.training.loop import PricedMonitor, TrainingResult, train_model
from udc_model.training.state import EpochRecord

logger = logging.getLogger("udc_model.stages.train")  # __name__ is __main__ when DVC runs the stage

PRUNE_FILE = "UDC_PRUNE_FILE"  # variable with the path of a file that, once it exists, ends the training


def train(params: Params, workspace: Workspace) -> TrainingResult:
    """Train the model that ``params`` describe; writes ``model/`` and ``training/``.

    Raises
    ------
    UdcError
        The prepared data is missing or does not fit the parameters, or the training cannot go on.
    """
    dataset = PackedDataset.open(workspace.prepared)
    check_classes(params, dataset.classes)
    check_channels(params)
    hardware = pick_hardware(params.train)
    keep_freed_memory()
    splits = {name: dataset.split(name) for name in ("train", "validation")}
    model = build_model(params.model, dataset.classes, params.seed)
    weights, preprocessing = start_from_weights(model, params.model, dataset.preprocessing)
    counts = dataset.training_counts
    costs = torch.from_numpy(cost_matrix(params.costs, dataset.classes))
    priced = priced_monitor(params, dataset) if params.train.monitor == "normalised_cost" else None

    tags = hardware.describe() | {"udc.seed": str(params.seed), "udc.deterministic": str(params.train.deterministic)}
    inputs = what_determines(params, dataset, weights, hardware)

    with (
        open_checkpoints(repository_root(), inputs, params.train.checkpoint_minutes) as checkpoints,
        whole_folder(workspace.model) as model_folder,
        whole_folder(workspace.training) as training_folder,
        stage_run("train", tags, checkpoints.run_key if checkpoints else None) as run,
    ):
        if checkpoints and checkpoints.last:
            logger.info("going on from the checkpoint %s", checkpoints.last)
        run.log_params(training_params(params))
        run.log_text(yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True), "params.yaml")
        run.log_dataset(**dataset_input(params, dataset), context="training")
        result = train_model(
            model,
            splits["train"],
            splits["validation"],
            preprocessing,
            TrainingLoss(params.loss, costs, counts),
            params.train,
            params.seed,
            hardware,
            priced,
            checkpoints,
            on_epoch=partial(_log_epoch, run),
        )
        model.load_state_dict(result.best_state)
        model.save_pretrained(model_folder)
        preprocessing.save(model_folder)
        record = training_record(params, dataset, result, hardware.describe())
        write_training(training_folder, result, record)
        contact_sheet(training_folder / "augmented.png", splits["train"], preprocessing, params.train, params.seed)
        if weights is not None:
            (training_folder / "weights.json").write_text(weights.to_json(), encoding="utf-8")
        run.log_metrics({f"train/{name}": value for name, value in record["final_metrics"].items()})
        run.log_folder(model_folder, "model")
        run.log_folder(training_folder, "training")
        run.set_tags(
            {MODEL_SHA256: sha256_of(model_folder / "model.safetensors"), f"{OUTS}model": dvc_hash(model_folder)}
        )
    logger.info("trained %s: best epoch %d of %d; MLflow run %s", params.model.model_type, result.best_epoch,
                len(result.curves), run)  # fmt: skip
    return result


def priced_monitor(params: Params, dataset: PackedDataset) -> PricedMonitor:
    """What ``train.monitor: normalised_cost`` needs: the deployed rule, fitted anew each epoch.

    Raises
    ------
    UdcError
        The cost of a constant answer is 0, or the calibration split is too small for the rule; known before training.
    """
    calibration, validation = dataset.split("calibration"), dataset.split("validation")

    def cost(calibration_logits: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
        rule = fit_rule(params.evaluate, params.costs, dataset.classes, dataset.training_counts, calibration_logits,
                        calibration.labels, group_indices(calibration.groups))  # fmt: skip
        decided = rule.apply(logits).decided
        found = normalised_cost(validation.labels, decided, rule.prices, rule.weights(validation.labels))
        if found is None:
            raise UdcError("train.monitor: normalised_cost means nothing here, for a constant answer costs nothing on "
                           "the validation split; mend the costs, or use train.monitor: log_loss")  # fmt: skip
        return found

    # once on made-up logits of a fair model, so that what cannot work is told before hours of training
    rng = np.random.default_rng(0)
    classes = len(dataset.classes)
    made_up = [
        (2 * np.eye(classes)[split.labels] + rng.normal(size=(len(split), classes))).astype(np.float32)
        for split in (calibration, validation)
    ]
    cost(made_up[0], made_up[1])
    return PricedMonitor(calibration, cost)


def start_from_weights(
    model: ImageClassifier, params: ModelParams, preprocessing: Preprocessing
) -> tuple[WeightsReport | None, Preprocessing]:
    """Load ``model.weights``, if there are any.

    Returns
    -------
    The report, and the preprocessing with the mean and standard deviation of the images that the weights know.
    """
    if params.weights is None:
        return None, preprocessing
    source = find_weights(params.weights, params.model_type, params.architecture.model_dump())
    report = load_weights(model, source.path, params.weights_include, params.weights_exclude)
    logger.info("%s", report.summary())
    if source.image_size not in (None, preprocessing.size):
        logger.warning("the weights were trained on images of %d px, the data is prepared with data.image_size: %d",
                       source.image_size, preprocessing.size)  # fmt: skip
    if source.mean is not None and source.std is not None:
        preprocessing = replace(preprocessing, mean=source.mean, std=source.std)
    return report, preprocessing


def check_channels(params: Params) -> None:
    """:class:`UdcError` unless the model takes the three channels that ``prepare`` stores."""
    channels = params.model.architecture.num_channels
    if channels != 3:
        raise UdcError(f"model.{params.model.model_type}.num_channels: is {channels}; prepared images have 3 (RGB)")


def what_determines(
    params: Params, dataset: PackedDataset, weights: WeightsReport | None, hardware: Hardware
) -> dict[str, Any]:
    """All that the bits of a training depend on, as JSON values: a checkpoint of anything else is of no use to it."""
    values = training_params(params)
    del values["train"]["checkpoint_minutes"]
    if params.loss.reads == "costs":
        values["costs"] = params.costs.model_dump()
    if params.train.reads == "evaluate":
        values["evaluate"] = params.evaluate.model_dump()
    package = Path(__file__).parent.parent
    code = [path for part in ("costs", "data", "models", "training") for path in (package / part).rglob("*.*")]
    return {
        "params": values,
        "data": dataset.info["digest"],
        "weights": weights and weights.sha256,
        "hardware": hardware.describe(),
        "torch": torch.__version__,
        "code": {
            path.relative_to(package).as_posix(): sha256_of(path)
            for path in sorted([*code, Path(__file__)])
            if path.suffix in (".py", ".c")
        },
    }


def _log_epoch(run: StageRun, record: EpochRecord) -> None:
    named = {f"epoch/{name}": value for name, value in record.metrics.items()}
    run.log_metrics(named | {"epoch/images_per_second": record.images_per_second}, record.epoch, measured=record.ended)
    logger.info("epoch %d: training loss %.4f, validation log loss %.4f, accuracy %.4f (%s images/s)", record.epoch,
                record.metrics["train_loss"], record.metrics["validation_log_loss"],
                record.metrics["validation_accuracy"], f"{record.images_per_second:,.0f}")  # fmt: skip
    if (sentence := os.environ.get(PRUNE_FILE)) and Path(sentence).exists():
        raise PrunedError(f"pruned after epoch {record.epoch}: other trials of the study are better")


def training_params(params: Params) -> dict[str, Any]:
    """The parameters that determine the training; of the two architectures the one in use."""
    model = params.model.model_dump(exclude={"resnet", "convnext"})
    model[params.model.model_type] = params.model.architecture.model_dump()
    return {
        "seed": params.seed,
        "data": params.data.model_dump(),
        "model": model,
        "loss": params.loss.model_dump(),
        "train": params.train.model_dump(),
    }


def dataset_input(params: Params, dataset: PackedDataset) -> dict[str, Any]:
    """Name, digest and source of the data set, as :meth:`StageRun.log_dataset` takes them."""
    name = "digits" if params.data.source == "digits" else Path(params.data.path).resolve().name
    source = {"source": params.data.source, "path": params.data.path}
    return {"name": name, "digest": dataset.info["digest"], "source": source}


def training_record(
    params: Params, dataset: PackedDataset, result: TrainingResult, hardware: dict[str, str]
) -> dict[str, Any]:
    """What ``evaluate`` needs to know about a training that may have happened elsewhere or long ago."""
    final = result.curves[result.best_epoch - 1]
    return {
        "params": training_params(params),
        "data": dataset_input(params, dataset),
        "hardware": hardware,
        "best_epoch": result.best_epoch,
        "final_metrics": {"best_epoch": result.best_epoch, "epochs": len(result.curves)}
        | {name: value for name, value in final.items() if name not in ("epoch", "learning_rate")},
    }


def write_training(folder: Path, result: TrainingResult, record: dict[str, Any]) -> None:
    """Write ``curves.csv``, ``curves.png`` and ``record.json``."""
    curves = pd.DataFrame(result.curves)
    curves.to_csv(folder / "curves.csv", index=False, lineterminator="\n")
    plot_training_curves(folder / "curves.png", curves, result.best_epoch)
    (folder / "record.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Run the stage in the current folder."""
    train(load_params(), Workspace())


if __name__ == "__main__":
    sys.exit(exit_status(main))
