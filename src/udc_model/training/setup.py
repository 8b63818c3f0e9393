"""Builds everything that a training run needs before its first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from udc_model.config import ModelParams, Params
from udc_model.data.packed import PackedDataset, group_indices
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.decision import normalised_cost
from udc_model.decisions.matrix import cost_matrix
from udc_model.decisions.policy import fit_policy
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.models import build_model
from udc_model.models.checkpoints import WeightsReport, load_weights
from udc_model.models.pretrained import find_weights
from udc_model.models.staged import ImageClassifier
from udc_model.training.batch_size import largest_batch_size
from udc_model.training.distribution import ALONE, Ranks
from udc_model.training.hardware import keep_freed_memory, pick_hardware
from udc_model.training.losses import TrainingLoss
from udc_model.training.session import CostMonitor, TrainingSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """A training session and where it comes from.

    Parameters
    ----------
    params : all parameters; the batch size is a number.
    dataset : the prepared data.
    session : the training session; its checkpoints and ``on_epoch`` are not set yet.
    weights : which pretrained weights were loaded; None for random weights.
    """

    params: Params
    dataset: PackedDataset
    session: TrainingSession
    weights: WeightsReport | None


def set_up(params: Params, workspace: Workspace, ranks: Ranks = ALONE) -> TrainingSetup:
    """Open the data, build the model with its initial weights, and choose the hardware.

    Raises
    ------
    UdcError
        The prepared data is missing or does not fit the parameters, or the machine lacks what they ask for.
    """
    dataset = PackedDataset.open(workspace.prepared)
    check_channels(params)
    hardware = pick_hardware(params.train, ranks.local)
    keep_freed_memory()
    model = build_model(params.model, dataset.classes, params.seed)
    weights, preprocessing = load_initial_weights(model, params.model, dataset.preprocessing)
    class_costs = torch.from_numpy(cost_matrix(params.costs, dataset.classes))
    loss_fn = TrainingLoss(params.loss, class_costs, dataset.training_counts)
    monitor = build_cost_monitor(params, dataset) if params.train.monitor == "normalised_cost" else None
    session = TrainingSession(model, dataset.split("train"), dataset.split("validation"), preprocessing, loss_fn,
                              params.train, params.seed, hardware, monitor, ranks=ranks)  # fmt: skip
    if params.train.batch_size == "auto":
        train = params.train.model_copy(update={"batch_size": largest_batch_size(session)})
        params, session = params.model_copy(update={"train": train}), replace(session, params=train)
    return TrainingSetup(params, dataset, session, weights)


def build_cost_monitor(params: Params, dataset: PackedDataset) -> CostMonitor:
    """Build the monitor ``normalised_cost``: it fits the policy anew after each epoch.

    Raises
    ------
    UdcError
        A constant decision costs nothing on the validation split, so the metric is undefined, or the calibration split
        is too small for the policy.
    """
    calibration, validation = dataset.split("calibration"), dataset.split("validation")

    def cost(calibration_logits: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
        policy = fit_policy(params.evaluate, params.costs, dataset.classes, dataset.training_counts, calibration_logits,
                            calibration.labels, group_indices(calibration.groups))  # fmt: skip
        decided = policy.apply(logits).decided
        value = normalised_cost(validation.labels, decided, policy.outcome_costs, policy.weights(validation.labels))
        if value is None:
            raise UdcError("train.monitor: normalised_cost is undefined, because a constant decision costs nothing on "
                           "the validation split; change the costs, or use train.monitor: log_loss")  # fmt: skip
        return value

    # a first call with the synthetic logits of a fair model, so that errors come before the training run
    rng = np.random.default_rng(0)
    classes = len(dataset.classes)
    synthetic = [
        (2 * np.eye(classes)[split.labels] + rng.normal(size=(len(split), classes))).astype(np.float32)
        for split in (calibration, validation)
    ]
    cost(synthetic[0], synthetic[1])
    return CostMonitor(calibration, cost)


def load_initial_weights(
    model: ImageClassifier, params: ModelParams, preprocessing: Preprocessing
) -> tuple[WeightsReport | None, Preprocessing]:
    """Load ``model.weights`` if it is set.

    Returns
    -------
    A report of the loaded weights (None for random weights), and the preprocessing with the mean and standard
    deviation of the images that the weights were trained with.
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
    """:class:`UdcError` unless the model takes the three channels of prepared images."""
    channels = params.model.architecture.num_channels
    if channels != 3:
        raise UdcError(f"model.{params.model.model_type}.num_channels: is {channels}; prepared images have 3 (RGB)")
