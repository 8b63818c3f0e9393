"""Stage ``train``: packed splits to a trained model and its record, in an MLflow run.

Its parameters are those that stage ``resolve`` wrote; under torchrun, which a person starts, those in params.yaml.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

import udc_model
from udc_model.config import Params, load_params
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.evaluation.plots import plot_training_curves
from udc_model.files import Workspace, atomic_folder, exit_status, sha256_of
from udc_model.stages.code import STAGES
from udc_model.stages.resolve import load_training_params, read_dataset_info, resolve
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

logger = logging.getLogger("udc_model.stages.train")  # __name__ is __main__ if DVC runs the stage

PRUNE_FILE = "UDC_PRUNE_FILE"  # environment variable: path of a file whose existence ends the training run
_WITHOUT_EFFECT = ("checkpoint_minutes", "loader_workers", "processes")  # on the bits; processes are recorded apart


def train(params: Params, workspace: Workspace) -> None:
    """Train the model that ``params`` describe; writes ``model/`` and ``training/``.

    Parameters
    ----------
    params : as stage ``resolve`` returns them for training.

    Raises
    ------
    UdcError
        The prepared data is missing or does not fit the parameters, or the training run cannot continue.
    """
    if params.train.processes > 1 and not is_launched():
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "params.yaml"
            file.write_text(_to_yaml(params.model_dump()), encoding="utf-8")
            arguments = ["--params", str(file), "--root", str(workspace.root)]
            launch("udc_model.stages.train", arguments, params.train.processes)
        return
    with process_group() as ranks:
        setup = set_up(params, workspace, ranks)
        if ranks.is_first:
            train_and_record(setup, workspace, ranks)
        else:
            train_model(setup.session)


def train_and_record(setup: TrainingSetup, workspace: Workspace, ranks: Ranks) -> None:
    """Train in the first process, which writes checkpoints, outputs and the MLflow run."""
    params, session = setup.params, setup.session
    hardware = session.hardware.describe()
    tags = hardware | {"udc.seed": str(params.seed), "udc.deterministic": str(params.train.deterministic),
                       "udc.processes": str(ranks.world)}  # fmt: skip
    inputs = checkpoint_inputs(setup, ranks)
    with (
        open_checkpoints(repository_root(), inputs, params.train.checkpoint_minutes) as checkpoints,
        atomic_folder(workspace.model) as model_folder,
        atomic_folder(workspace.training) as training_folder,
        stage_run("train", tags, checkpoints.run_key if checkpoints else None) as run,
    ):
        if checkpoints and checkpoints.last:
            logger.info("resuming from the checkpoint %s", checkpoints.last)
        run.log_params(training_params(params))
        run.log_text(_to_yaml(training_params(params)), "params.yaml")
        run.log_dataset(**dataset_input(params, setup.dataset), context="training")
        session.checkpoints, session.on_epoch = checkpoints, partial(_log_epoch, run)
        result = train_model(session)
        if result.is_stopped:
            _end_pruned(run, checkpoints, len(result.curves))
        session.model.load_state_dict(result.best_state)
        session.model.save_pretrained(model_folder)
        session.preprocessing.save(model_folder)
        record = training_record(params, setup.dataset, result, hardware)
        write_training(training_folder, result, record)
        contact_sheet(training_folder / "augmented.png", session)
        if setup.weights is not None:
            (training_folder / "weights.json").write_text(setup.weights.to_json(), encoding="utf-8")
        run.log_metrics({f"train/{name}": value for name, value in record["final_metrics"].items()})
        run.log_folder(model_folder, "model")
        run.log_folder(training_folder, "training")
        sha256 = sha256_of(model_folder / "model.safetensors")
        run.set_tags({MODEL_SHA256: sha256, f"{OUTS}model": dvc_hash(model_folder)})
    logger.info("trained %s: best epoch %d of %d; MLflow run %s", params.model.model_type, result.best_epoch,
                len(result.curves), run)  # fmt: skip


def checkpoint_inputs(setup: TrainingSetup, ranks: Ranks) -> dict[str, Any]:
    """Everything that the bits of a training run depend on, as JSON values."""
    params, package = setup.params, Path(udc_model.__file__).parent
    values = params.model_dump(exclude={"data": True, "train": set(_WITHOUT_EFFECT)})
    paths = [path for name in STAGES["train"] for path in [package / name, *(package / name).rglob("*")]]
    code = sorted(path for path in paths if path.is_file() and path.suffix in (".py", ".c", ".h"))
    return {
        "params": values,
        "data": setup.dataset.info["digest"],
        "weights": setup.weights and setup.weights.sha256,
        "hardware": setup.session.hardware.describe(),
        "processes": ranks.world,
        "torch": torch.__version__,
        "code": {path.relative_to(package).as_posix(): sha256_of(path) for path in code},
    }


def _log_epoch(run: StageRun, record: EpochRecord) -> bool:
    """Log an epoch; whether the training run ends with it, because a study pruned it."""
    metrics = {f"epoch/{name}": value for name, value in record.metrics.items()}
    metrics["epoch/images_per_second"] = record.images_per_second
    run.log_metrics(metrics, record.epoch, measured=record.ended)
    logger.info("epoch %d: training loss %.4f, validation log loss %.4f, accuracy %.4f (%s images/s)", record.epoch,
                record.metrics["train_loss"], record.metrics["validation_log_loss"],
                record.metrics["validation_accuracy"], f"{record.images_per_second:,.0f}")  # fmt: skip
    prune_file = os.environ.get(PRUNE_FILE)
    return prune_file is not None and Path(prune_file).exists()


def _end_pruned(run: StageRun, checkpoints: CheckpointFolder | None, epochs: int) -> None:
    """End a pruned training run with an error, so that DVC stores no outputs."""
    message = f"pruned after epoch {epochs}: other trials of the study are better"
    if checkpoints is not None:
        checkpoints.remove()
    run.set_tags({"udc.pruned": message})
    run.status_on_error = "KILLED"
    raise UdcError(message)


def _to_yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def training_params(params: Params) -> dict[str, Any]:
    """The parameters to record with a training run: the architecture in use, and costs and policy if it uses them."""
    model = params.model.model_dump(exclude={"resnet", "convnext"})
    model[params.model.model_type] = params.model.architecture.model_dump()
    sections = {
        "seed": params.seed,
        "data": params.data.model_dump(),
        "model": model,
        "loss": params.loss.model_dump(),
        "train": params.train.model_dump(),
    }
    if params.training_uses_costs:
        sections["costs"] = params.costs.model_dump()
    if params.training_uses_policy:
        sections["evaluate"] = params.evaluate.model_dump()
    return sections


def dataset_input(params: Params, dataset: PackedDataset) -> dict[str, Any]:
    """Name, digest and source of the data set, as :meth:`StageRun.log_dataset` takes them."""
    name = "digits" if params.data.source == "digits" else Path(params.data.path).resolve().name
    source = {"source": params.data.source, "path": params.data.path}
    return {"name": name, "digest": dataset.info["digest"], "source": source}


def training_record(
    params: Params, dataset: PackedDataset, result: TrainingResult, hardware: dict[str, str]
) -> dict[str, Any]:
    """What ``evaluate`` needs to know about a training run, which may have happened elsewhere or long ago."""
    best = result.curves[result.best_epoch - 1]
    metrics = {name: value for name, value in best.items() if name not in ("epoch", "learning_rate")}
    return {
        "params": training_params(params),
        "data": dataset_input(params, dataset),
        "hardware": hardware,
        "best_epoch": result.best_epoch,
        "final_metrics": {"best_epoch": result.best_epoch, "epochs": len(result.curves)} | metrics,
    }


def write_training(folder: Path, result: TrainingResult, record: dict[str, Any]) -> None:
    """Write ``curves.csv``, ``curves.png`` and ``record.json``."""
    curves = pd.DataFrame(result.curves)
    curves.to_csv(folder / "curves.csv", index=False, lineterminator="\n")
    plot_training_curves(folder / "curves.png", curves, result.best_epoch)
    (folder / "record.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Run the stage, by default in the current folder."""
    parser = argparse.ArgumentParser(description="Stage train; torchrun can start it too.")
    parser.add_argument("--params", type=Path, metavar="FILE", help="resolved parameters (default: see the module)")
    parser.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="folder of inputs and outputs")
    options = parser.parse_args()
    workspace = Workspace(options.root)
    if options.params:
        params = load_params(options.params)
    elif is_launched():  # by hand, outside DVC: what stage resolve wrote last may not be what params.yaml has now
        params = resolve(load_params(), read_dataset_info(workspace)).train
    else:
        params = load_training_params(workspace)
    train(params, workspace)


if __name__ == "__main__":
    sys.exit(exit_status(main))
