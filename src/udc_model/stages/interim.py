"""The best model so far of a training run that is not finished; nothing is written or locked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from udc_model.config import Params, validate_params
from udc_model.data.logits import Images, compute_logits
from udc_model.data.packed import PackedDataset, group_indices
from udc_model.decisions.calibration import fit_temperature, negative_log_likelihood
from udc_model.decisions.decision import constant_costs, mean_cost
from udc_model.decisions.policy import Policy, fit_policy
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.models import build_model
from udc_model.models.ensemble import Ensemble
from udc_model.stages.resolve import ResolvedParams
from udc_model.stages.train import params_of_bits
from udc_model.tracking.store import repository_root
from udc_model.training.checkpoints import CHECKPOINTS, Checkpoint, newest_first, read_header, verified_contents
from udc_model.training.hardware import Hardware, pick_hardware
from udc_model.training.members import member_params
from udc_model.training.setup import load_initial_weights
from udc_model.training.training_loss import training_frequencies

_MAX_READS = 5  # attempts to read checkpoints that the training run replaces meanwhile


@dataclass(frozen=True)
class Member:
    """One network of a training run: the weights of its best epoch (from 1) of those that are finished."""

    state: dict[str, Tensor]
    best_epoch: int
    epochs: int


@dataclass(frozen=True)
class InterimRun:
    """The checkpoints of a training run, with its parameters; ``members`` are those with a finished epoch."""

    folder: Path
    params: Params
    members: list[Member]


def best_so_far(resolved: ResolvedParams, workspace: Workspace) -> str:
    """Accuracy, log loss and mean cost of the best weights so far, as text.

    The training run is the one of the present parameters, otherwise the last one on the prepared data. The policy is
    fitted on the calibration split, with the present costs; the test split is not read.

    Raises
    ------
    UdcError
        No epoch of a training run on the prepared data is finished, a checkpoint is damaged, or the policy cannot be
        fitted.
    """
    dataset = PackedDataset.open(workspace.prepared)
    run = _find_run(repository_root() / CHECKPOINTS, dataset.info["digest"], resolved.train)
    forward_all = _classifier(run, dataset)
    validation, calibration = dataset.split("validation"), dataset.split("calibration")
    logits = forward_all(validation.images)
    policy = fit_policy(
        resolved.evaluate.evaluate, resolved.evaluate.costs, dataset.classes,
        training_frequencies(run.params, dataset.training_counts),
        forward_all(calibration.images), calibration.labels, group_indices(calibration.groups),
    )  # fmt: skip
    return "\n".join([*_origin(run), _scores(logits, validation.labels, policy)]) + "\n"


def _find_run(root: Path, digest: str, present: Params) -> InterimRun:
    """The training run on the data with this digest whose checkpoints are shown."""
    for _ in range(_MAX_READS):
        try:
            folders = _folders(root, digest, json.loads(json.dumps(params_of_bits(present))))
            runs = (_read_run(folder) for folder in folders)
            run = next((run for run in runs if run.members), None)
        except FileNotFoundError:  # replaced by a newer one meanwhile
            continue
        if run is None:
            break
        return run
    raise UdcError(f"{root}: there is no checkpoint with a finished epoch of the prepared data; they are there while a "
                   "training run is not finished (udc train, dvc repro)")  # fmt: skip


def _folders(root: Path, digest: str, present: Mapping[str, Any]) -> list[Path]:
    """Folders with checkpoints of the data; those of the present parameters first, then the newest."""
    order = []
    for folder in (path for path in root.glob("*") if path.is_dir()):
        for path in newest_first(folder)[:1]:
            try:
                inputs = json.loads(read_header(path)["inputs"])
                if inputs["data"] == digest:
                    order.append((inputs["params"] == present, path.stat().st_mtime, folder))
            except FileNotFoundError:
                raise
            except (OSError, ValueError, KeyError, TypeError):  # damaged, or of another version
                continue
    return [folder for *_, folder in sorted(order, reverse=True)]


def _read_run(folder: Path) -> InterimRun:
    first = _read(folder)
    params = validate_params(first.inputs["params"], str(folder))
    paths = [folder / f"member-{number + 1}" for number in range(1, params.train.members)]
    checkpoints = [first, *(_read(path) for path in paths if newest_first(path))]
    members = [
        Member(
            {key.removeprefix("best."): value for key, value in each.tensors.items() if key.startswith("best.")},
            int(each.progress["best_epoch"]),
            int(each.progress["epoch"]),
        )
        for each in checkpoints
        if each.progress["best_epoch"]
    ]
    return InterimRun(folder, params, members)


def _read(folder: Path) -> Checkpoint:
    """The newest checkpoint in a folder."""
    path = newest_first(folder)[0]
    try:
        return Checkpoint.parse(verified_contents(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UdcError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UdcError(f"{path}: is damaged ({' '.join(str(error).split())[:200]}); the training run itself resumes "
                       "from the one before it") from None  # fmt: skip


def _classifier(run: InterimRun, dataset: PackedDataset) -> Callable[[Images], NDArray[np.float32]]:
    """A function that returns the logits (N, K) of stored images; an ensemble averages its members so far."""
    hardware = pick_hardware(run.params.train)
    model = build_model(run.params.model, dataset.classes, run.params.seed)
    _, preprocessing = load_initial_weights(model, run.params.model, dataset.preprocessing)
    batch_size = run.params.train.batch_size
    size = batch_size if isinstance(batch_size, int) else 64

    def logits_of(network: torch.nn.Module, images: Images) -> NDArray[np.float32]:
        if not len(images):
            return np.empty((0, len(dataset.classes)), np.float32)
        network.to(hardware.device).to(memory_format=hardware.memory_format).eval()
        return compute_logits(lambda batch: _forward(network, batch, hardware), images, preprocessing, size, "scoring",
                              device=hardware.device)  # fmt: skip

    states = [_state(run, number, dataset) for number in range(len(run.members))]
    if len(states) == 1:
        model.load_state_dict(states[0])
        return lambda images: logits_of(model, images)
    validation, temperatures = dataset.split("validation"), []
    for state in states:
        model.load_state_dict(state)
        temperatures.append(fit_temperature(logits_of(model, validation.images).astype(np.float64), validation.labels))
    ensemble = Ensemble.of_members(model.config, temperatures, states)
    return lambda images: logits_of(ensemble, images)


def _state(run: InterimRun, number: int, dataset: PackedDataset) -> dict[str, Tensor]:
    """The weights of a member (from 0): those in its checkpoint, and the frozen ones, with which training started."""
    params = member_params(run.params, number)
    initial = build_model(params.model, dataset.classes, params.seed)
    load_initial_weights(initial, params.model, dataset.preprocessing)
    return initial.state_dict() | run.members[number].state


def _forward(network: torch.nn.Module, batch: Tensor, hardware: Hardware) -> Tensor:
    with hardware.autocast():
        return torch.as_tensor(network(batch.to(hardware.device, memory_format=hardware.memory_format)).logits)


def _origin(run: InterimRun) -> list[str]:
    """One line for each network, and the folder."""
    epochs, members = run.params.train.epochs, run.params.train.members
    lines = [
        f"{run.params.model.model_type}{f' member {number} of {members}' if members > 1 else ''}: best epoch "
        f"{member.best_epoch}, of {member.epochs} finished of {epochs}"
        for number, member in enumerate(run.members, 1)
    ]
    return [*lines, f"checkpoints: {run.folder}"]


def _scores(logits: NDArray[np.float32], labels: NDArray[np.int64], policy: Policy) -> str:
    costs, weights = policy.outcome_costs, policy.weights(labels)
    constant = constant_costs(labels, costs, weights)
    cost = mean_cost(labels, policy.apply(logits).decided, costs, weights)
    return (f"validation ({len(labels):,} images): accuracy {np.mean(logits.argmax(axis=1) == labels):.4f}, log loss "
            f"{negative_log_likelihood(logits, labels):.4f}, mean cost {cost:.4f} (always "
            f"{policy.outcomes[int(constant.argmin())]}: {constant.min():.4f})")  # fmt: skip
