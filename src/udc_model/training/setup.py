"""What a training needs before its first step, made from the parameters and the prepared data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from udc_model.config import ModelParams, Params
from udc_model.data.packed import PackedDataset, PackedSplit, group_indices
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
from udc_model.training.hardware import Hardware, keep_freed_memory, pick_hardware
from udc_model.training.loop import CostMonitor
from udc_model.training.losses import TrainingLoss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """All of it; ``params`` with the batch size that ``auto`` came to, ``weights`` says what was loaded."""

    params: Params
    dataset: PackedDataset
    hardware: Hardware
    model: ImageClassifier
    preprocessing: Preprocessing
    loss_fn: TrainingLoss
    weights: WeightsReport | None
    priced: CostMonitor | None

    @property
    def train(self) -> PackedSplit:
        """The images to train on."""
        return self.dataset.split("train")


def set_up(params: Params, workspace: Workspace, ranks: Ranks = ALONE) -> TrainingSetup:
    """Open the data, build the model on its start weights, and pick the hardware.

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
    weights, preprocessing = start_from_weights(model, params.model, dataset.preprocessing)
    loss_fn = TrainingLoss(params.loss, torch.from_numpy(cost_matrix(params.costs, dataset.classes)),
                           dataset.training_counts)  # fmt: skip
    priced = build_cost_monitor(params, dataset) if params.train.monitor == "normalised_cost" else None
    if params.train.batch_size == "auto":
        found = largest_batch_size(model, loss_fn, preprocessing.size, len(dataset.split("train")), params.train,
                                   hardware, ranks)  # fmt: skip
        params = params.model_copy(update={"train": params.train.model_copy(update={"batch_size": found})})
    return TrainingSetup(params, dataset, hardware, model, preprocessing, loss_fn, weights, priced)


def build_cost_monitor(params: Params, dataset: PackedDataset) -> CostMonitor:
    """What ``train.monitor: normalised_cost`` needs: the deployed policy, fitted anew each epoch.

    Raises
    ------
    UdcError
        The cost of a constant answer is 0, or the calibration split is too small for the policy; known before training.
    """
    calibration, validation = dataset.split("calibration"), dataset.split("validation")

    def cost(calibration_logits: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
        policy = fit_policy(params.evaluate, params.costs, dataset.classes, dataset.training_counts, calibration_logits,
                        calibration.labels, group_indices(calibration.groups))  # fmt: skip
        decided = policy.apply(logits).decided
        found = normalised_cost(validation.labels, decided, policy.outcome_costs, policy.weights(validation.labels))
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
    return CostMonitor(calibration, cost)


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
