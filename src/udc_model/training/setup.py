"""Builds the training session from the parameters and the prepared data."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from udc_model.config import ModelParams, Params, TrainParams
from udc_model.data.packed import PackedDataset, PackedSplit, group_indices
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.decision import normalised_cost
from udc_model.decisions.matrix import cost_matrix
from udc_model.decisions.policy import fit_policy
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.models.checkpoints import WeightsReport, load_weights
from udc_model.models.pretrained import find_weights
from udc_model.models.staged import ImageClassifier
from udc_model.native.memory import keep_freed_memory
from udc_model.training.batch_size import largest_batch_size
from udc_model.training.distribution import ALONE, Ranks
from udc_model.training.hardware import memory_of, pick_hardware
from udc_model.training.optimisation import freeze_stages
from udc_model.training.session import CostMonitor, TrainingSession
from udc_model.training.training_loss import TrainingLoss, training_frequencies

logger = logging.getLogger(__name__)


def set_up(params: Params, dataset: PackedDataset, ranks: Ranks = ALONE) -> TrainingSession:
    """Select the hardware, build the model, load its weights, and resolve ``train.batch_size: auto``.

    Returns
    -------
    A session that is not started. Its ``params`` have the resolved batch size.

    Raises
    ------
    UdcError
        The prepared data or this machine does not fit the parameters.
    """
    check_channels(params, dataset.preprocessing)
    hardware = pick_hardware(params.train, ranks.local, ranks.world)
    keep_freed_memory()
    check_memory(params, dataset.classes, memory_of(hardware.device), hardware.device.type == "cpu", ranks.world)
    check_image_size(params, dataset.classes, dataset.preprocessing.size)
    model = build_model(params.model, dataset.classes, params.seed)
    weights, preprocessing = load_initial_weights(model, params.model, dataset.preprocessing)
    costs = torch.from_numpy(cost_matrix(params.costs, dataset.classes))
    session = TrainingSession(
        model=model,
        loss_fn=TrainingLoss(params.loss, costs, dataset.training_counts),
        train_split=dataset.split("train"),
        validation_split=dataset.split("validation"),
        preprocessing=preprocessing,
        params=params,
        hardware=hardware,
        ranks=ranks,
        cost_monitor=build_cost_monitor(params, dataset) if params.train.monitor == "normalised_cost" else None,
        weights=weights,
    )
    if params.train.batch_size == "auto":
        return session.with_train_params(batch_size=largest_batch_size(session))
    return session


def check_memory(params: Params, classes: list[str], memory: int, is_cpu: bool = True, world: int = 1) -> None:
    """Check that a training run fits into memory, before anything of the model is allocated.

    Activations come on top of what `_num_values` counts, so the check finds networks that cannot fit, not all that do
    not.

    Parameters
    ----------
    memory : bytes of the device.
    is_cpu : whether this is the memory of the CPU.
    world : number of processes, which share a sharded model.

    Raises
    ------
    UdcError
        The network is larger; the message has its size and its largest layer.
    """
    with torch.device("meta"):
        model = build_model(params.model, classes, params.seed)
    freeze_stages(model, params.train.num_frozen_stages)
    num_bytes = 4 * _num_values(model, params.train, is_cpu, world)
    if num_bytes > memory:
        layers = dict(model.named_parameters())
        count = sum(layer.numel() for layer in layers.values())
        largest = max(layers, key=lambda name: layers[name].numel())
        averages = "" if params.train.ema_decay is None else ", averages"
        contents = f"weights, gradients, optimiser{averages}" + (", best weights" if is_cpu else "")
        share = f" in each of {world} processes" if params.train.sharded else ""
        raise UdcError(
            f"model.{params.model.model_type}: {count:,} parameters need {num_bytes / 2**30:,.1f} GiB to train{share} "
            f"({contents}), but there are {memory / 2**30:,.1f} GiB; the largest layer is {largest} "
            f"with {layers[largest].numel():,}. Lower hidden_sizes or depths"
        )


def _num_values(model: ImageClassifier, train: TrainParams, is_cpu: bool, world: int) -> int:
    """Numbers, of four bytes each, that one process holds in the memory of the device during a training run.

    All weights and their averages; of the weights that are trained, also the gradients and AdamW's two states or SGD's
    momentum. `TrainingSession` holds these in shards if ``train.sharded`` is set. It holds the best weights on the CPU,
    and of a sharded model also the complete one.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    states = 2 if train.optimizer == "adamw" else int(train.momentum > 0)
    values = weights * (1 if train.ema_decay is None else 2) + trained * (1 + states)
    if train.sharded:
        values = -(-values // world)
    if not is_cpu:
        return values
    # frozen weights of the best epoch are those of the network, not a copy
    best = weights if train.sharded else trained
    return values + best + (train.members - 1) * weights + (weights if train.sharded else 0)


def check_image_size(params: Params, classes: list[str], size: int) -> None:
    """:class:`UdcError` if the network cannot compute logits of images of ``size`` pixels; nothing is allocated."""
    try:
        with torch.device("meta"), torch.no_grad():
            model = build_model(params.model, classes, params.seed).eval()
            model(torch.empty(2, params.model.architecture.num_channels, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UdcError(f"data.image_size: is {size}, but the {params.model.model_type} cannot take such images "
                       f"({reason}); choose another size or network") from None  # fmt: skip


def check_disk(session: TrainingSession, folder: Path) -> None:
    """Check that checkpoints and outputs fit on the disk of ``folder``, before the first step.

    Three checkpoints are there for a moment, and one of each finished member of an ensemble. The trained weights are
    stored twice: in ``model/``, and for MLflow until they are delivered.

    Raises
    ------
    UdcError
        They do not fit.
    """
    members = session.params.train.members
    needed = (2 + members) * checkpoint_bytes(session) + 2 * members * weight_bytes(session)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UdcError(f"{folder.resolve()}: checkpoints and the model need {needed / 2**30:.2g} GiB, but "
                       f"{free / 2**30:.2g} GiB are free; free disk space, or choose a smaller model")  # fmt: skip


def weight_bytes(session: TrainingSession) -> int:
    """Bytes of the weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in session.model.state_dict().values())


def checkpoint_bytes(session: TrainingSession) -> int:
    """Bytes of a checkpoint: the weights, those of the best epoch, the averaged ones, and the optimiser's state."""
    train = session.params.train
    return (2 + (train.ema_decay is not None) + (2 if train.optimizer == "adamw" else 1)) * weight_bytes(session)


def build_cost_monitor(params: Params, dataset: PackedDataset) -> CostMonitor:
    """The monitor of ``train.monitor: normalised_cost``, which fits the deployed policy anew for each epoch.

    Raises
    ------
    UdcError
        The best constant decision costs 0, or the calibration split is too small for the policy.
    """
    calibration, validation = dataset.split("calibration"), dataset.split("validation")
    frequencies = training_frequencies(params, dataset.training_counts)

    def cost(calibration_logits: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
        policy = fit_policy(params.evaluate, params.costs, dataset.classes, frequencies, calibration_logits,
                            calibration.labels, group_indices(calibration.groups))  # fmt: skip
        decided = policy.apply(logits).decided
        result = normalised_cost(validation.labels, decided, policy.outcome_costs, policy.weights(validation.labels))
        if result is None:
            raise UdcError("train.monitor: normalised_cost is undefined, because the best constant decision costs 0 on "
                           "the validation split; fix the costs, or use train.monitor: log_loss")  # fmt: skip
        return result

    # once before training, on synthetic logits of a fair model, so that errors come early
    cost(*_synthetic_logits(len(dataset.classes), calibration, validation))
    return CostMonitor(calibration, cost)


def _synthetic_logits(k: int, *splits: PackedSplit) -> list[NDArray[np.float32]]:
    """Logits (N, K) for each split, which favour the true class."""
    rng = np.random.default_rng(0)
    return [(2 * np.eye(k)[split.labels] + rng.normal(size=(len(split), k))).astype(np.float32) for split in splits]


def load_initial_weights(
    model: ImageClassifier, params: ModelParams, preprocessing: Preprocessing
) -> tuple[WeightsReport | None, Preprocessing]:
    """Load ``model.weights`` into the model; nothing if it is null.

    Returns
    -------
    The report (None if nothing was loaded), and the preprocessing with the mean and standard deviation of the weights.
    """
    if params.weights is None:
        return None, preprocessing
    source = find_weights(params)
    report = load_weights(model, source.path, params.weights_include, params.weights_exclude, params.weights_sha256)
    logger.info("%s", report.summary())
    if source.image_size not in (None, preprocessing.size):
        logger.warning("model.weights: trained on images of %d px, but data.image_size is %d",
                       source.image_size, preprocessing.size)  # fmt: skip
    if source.mean is not None and source.std is not None:
        mean, std = (_for_channels(values, preprocessing.channels) for values in (source.mean, source.std))
        preprocessing = replace(preprocessing, mean=mean, std=std)
    return report, preprocessing


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Reduce mean or standard deviation of RGB to their mean for grey images."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def check_channels(params: Params, preprocessing: Preprocessing) -> None:
    """:class:`UdcError` unless the model takes as many channels as the prepared images have."""
    channels = params.model.architecture.num_channels
    if channels != preprocessing.channels:
        raise UdcError(f"model.{params.model.model_type}.num_channels: is {channels}, but the prepared images have "
                       f"{preprocessing.channels}; give num_channels in all blocks of section model the same "
                       "value, so that prepare follows (dvc repro)")  # fmt: skip
