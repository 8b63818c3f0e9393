"""A training run: what it trains with, its state between two steps, and how that state is saved and restored."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from udc_model.config import Params, TrainParams
from udc_model.config.limits import loader_workers
from udc_model.data.augmentation import Augmentation, Mixing
from udc_model.data.batches import TrainingBatches
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models.checkpoints import WeightsReport
from udc_model.models.staged import ImageClassifier
from udc_model.training.checkpoints import Checkpoint, CheckpointFolder
from udc_model.training.distribution import ALONE, Ranks, full_tensor, shard_like
from udc_model.training.features import FeatureCache, FrozenNetwork, num_features, why_features_change
from udc_model.training.hardware import Hardware, set_arithmetic
from udc_model.training.margins import MarginRecorder
from udc_model.training.optimisation import averaged_model, build_optimizer, freeze_stages, names_of_weights
from udc_model.training.training_loss import TrainingLoss

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


@dataclass(frozen=True)
class EpochRecord:
    """The result of one epoch.

    Parameters
    ----------
    epoch : number of the epoch, from 1.
    metrics : its row of the training curves.
    images_per_second : training speed.
    ended : time at which the epoch ended, in ms since 1970.
    """

    epoch: int
    metrics: Metrics
    images_per_second: float
    ended: int


@dataclass
class Progress:
    """The plain values of a session's state.

    Parameters
    ----------
    epoch, step : the next step, both from 0.
    total_loss, epoch_seconds : sums over the steps of the current epoch.
    seconds : duration of the completed epochs, validation included.
    records : one for each completed epoch.
    best_score, best_epoch : of the best epoch (from 1) so far; larger scores are better.
    epochs_since_best : number of epochs without an improvement.
    """

    epoch: int = 0
    step: int = 0
    total_loss: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    records: list[EpochRecord] = field(default_factory=list)
    best_score: float = -math.inf
    best_epoch: int = 0
    epochs_since_best: int = 0


@dataclass(frozen=True)
class CostMonitor:
    """The normalised cost of an epoch's decisions under the policy that will be deployed.

    Parameters
    ----------
    calibration : split on which the policy is fitted.
    cost : maps the logits of the calibration split (M, K) and of the validation split (N, K) to the normalised cost of
        the decisions on the validation split.
    """

    calibration: PackedSplit
    cost: Callable[[NDArray[np.float32], NDArray[np.float32]], float]


class ProgressDisplay(Protocol):
    """What prints the progress of a session, see `udc_model.training.display`; nothing of it changes the result."""

    def start(self, session: TrainingSession) -> None:
        """Called once, after the session has started or resumed."""

    def add_step(self, session: TrainingSession, loss: float, seconds: float) -> None:
        """Called after each step."""

    def add_validation(self, session: TrainingSession, logits: NDArray[np.float32], scores: Metrics) -> None:
        """Called with the validation logits (N, K) of each epoch, and their scores."""

    def end_epoch(self, seconds: float, steps: int) -> None:
        """Called after each epoch, of which this process has run ``steps``, with the duration of all of it."""


@dataclass(eq=False, repr=False)
class TrainingSession:
    """A training run with everything that it uses; `start` builds the state, the attributes without parameter.

    Parameters
    ----------
    model : classifier to train; `start` moves it to the hardware, or trains a copy if ``train.sharded`` is set.
    params : all parameters; ``train.batch_size`` must be a number before `start`.
    ranks : the processes that share each batch. Each of them has a session and calls the same methods.
    cost_monitor : required by ``train.monitor: normalised_cost``; without it that metric is not computed.
    checkpoints : where the state is saved; None saves nothing. Only the first process has a folder.
    weights : report of the weights that were loaded into the model; None for random weights.
    feature_cache : where features of a frozen network are stored; None stores none.
    display : what prints the progress; None prints nothing.
    member : number of the network in an ensemble, from 0.

    Attributes
    ----------
    batches : batches of the training split.
    trained : the module that the optimiser updates: ``model``, or a sharded copy of it.
    forward : the module that a training step calls: ``trained``, or a wrapper that averages gradients over processes.
    averaged : moving average of the weights of ``trained``; None without ``train.ema_decay``.
    frozen : modules that are not trained.
    constants : names of the weights and statistics of ``frozen``, which never change.
    features : features (N, D) of the images of each split, by its name, if they are the same in every epoch; the head
        is trained on them. Empty if the model is trained on images.
    optimizer, scaler : optimiser and loss scaler.
    progress : counters, sums and the records of completed epochs.
    margins : of the training images, in the completed epochs and so far in the current one.
    best_state : weights of the best epoch so far, on the CPU.
    """

    model: ImageClassifier
    loss_fn: TrainingLoss
    train_split: PackedSplit
    validation_split: PackedSplit
    preprocessing: Preprocessing
    params: Params
    hardware: Hardware
    ranks: Ranks = ALONE
    cost_monitor: CostMonitor | None = None
    checkpoints: CheckpointFolder | None = None
    weights: WeightsReport | None = None
    feature_cache: FeatureCache | None = None
    display: ProgressDisplay | None = None
    member: int = 0

    batches: TrainingBatches = field(init=False)
    trained: ImageClassifier = field(init=False)
    forward: nn.Module = field(init=False)
    averaged: AveragedModel | None = field(init=False)
    frozen: list[nn.Module] = field(init=False)
    constants: frozenset[str] = field(init=False)
    features: dict[str, Tensor] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    progress: Progress = field(init=False)
    margins: MarginRecorder = field(init=False)
    best_state: dict[str, Tensor] = field(init=False)

    def with_train_params(self, **values: Any) -> TrainingSession:
        """A session that is not started, with other parameters of the section ``train``; it shares the model."""
        params = self.params.model_copy(update={"train": self.params.train.model_copy(update=values)})
        return replace(self, params=params)

    def build_batches(self) -> TrainingBatches:
        """The batches of the training split; :class:`UdcError` if a batch has fewer images than there are processes."""
        params, ranks = self.params.train, self.ranks
        if not isinstance(params.batch_size, int):
            raise TypeError("train.batch_size: auto must be resolved first")
        batches = TrainingBatches(
            self.train_split, self.preprocessing, Augmentation.of(params), params.batch_size, self.params.seed,
            params.sampling_power, loader_workers(params), ranks.rank, ranks.world,
            ranks.world > 1 and bool(Mixing(params.mixup, params.cutmix)),
        )  # fmt: skip
        if (smallest := len(self.train_split) // batches.steps) < ranks.world:
            raise UdcError(f"train.batch_size: {ranks.world} processes cannot share a batch of {smallest}; raise it")
        return batches

    def start(self) -> None:
        """Build the state before the first step.

        Raises
        ------
        UdcError
            The parameters do not fit the hardware, the model or the number of processes.
        """
        params, hardware, ranks = self.params.train, self.hardware, self.ranks
        self.batches = self.build_batches()
        set_arithmetic(params)
        if params.sharded:
            check_sharding(params, hardware, ranks)
            self.trained = deepcopy(self.model)
        else:
            self.model.to(hardware.device).to(memory_format=hardware.memory_format)
            self.trained = self.model
        self.trained.gradient_checkpointing_enable(params.gradient_checkpointing)
        if params.sync_batchnorm:
            if hardware.device.type != "cuda":
                raise UdcError("train.sync_batchnorm: PyTorch supports it on GPUs only; set it to false")
            nn.SyncBatchNorm.convert_sync_batchnorm(self.trained)  # type: ignore[no-untyped-call]
        self.frozen = freeze_stages(self.trained, params.num_frozen_stages)
        self.constants = names_of_weights(self.trained, self.frozen)
        self.averaged = averaged_model(self.trained, params.ema_decay)
        if params.sharded:
            ranks.shard(self.trained, hardware.device)
            if self.averaged is not None:
                ranks.shard(self.averaged.module, hardware.device)  # type: ignore[arg-type]
        self.optimizer = build_optimizer(self.trained, params)
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.precision == "fp16")
        self.progress, self.best_state = Progress(), {}
        self.margins = MarginRecorder(len(self.train_split), params.epochs * params.members, ranks)
        if params.compile:
            self.trained.compile()
        self.forward = self.trained
        if not params.sharded:
            channels, size = self.preprocessing.channels, self.preprocessing.size
            example = torch.zeros(1, channels, size, size, device=hardware.device)
            example = example.to(memory_format=hardware.memory_format)
            self.forward = ranks.parallel(self.trained, hardware.device, example)
        self.features = self._frozen_features()
        self.batches.features = self.features.get("train")

    def _frozen_features(self) -> dict[str, Tensor]:
        """The features of each split that the training run reads; none if they are not the same in every epoch."""
        params, ranks = self.params.train, self.ranks
        if params.num_frozen_stages != "all":
            return {}
        splits = {"train": self.train_split, "validation": self.validation_split}
        if self.cost_monitor is not None and len(self.cost_monitor.calibration):
            splits["calibration"] = self.cost_monitor.calibration
        num_bytes = 4 * num_features(self.trained) * sum(map(len, splits.values()))
        if reason := why_features_change(params, ranks.world, num_bytes):
            if ranks.is_first:
                logger.info("train.num_frozen_stages: the frozen network runs in every epoch, because of %s", reason)
            return {}
        network = FrozenNetwork.of(self.trained, self.frozen, self.preprocessing, self.hardware, params)
        return {name: network.features(name, split, self.feature_cache) for name, split in splits.items()}

    def logits(self, inputs: Tensor) -> Tensor:
        """The logits (n, K) of a part of a training batch: of images (n, C, size, size), or of ``features`` (n, D)."""
        if self.features:
            return self.trained.head(inputs)
        return torch.as_tensor(self.forward(inputs.to(memory_format=self.hardware.memory_format)).logits)

    @property
    def evaluated_model(self) -> ImageClassifier:
        """The model that is validated and whose best weights are stored: the averaged one, if there is one."""
        return self.trained if self.averaged is None else self.averaged.module  # type: ignore[return-value]

    @property
    def scored_share(self) -> float:
        """Number of images that are scored after each epoch, divided by that of the training images."""
        scored = len(self.validation_split) + (len(self.cost_monitor.calibration) if self.cost_monitor else 0)
        return scored / len(self.train_split)

    def is_finished(self) -> bool:
        """Whether all epochs are done, or ``train.early_stopping_patience`` or ``train.max_minutes`` is exhausted."""
        params, progress = self.params.train, self.progress
        if progress.epoch >= params.epochs:
            return True
        patience = params.early_stopping_patience
        is_patience_exhausted = patience is not None and progress.epochs_since_best >= patience
        is_late = params.max_minutes is not None and progress.seconds >= 60 * params.max_minutes
        # the clocks of the processes differ: the first one decides
        return is_patience_exhausted or self.ranks.sum(is_late and self.ranks.is_first) > 0

    def end_epoch(self, metrics: Metrics, images_per_second: float, score: float) -> EpochRecord:
        """Record an epoch and copy its weights if ``score`` (larger is better) is the best so far."""
        progress = self.progress
        record = EpochRecord(progress.epoch + 1, metrics, images_per_second, time.time_ns() // 1_000_000)
        progress.records.append(record)
        if score > progress.best_score:
            progress.best_score, progress.best_epoch, progress.epochs_since_best = score, record.epoch, 0
            state = {key: full_tensor(value.detach()).cpu() for key, value in self.evaluated_model.state_dict().items()}
            self.best_state = {key: value if key in self.constants else value.clone() for key, value in state.items()}
        else:
            progress.epochs_since_best += 1
        progress.epoch, progress.step, progress.total_loss, progress.epoch_seconds = record.epoch, 0, 0.0, 0.0
        self.margins.end_epoch()
        return record

    def load_best(self) -> None:
        """Load the best weights into the model that is evaluated; the training run cannot continue."""
        _load(self.evaluated_model, self.best_state)

    def end(self) -> None:
        """Free the state but ``best_state``, and the gradients: another session follows."""
        self.model.zero_grad(set_to_none=True)
        del self.batches, self.trained, self.forward, self.averaged, self.frozen, self.optimizer, self.scaler
        self.features = {}

    def checkpoint_is_due(self) -> bool:
        """Whether to save within an epoch; equal in all processes of a sharded model, which save together."""
        is_due = self.checkpoints is not None and self.checkpoints.is_due()
        return self.ranks.sum(is_due) > 0 if self.params.train.sharded else is_due

    def save(self) -> None:
        """Write a checkpoint if there is a folder for it; :class:`UdcError` if it cannot be written.

        All processes of a sharded model must call this, to gather its parts.
        """
        if self.checkpoints is None and not self.params.train.sharded:
            return
        tensors = {}
        for key, value in self._tensors():
            gathered = full_tensor(value.detach())
            if self.checkpoints is not None:  # other processes need not hold the complete model
                tensors[key] = gathered.cpu()
        if self.checkpoints is not None:
            progress = asdict(self.progress) | {"scaler": self.scaler.state_dict()}
            self.checkpoints.save(self.progress.epoch, self.progress.step, tensors, progress)

    def resume(self) -> None:
        """Restore the state of the newest checkpoint of the first process, if there is one."""
        contents = self.ranks.from_first(self.checkpoints.take_contents() if self.checkpoints else None)
        if contents is None:
            return
        try:
            self._restore(Checkpoint.parse(contents))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            path = self.checkpoints.last if self.checkpoints else "the checkpoint"
            raise UdcError(f"{path}: cannot be restored ({reason}); delete it to resume from an earlier one") from None

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The state, without frozen weights: the inputs of the training run determine them."""
        states = {"model": self.trained.state_dict(), "best": self.best_state}
        if self.averaged is not None:
            states["averaged"] = self.averaged.state_dict()
        for prefix, state in states.items():
            for key, value in state.items():
                if not self._is_constant(key):
                    yield f"{prefix}.{key}", value
        for number, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer.{number}.{key}", value
        yield "loss.seesaw_counts", self.loss_fn.seesaw.counts
        for key, value in self.margins.tensors().items():
            yield f"margins.{key}", value

    def _frozen_weights(self, module: nn.Module) -> dict[str, Tensor]:
        """The part of a module's state that checkpoints leave out, on the CPU."""
        state = module.state_dict().items()
        return {key: full_tensor(value.detach()).cpu() for key, value in state if self._is_constant(key)}

    def _is_constant(self, key: str) -> bool:
        return key.removeprefix("module.") in self.constants  # the averaged model is a module within AveragedModel

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _restore(self, checkpoint: Checkpoint) -> None:
        values = dict(checkpoint.progress)
        self.scaler.load_state_dict(values.pop("scaler"))
        records = [EpochRecord(**record) for record in values.pop("records")]
        self.progress = Progress(**values, records=records)
        self.best_state = _with_prefix("best.", checkpoint.tensors)
        if self.best_state:
            self.best_state |= self._frozen_weights(self.evaluated_model)
        modules: dict[str, nn.Module] = {"model": self.trained}
        if self.averaged is not None:
            modules["averaged"] = self.averaged
        for name, module in modules.items():
            _load(module, self._frozen_weights(module) | _with_prefix(f"{name}.", checkpoint.tensors))
        self.loss_fn.seesaw.counts = checkpoint.tensors["loss.seesaw_counts"]
        self.margins.restore(_with_prefix("margins.", checkpoint.tensors), self.progress.epoch)
        for number, parameter in enumerate(self._parameters()):
            for key, value in _with_prefix(f"optimizer.{number}.", checkpoint.tensors).items():
                # in the parameter's memory format: a fused optimiser walks through both by address
                restored = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(
                    value, device=parameter.device)  # fmt: skip
                self.optimizer.state[parameter][key] = restored.copy_(shard_like(value, restored))


def check_sharding(params: TrainParams, hardware: Hardware, ranks: Ranks) -> None:
    """:class:`UdcError` if ``train.sharded`` is not possible."""
    if ranks.world == 1:
        raise UdcError("train.sharded: a single process cannot shard a model; set train.processes, or start several "
                       "processes with torchrun")  # fmt: skip
    if hardware.precision == "fp16":
        raise UdcError("train.sharded: the loss scaler of fp16 does not support sharded gradients; use bf16 or fp32")
    if params.compile:
        raise UdcError("train.sharded: cannot be combined with train.compile; set one of them to false")


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    current = module.state_dict()
    module.load_state_dict({key: shard_like(value, current.get(key, value)) for key, value in tensors.items()})


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
