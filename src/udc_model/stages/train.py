"""Stage ``train``: packed splits to a trained model and its record, in an MLflow run.

The parameters are those that stage ``resolve`` wrote, or those in params.yaml if torchrun starts the stage.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from udc_model.checksums import write_checksums
from udc_model.config import CostParams, Params, TrainParams, load_params, with_json_mappings
from udc_model.config.limits import check_processes, check_sizes
from udc_model.config.train import WITHOUT_EFFECT
from udc_model.config.yaml12 import as_yaml
from udc_model.data.packed import PackedDataset
from udc_model.errors import Interrupted, UdcError
from udc_model.evaluation.plots import plot_training_curves
from udc_model.evaluation.training_record import TRAINING_RECORD, write_seconds
from udc_model.files import Workspace, atomic_folder, only_writer, sha256_of
from udc_model.installed import check_pin
from udc_model.model_files.folder import CONFIG, PREPROCESSOR, WEIGHTS
from udc_model.program import exit_status
from udc_model.ray_cluster import shared_folder
from udc_model.stages.code import FEATURES, STAGES, code_digests
from udc_model.stages.resolve import (
    load_evaluation_params,
    load_training_params,
    read_dataset_info,
    resolve_workspace,
    training_params,
)
from udc_model.stages.run_note import (
    baseline_revision,
    changes_since_baseline,
    run_name,
    training_note,
)
from udc_model.stages.system_metrics import SystemMetrics
from udc_model.tracking.provenance import dvc_hash
from udc_model.tracking.run import StageRun, flatten, stage_run
from udc_model.tracking.store import repository_root
from udc_model.tracking.tags import COMMIT, MODEL_SHA256, NOTE, OUTS, WARNING
from udc_model.training.agreement import check_agreement, check_first_has_checkpoints, completed_by_all
from udc_model.training.checkpoints import CheckpointFolder, checkpoint_folder, open_checkpoints
from udc_model.training.contact_sheet import contact_sheet
from udc_model.training.diagnosis import DisplayedCost, check_epoch, hopeless
from udc_model.training.display import RunDisplay
from udc_model.training.distribution import Ranks, is_launched, launch, process_group
from udc_model.training.distribution_on_ray import launch_on_ray
from udc_model.training.features import CACHE, FeatureCache
from udc_model.training.hardware import model_versions, pick_hardware
from udc_model.training.interruption import command_to_resume, deferred_interrupt
from udc_model.training.loop import TrainingResult
from udc_model.training.margins import margins_note
from udc_model.training.members import best_member, joint_result, member_params, train_members, trained_model
from udc_model.training.session import EpochRecord, TrainingSession
from udc_model.training.setup import check_disk, set_up
from udc_model.training.training_loss import training_frequencies

logger = logging.getLogger("udc_model.stages.train")  # __name__ is __main__ if DVC runs the stage

PRUNE_FILE = "UDC_PRUNE_FILE"  # environment variable: path of a file whose existence ends the training run
_NO_INPUTS = (*WITHOUT_EFFECT, "processes")  # parameters of train; the real number of processes is an input itself


def train(params: Params, workspace: Workspace, costs: CostParams | None = None) -> None:
    """Train the model that ``params`` describe; writes ``model/`` and ``training/``.

    Parameters
    ----------
    params : resolved by stage ``resolve``.
    costs : of the decisions, to display their cost and to warn; they change no result (default: those of ``params``).

    Raises
    ------
    UdcError
        The prepared data is missing or does not fit the parameters, or the training run failed or was pruned.
    Interrupted
        Ctrl-C was pressed; the epoch is finished, and its checkpoint is stored.
    """
    if is_to_launch(params.train):
        with only_writer(workspace):
            pass  # otherwise the processes would start first
        launch_stage("udc_model.stages.train", params, workspace, costs)
        return
    with process_group() as ranks, only_writer(workspace) if ranks.is_first else nullcontext():
        dataset = completed_by_all(ranks, lambda: PackedDataset.open(workspace.prepared))
        session = _set_up_with_all(params, dataset, ranks)
        inputs = {"data": dataset.info["digest"], "code": code_digests(FEATURES)}
        session.feature_cache = FeatureCache(repository_root() / CACHE, inputs)
        if ranks.is_first:
            train_and_record(session, dataset, workspace, params.costs if costs is None else costs)
            return
        with deferred_interrupt() as is_interrupted:
            train_members(_sessions(session, dataset), params.train.members, on_epoch=lambda record: is_interrupted())


def _set_up_with_all(params: Params, dataset: PackedDataset, ranks: Ranks) -> TrainingSession:
    """As `set_up`, after the machines of the training run have compared what must be equal; all processes call this."""
    if ranks.world == 1:
        return set_up(params, dataset)
    check_agreement(ranks, machine_facts(params, dataset))
    session = set_up(params, dataset, ranks)
    folder = checkpoint_folder(repository_root(), checkpoint_inputs(session, dataset.info["digest"]))
    check_first_has_checkpoints(ranks, folder)
    return session


def is_to_launch(train: TrainParams) -> bool:
    """Whether this process leaves the training run to others, see `launch_stage`."""
    return (train.processes > 1 or train.engine == "ray") and not is_launched()


def launch_stage(module: str, params: Params, workspace: Workspace, costs: CostParams | None = None) -> None:
    """Run the main function of a module in ``train.processes`` processes, see `parse_arguments`."""
    is_local = params.train.engine == "local"
    if is_local:
        check_processes(params.train)
    check_sizes(params.train, read_dataset_info(workspace)["counts"]["train"])
    with tempfile.TemporaryDirectory() if is_local else shared_folder(repository_root()) as folder:
        scratch = Path(folder)
        start = launch if is_local else partial(launch_on_ray, device=params.train.device)
        sections = {"params": params, "evaluation": Params(costs=params.costs if costs is None else costs)}
        arguments = ["--root", str(workspace.root.absolute())]
        for name, values in sections.items():
            file = scratch / f"{name}.yaml"
            file.write_text(as_yaml(values.model_dump()), encoding="utf-8")
            arguments += [f"--{name}", str(file)]
        start(module, arguments, params.train.processes, scratch)


def _sessions(first: TrainingSession, dataset: PackedDataset) -> Callable[[int], TrainingSession]:
    """A function that returns the session of each member (from 0), of which the first is set up."""

    def session_of(number: int) -> TrainingSession:
        if number == 0:
            return first
        session = set_up(member_params(first.params, number), dataset, first.ranks)
        return replace(session, feature_cache=first.feature_cache)

    return session_of


def train_and_record(session: TrainingSession, dataset: PackedDataset, workspace: Workspace, costs: CostParams) -> None:
    """Train in the first process, which writes checkpoints, outputs and the MLflow run; ``costs`` are displayed."""
    params, hardware = session.params, session.hardware.describe()
    recorded, data = training_params(params), dataset_input(params, dataset)
    inputs = checkpoint_inputs(session, dataset.info["digest"])
    check_disk(session, workspace.root)
    with (
        open_checkpoints(repository_root(), inputs, params.train.checkpoint_minutes) as checkpoints,
        atomic_folder(workspace.model) as model_folder,
        atomic_folder(workspace.training) as training_folder,
        stage_run(
            "train",
            {},
            checkpoints.run_key if checkpoints else None,
            run_name(recorded),
            hardware | {"processes": str(session.ranks.world)},
        ) as run,
    ):
        run.log_params(with_json_mappings(recorded))
        run.log_text(as_yaml(recorded), "params.yaml")
        run.log_dataset(**data, context="training", counts=dataset.info["counts"])
        run.log_file(workspace.prepared / "dataset.json", "data")
        changes = changes_since_baseline(flatten(recorded), baseline_revision(run.tags.get(COMMIT)))
        run.set_tags({NOTE: training_note(changes, data)} | changes.tags(), fill_run_id=True)
        cost = DisplayedCost(costs, dataset.classes, training_frequencies(params, dataset.training_counts))
        results = _train_members(session, dataset, checkpoints, run, cost)
        result = joint_result(results)
        trained_model(session.model, results).save_pretrained(model_folder)
        session.preprocessing.save(model_folder)
        write_checksums(model_folder, [CONFIG, PREPROCESSOR, WEIGHTS])
        record = training_record(params, dataset, result, hardware) | members_record(results)
        write_training(training_folder, result, record)
        contact_sheet(training_folder / "augmented.png", session)
        if session.weights is not None:
            (training_folder / "weights.json").write_text(session.weights.to_json(), encoding="utf-8")
        run.log_metrics({f"training/{name}": record["final_metrics"][name] for name in ("best_epoch", "epochs")})
        run.log_folder(model_folder, "model")
        run.log_folder(training_folder, "training")
        digest = sha256_of(model_folder / WEIGHTS)
        run.set_tags({MODEL_SHA256: digest, f"{OUTS}model": dvc_hash(model_folder)})
        write_seconds(repository_root(), digest, result.seconds)
    logger.info("trained %s: %s; MLflow run %s", params.model.model_type, best_epoch_text(results), run)


def best_epoch_text(results: list[TrainingResult]) -> str:
    """The best epoch, counted over all members, and whether it is the last of its member, which did not get worse."""
    joint, best = joint_result(results), results[best_member(results)]
    text = f"best epoch {joint.best_epoch} of {len(joint.curves)}"
    if not 1 < best.best_epoch == len(best.curves):
        return text
    return f"{text}, the last{' of its member' if len(results) > 1 else ''}: more may be better"


def _train_members(
    session: TrainingSession,
    dataset: PackedDataset,
    checkpoints: CheckpointFolder | None,
    run: StageRun,
    cost: DisplayedCost,
) -> list[TrainingResult]:
    """The results of all members, whose epochs are logged; an error or `Interrupted` if they are not complete."""
    members, system = session.params.train.members, SystemMetrics(session.hardware.device)
    with RunDisplay(cost) as display, deferred_interrupt() as is_interrupted:

        def on_epoch(record: EpochRecord) -> bool:
            _log_epoch(run, record, system.read())
            if record.epoch == check_epoch(session.params) and (
                reason := hopeless(session, record, display.least_cost)
            ):
                logger.warning("this training run will probably not succeed: %s", reason)
                run.set_tags({WARNING: reason})
            return _is_pruned() or is_interrupted()

        results = train_members(_sessions(session, dataset), members, checkpoints, on_epoch, display)
        if results[-1].is_stopped and _is_pruned():
            _end_pruned(checkpoints, run, len(joint_result(results).curves))
        if results[-1].is_stopped:
            raise Interrupted(_interrupted(results, session.params, checkpoints))
    return results


def _is_pruned() -> bool:
    return PRUNE_FILE in os.environ and Path(os.environ[PRUNE_FILE]).exists()


def _interrupted(results: list[TrainingResult], params: Params, checkpoints: CheckpointFolder | None) -> str:
    """The message after Ctrl-C."""
    members = params.train.members
    place = f"epoch {len(results[-1].curves)} of {params.train.epochs}"
    place += f" of member {len(results)} of {members}" if members > 1 else ""
    if checkpoints is None:  # another process has them open
        return f"interrupted after {place}, without a checkpoint"
    return f"interrupted after {place}, whose checkpoint is stored; {command_to_resume()} resumes from it"


def params_of_bits(params: Params) -> dict[str, Any]:
    """The parameters that the bits of the trained weights depend on."""
    return params.model_dump(exclude={"data": True, "model": {"download"}, "train": set(_NO_INPUTS)})


def machine_facts(params: Params, dataset: PackedDataset) -> dict[str, Any]:
    """What must be equal on all machines of a training run, as JSON values."""
    return {
        "params": params_of_bits(params),
        "precision": pick_hardware(params.train).precision,
        "data": dataset.info["digest"],
        **model_versions(params.model.model_type),
        "code": code_digests(STAGES["train"]),
    }


def checkpoint_inputs(session: TrainingSession, data_digest: str) -> dict[str, Any]:
    """Everything that the bits of the result depend on, as JSON values; a checkpoint of other inputs is not used."""
    return {
        "params": params_of_bits(session.params),
        "data": data_digest,
        "weights": session.weights and session.weights.sha256,
        "hardware": session.hardware.describe(),
        "processes": session.ranks.world,
        **model_versions(session.params.model.model_type),
        "code": code_digests(STAGES["train"]),
    }


def _log_epoch(run: StageRun, record: EpochRecord, system: dict[str, float]) -> None:
    metrics = {f"training/{name}": value for name, value in record.metrics.items()}
    metrics["training/images_per_second"] = record.images_per_second
    run.log_metrics(metrics | system, record.epoch, measured=record.ended)
    logger.info("epoch %d: training loss %.4f, validation log loss %.4f, accuracy %.4f (%s images/s)", record.epoch,
                record.metrics["train_loss"], record.metrics["validation_log_loss"],
                record.metrics["validation_accuracy"], f"{record.images_per_second:,.0f}")  # fmt: skip


def _end_pruned(checkpoints: CheckpointFolder | None, run: StageRun, epochs: int) -> None:
    """Discard the checkpoints and end with an error: DVC must not store the outputs of a pruned training run."""
    message = f"pruned after epoch {epochs}: other trials of the study are better"
    run.set_tags({"pruned": message})
    run.status_on_error = "KILLED"
    if checkpoints is not None:
        checkpoints.remove()
    raise UdcError(message)


def dataset_input(params: Params, dataset: PackedDataset) -> dict[str, Any]:
    """Name, digest and source of the data set, as :meth:`StageRun.log_dataset` takes them."""
    name = "digits" if params.data.source == "digits" else Path(params.data.path).resolve().name
    source = {"source": params.data.source, "path": params.data.path}
    fetched = dataset.info.get("fetched", {})
    source |= {f"fetched.{key}": str(fetched[key]) for key in ("name", "revision", "digest") if fetched.get(key)}
    return {"name": name, "digest": dataset.info["digest"], "source": source}


def training_record(
    params: Params, dataset: PackedDataset, result: TrainingResult, hardware: dict[str, str]
) -> dict[str, Any]:
    """What ``evaluate`` must know about the training run, which may have happened earlier or on another machine."""
    final = result.curves[result.best_epoch - 1]
    learned = training_frequencies(params, dataset.training_counts).learned
    return {
        "params": training_params(params),
        "data": dataset_input(params, dataset),
        "hardware": hardware,
        "best_epoch": result.best_epoch,
        "margins": margins_note(params.train),
        **({} if learned is None else {"learned_prior": learned}),
        "final_metrics": {"best_epoch": result.best_epoch, "epochs": len(result.curves)}
        | {name: value for name, value in final.items() if name not in ("epoch", "learning_rate")},
    }


def members_record(results: list[TrainingResult]) -> dict[str, Any]:
    """Best epoch and temperature of each member of an ensemble; nothing for a single network."""
    if len(results) == 1:
        return {}
    return {"members": [{"best_epoch": r.best_epoch, "epochs": len(r.curves), "temperature": r.temperature}
                        for r in results]}  # fmt: skip


def write_training(folder: Path, result: TrainingResult, record: dict[str, Any]) -> None:
    """Write ``curves.csv``, ``curves.png``, ``record.json`` and the margins of the training images."""
    if result.margins is not None:
        result.margins.save(folder)
    curves = pd.DataFrame(result.curves)
    curves.to_csv(folder / "curves.csv", index=False, lineterminator="\n")
    plot_training_curves(folder / "curves.png", curves, result.best_epoch)
    (folder / TRAINING_RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_arguments(description: str) -> tuple[Params, CostParams, Workspace]:
    """Parameters, displayed costs and workspace of a process that DVC, torchrun or `launch_stage` started."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--params", type=Path, metavar="FILE", help="resolved parameters (default: see the module)")
    parser.add_argument("--evaluation", type=Path, metavar="FILE", help="parameters whose costs are displayed")
    parser.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="folder of inputs and outputs")
    options = parser.parse_args()
    check_pin()
    workspace = Workspace(options.root)
    if options.params:
        params = load_params(options.params)
        return params, load_params(options.evaluation).costs if options.evaluation else params.costs, workspace
    if is_launched():  # by a person, outside DVC: resolved/train.yaml may be older than params.yaml
        resolved = resolve_workspace(load_params(), workspace)
        return resolved.train, resolved.evaluate.costs, workspace
    return load_training_params(workspace), load_evaluation_params(workspace).costs, workspace


def main() -> None:
    """Run the stage, by default in the current folder."""
    with process_group() as ranks:  # before anything that can fail on one machine only
        arguments = completed_by_all(ranks, lambda: parse_arguments("Run stage train; torchrun can start it too."))
        params, costs, workspace = arguments
        train(params, workspace, costs)


if __name__ == "__main__":
    sys.exit(exit_status(main))
