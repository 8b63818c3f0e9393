"""The state of a training run between two steps, and its exact conversion to a checkpoint and back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from udc_model.config import TrainParams
from udc_model.models.staged import ImageClassifier
from udc_model.training.checkpoints import Checkpoint, CheckpointFolder
from udc_model.training.distribution import full_tensor, shard_like
from udc_model.training.hardware import Hardware
from udc_model.training.losses import TrainingLoss
from udc_model.training.optimisation import build_optimizer

Metrics = dict[str, float]


@dataclass(frozen=True)
class EpochRecord:
    """Result of one epoch.

    Parameters
    ----------
    epoch : number, from 1.
    metrics : its row of the training curves.
    images_per_second : training speed.
    ended : time at which it ended, ms since 1970.
    """

    epoch: int
    metrics: Metrics
    images_per_second: float
    ended: int


@dataclass
class Progress:
    """The plain values of the state.

    Parameters
    ----------
    epoch, step : the next step, both from 0.
    total_loss, epoch_seconds : sums over the steps of the current epoch.
    seconds : time of all epochs so far, validation included.
    records : results of the epochs so far.
    best_score, best_epoch : largest score so far, and its epoch (from 1; 0 before the first).
    patience : epochs since the best one.
    """

    epoch: int = 0
    step: int = 0
    total_loss: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    records: list[EpochRecord] = field(default_factory=list)
    best_score: float = -math.inf
    best_epoch: int = 0
    patience: int = 0


class TrainingState:
    """The model and everything that changes with it.

    The order of the images, the augmentation, the learning rates and drop path are functions of (seed, epoch, step).
    So no state of a random generator or of a schedule is part of it.
    """

    def __init__(self, model: ImageClassifier, averaged: AveragedModel | None, loss_fn: TrainingLoss,
                 params: TrainParams, hardware: Hardware, frozen: list[nn.Module]) -> None:  # fmt: skip
        self.model, self.averaged, self.loss_fn, self.frozen = model, averaged, loss_fn, frozen
        self.forward: nn.Module = model  # what a step calls: the model, or a wrapper that averages its gradients
        self.optimizer = build_optimizer(model, params)
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.precision == "fp16")
        self.progress = Progress()
        self.best_state: dict[str, Tensor] = {}

    @property
    def judged(self) -> ImageClassifier:
        """The model that is validated and stored: the averaged one if there is one."""
        return self.model if self.averaged is None else self.averaged.module  # type: ignore[return-value]

    def end_epoch(self, metrics: Metrics, images_per_second: float, score: float) -> EpochRecord:
        """Record an epoch, copy the weights if ``score`` is the largest so far, and advance to the next epoch."""
        progress = self.progress
        record = EpochRecord(progress.epoch + 1, metrics, images_per_second, time.time_ns() // 1_000_000)
        progress.records.append(record)
        if score > progress.best_score:
            progress.best_score, progress.best_epoch, progress.patience = score, record.epoch, 0
            state = self.judged.state_dict()
            self.best_state = {key: full_tensor(value.detach()).cpu().clone() for key, value in state.items()}
        else:
            progress.patience += 1
        progress.epoch, progress.step, progress.total_loss, progress.epoch_seconds = record.epoch, 0, 0.0, 0.0
        return record

    def save(self, checkpoints: CheckpointFolder | None) -> None:
        """Write a checkpoint if there is a folder for it.

        All processes of a sharded model call this to gather its parts.

        Raises
        ------
        UdcError
            The checkpoint cannot be written.
        """
        tensors = {}
        for key, value in self._tensors():
            gathered = full_tensor(value.detach())
            if checkpoints is not None:  # the other processes do not need the memory
                tensors[key] = gathered.cpu()
        if checkpoints is not None:
            progress = asdict(self.progress) | {"scaler": self.scaler.state_dict()}
            checkpoints.save(self.progress.epoch, self.progress.step, tensors, progress)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for key, value in self.model.state_dict().items():
            yield f"model.{key}", value
        if self.averaged is not None:
            for key, value in self.averaged.state_dict().items():
                yield f"averaged.{key}", value
        for key, value in self.best_state.items():
            yield f"best.{key}", value
        for number, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer.{number}.{key}", value
        yield "loss.seesaw_counts", self.loss_fn.seesaw.counts

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint of a state that was built from the same arguments."""
        plain = dict(checkpoint.progress)
        self.scaler.load_state_dict(plain.pop("scaler"))
        records = [EpochRecord(**record) for record in plain.pop("records")]
        self.progress = Progress(**plain, records=records)
        self.best_state = _with_prefix("best.", checkpoint.tensors)
        _load(self.model, _with_prefix("model.", checkpoint.tensors))
        if self.averaged is not None:
            _load(self.averaged, _with_prefix("averaged.", checkpoint.tensors))
        self.loss_fn.seesaw.counts = checkpoint.tensors["loss.seesaw_counts"]
        for number, parameter in enumerate(self._parameters()):
            for key, value in _with_prefix(f"optimizer.{number}.", checkpoint.tensors).items():
                # in the memory format of the parameter, because a fused step walks through both by address
                target = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(
                    value, device=parameter.device)  # fmt: skip
                self.optimizer.state[parameter][key] = target.copy_(shard_like(value, target))


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    current = module.state_dict()
    module.load_state_dict({key: shard_like(value, current.get(key, value)) for key, value in tensors.items()})


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, under their names without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
