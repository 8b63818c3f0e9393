"""Stage ``train``: packed splits to a trained model and its record, in an MLflow run."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from udc_model.config import Params, load_params
from udc_model.data.packed import PackedDataset
from udc_model.errors import PrunedError
from udc_model.evaluation.plots import plot_training_curves
from udc_model.files import Workspace, atomic_folder, exit_status, sha256_of
from udc_model.stages.resolve import load_training_params
from udc_model.tracking.delivery import MODEL_SHA256
from udc_model.tracking.provenance import OUTS, dvc_hash
from udc_model.tracking.run import StageRun, stage_run
from udc_model.tracking.store import repository_root
from udc_model.training.checkpoints import CheckpointFolder, open_checkpoints
from udc_model.training.contact_sheet import contact_sheet
from udc_model.training.distribution import Ranks, is_launched, launch, process_group
from udc_model.training.loop import TrainingResult, train_model
from udc_model.training.setup import TrainingSetup, set_up
from udc_model.training.state import EpochRecord

logger = logging.getLogger("udc_model.stages.train")  # __name__ is __main__ when DVC runs the stage

PRUNE_FILE = "UDC_PRUNE_FILE"  # variable with the path of a file that, once it exists, ends the training


def train(params: Params, workspace: Workspace) -> None:
    """Train the model that ``params`` describe; writes ``model/`` and ``training/``.

    Raises
    ------
    UdcError
        The prepared data is missing or does not fit the parameters, or the training cannot go on.
    """
    if params.train.processes > 1 and not is_launched():
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "params.yaml"
            file.write_text(yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")
            arguments = ["--params", str(file), "--root", str(workspace.root)]
            launch("udc_model.stages.train", arguments, params.train.processes)
        return
    with process_group() as ranks:
        setup = set_up(params, workspace, ranks)
        if ranks.is_first:
            train_and_record(setup, workspace, ranks)
        else:
            run_loop(setup, ranks)


def run_loop(
    setup: TrainingSetup,
    ranks: Ranks,
    checkpoints: CheckpointFolder | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> TrainingResult:
    """The training itself, in each process."""
    return train_model(
        setup.model,
        setup.train,
        setup.dataset.split("validation"),
        setup.preprocessing,
        setup.loss_fn,
        setup.params.train,
        setup.params.seed,
        setup.hardware,
        setup.priced,
        checkpoints,
        on_epoch,
        ranks,
    )


def train_and_record(setup: TrainingSetup, workspace: Workspace, ranks: Ranks) -> None:
    """Train, in the process that writes: checkpoints, outputs and the MLflow run."""
    params, dataset, model = setup.params, setup.dataset, setup.model
    hardware = setup.hardware.describe()
    tags = hardware | {"udc.seed": str(params.seed), "udc.deterministic": str(params.train.deterministic),
                       "udc.processes": str(ranks.world)}  # fmt: skip
    with (
        open_checkpoints(
            repository_root(), what_determines(setup, ranks), params.train.checkpoint_minutes
        ) as checkpoints,
        atomic_folder(workspace.model) as model_folder,
        atomic_folder(workspace.training) as training_folder,
        stage_run("train", tags, checkpoints.run_key if checkpoints else None) as run,
    ):
        if checkpoints and checkpoints.last:
            logger.info("going on from the checkpoint %s", checkpoints.last)
        run.log_params(training_params(params))
        run.log_text(yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True), "params.yaml")
        run.log_dataset(**dataset_input(params, dataset), context="training")
        result = run_loop(setup, ranks, checkpoints, partial(_log_epoch, run))
        model.load_state_dict(result.best_state)
        model.save_pretrained(model_folder)
        setup.preprocessing.save(model_folder)
        record = training_record(params, dataset, result, hardware)
        write_training(training_folder, result, record)
        contact_sheet(training_folder / "augmented.png", setup.train, setup.preprocessing, params.train, params.seed)
        if setup.weights is not None:
            (training_folder / "weights.json").write_text(setup.weights.to_json(), encoding="utf-8")
        run.log_metrics({f"train/{name}": value for name, value in record["final_metrics"].items()})
        run.log_folder(model_folder, "model")
        run.log_folder(training_folder, "training")
        run.set_tags(
            {MODEL_SHA256: sha256_of(model_folder / "model.safetensors"), f"{OUTS}model": dvc_hash(model_folder)}
        )
    logger.info("trained %s: best epoch %d of %d; MLflow run %s", params.model.model_type, result.best_epoch,
                len(result.curves), run)  # fmt: skip


def what_determines(setup: TrainingSetup, ranks: Ranks) -> dict[str, Any]:
    """All that the bits of a training depend on, as JSON values: a checkpoint of anything else is of no use to it."""
    params, weights = setup.params, setup.weights
    values = training_params(params)
    for name in ("checkpoint_minutes", "loader_workers", "processes"):
        del values["train"][name]
    values |= {"costs": params.costs.model_dump(), "evaluate": params.evaluate.model_dump()}
    package = Path(__file__).parent.parent
    code = [
        path for part in ("data", "decisions", "models", "native", "training") for path in (package / part).rglob("*.*")
    ]
    return {
        "params": values,
        "data": setup.dataset.info["digest"],
        "weights": weights and weights.sha256,
        "hardware": setup.hardware.describe(),
        "processes": ranks.world,
        "torch": torch.__version__,
        "code": {
            path.relative_to(package).as_posix(): sha256_of(path)
            for path in sorted([*code, Path(__file__)])
            if path.suffix in (".py", ".c", ".h")
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
    """Run the stage, by default in the current folder."""
    parser = argparse.ArgumentParser(description="Stage train; also to be started by torchrun.")
    parser.add_argument("--params", type=Path, metavar="FILE", help="default: what stage resolve wrote")
    parser.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="folder of inputs and outputs")
    options = parser.parse_args()
    workspace = Workspace(options.root)
    train(load_params(options.params) if options.params else load_training_params(workspace), workspace)


if __name__ == "__main__":
    sys.exit(exit_status(main))
