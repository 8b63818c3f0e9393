"""The training session: what one training run trains on, how, and its state."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from udc_model.config import TrainParams
from udc_model.data.augmentation import Augmentation, Mixing
from udc_model.data.batches import TrainingBatches
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier
from udc_model.training.checkpoints import Checkpoint, CheckpointFolder
from udc_model.training.distribution import ALONE, Ranks
from udc_model.training.hardware import Hardware, set_arithmetic
from udc_model.training.losses import TrainingLoss
from udc_model.training.optimisation import averaged_model, freeze_stages
from udc_model.training.state import EpochRecord, TrainingState


@dataclass(frozen=True)
class CostMonitor:
    """Computes ``train.monitor: normalised_cost``, the cost of an epoch's decisions under the policy to be deployed.

    Parameters
    ----------
    calibration : the split that the policy is fitted on.
    cost : maps the logits of the calibration split (M, K) and of the validation split (N, K) to the normalised cost of
        the decisions on the validation split.
    """

    calibration: PackedSplit
    cost: Callable[[NDArray[np.float32], NDArray[np.float32]], float]


@dataclass
class TrainingSession:
    """Everything that one training run uses, in one process.

    Every random draw is a function of (seed, epoch, step or sample index). So equal sessions give equal bits, however
    often the training run was killed and resumed.

    Parameters
    ----------
    model : starts from its present weights; it is moved to the hardware.
    train, validation : images to train on, and images that choose the epoch.
    preprocessing : from stored images to the model's input.
    loss_fn : the training loss.
    params : the section ``train``; its batch size is a number.
    seed : of all random draws.
    hardware : device and precision.
    cost_monitor : required by ``train.monitor: normalised_cost``; None leaves that metric out.
    checkpoints : where checkpoints are written and a checkpoint to resume from is looked for; None, also in all
        processes but the first, writes none.
    on_epoch : called after each epoch, and once more with the last epoch of a resumed run, in the first process; true
        ends the training run.
    ranks : the processes that share each batch. All of them run the same session.
    """

    model: ImageClassifier
    train: PackedSplit
    validation: PackedSplit
    preprocessing: Preprocessing
    loss_fn: TrainingLoss
    params: TrainParams
    seed: int
    hardware: Hardware
    cost_monitor: CostMonitor | None = None
    checkpoints: CheckpointFolder | None = None
    on_epoch: Callable[[EpochRecord], bool] = lambda record: False
    ranks: Ranks = ALONE

    @cached_property
    def batches(self) -> TrainingBatches:
        """The batches of all epochs.

        Raises
        ------
        UdcError
            A batch has fewer images than there are processes.
        """
        params, ranks = self.params, self.ranks
        if not isinstance(params.batch_size, int):
            raise TypeError("train.batch_size: auto must be resolved first")
        mixes = bool(Mixing(params.mixup, params.cutmix))
        batches = TrainingBatches(
            self.train, self.preprocessing, Augmentation.of(params), params.batch_size, self.seed,
            params.sampling_power, params.loader_workers, ranks.rank, ranks.world, ranks.world > 1 and mixes,
        )  # fmt: skip
        if (smallest := len(self.train) // batches.steps) < ranks.world:
            raise UdcError(f"{ranks.world} processes cannot share a batch of {smallest}; raise train.batch_size")
        return batches

    @cached_property
    def state(self) -> TrainingState:
        """The state before the first step, made at the first access. A sharded model is a copy of ``model``.

        Raises
        ------
        UdcError
            The hardware or the number of processes does not allow what ``params`` asks for.
        """
        params, hardware, ranks, model = self.params, self.hardware, self.ranks, self.model
        set_arithmetic(params)
        if params.sharded:
            check_sharding(params, hardware, ranks)
            model = deepcopy(model)
        else:
            model.to(hardware.device).to(memory_format=hardware.memory_format)
        model.gradient_checkpointing_enable(params.gradient_checkpointing)
        if params.sync_batchnorm:
            if hardware.device.type != "cuda":
                raise UdcError("train.sync_batchnorm: torch supports it on GPUs only; set it to false")
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        frozen = freeze_stages(model, params.num_frozen_stages)
        averaged = averaged_model(model, params.ema_decay)
        if params.sharded:
            ranks.shard(model, hardware.device)
            if averaged is not None:
                ranks.shard(averaged.module, hardware.device)  # type: ignore[arg-type]
        state = TrainingState(model, averaged, self.loss_fn, params, hardware, frozen)
        if params.compile:
            model.compile()
        if not params.sharded:
            size = self.preprocessing.size
            example = torch.zeros(1, 3, size, size, device=hardware.device).to(memory_format=hardware.memory_format)
            state.forward = ranks.parallel(model, hardware.device, example)
        return state

    def resume(self) -> None:
        """Restore the state from the checkpoint, if there is one, in all processes."""
        contents = self.ranks.from_first(self.checkpoints.take() if self.checkpoints else None)
        if contents:
            self.state.restore(Checkpoint.parse(contents))

    def ends_at(self, record: EpochRecord) -> bool:
        """Report an epoch; whether the training run ends with it, in all processes."""
        stops = self.ranks.is_first and self.on_epoch(record)
        return self.ranks.sum(stops) > 0


def check_sharding(params: TrainParams, hardware: Hardware, ranks: Ranks) -> None:
    """:class:`UdcError` if ``train.sharded`` is not possible."""
    if ranks.world == 1:
        raise UdcError("train.sharded: needs several processes; set train.processes, or start several with torchrun")
    if hardware.precision == "fp16":
        raise UdcError("train.sharded: the loss scaler of fp16 does not support sharded gradients; use bf16 or fp32")
    if params.compile:
        raise UdcError("train.sharded: does not work with train.compile; set one of them to false")
