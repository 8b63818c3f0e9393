"""Limits of parameters that depend on the number of images or on the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from udc_model.config.model import MODEL_TYPES, ModelParams
from udc_model.config.train import TrainParams
from udc_model.errors import UdcError

_PER_CORE = 4  # processes; more only wait for each other
_SMALL_BATCH = 1024  # images; a batch size up to this one may exceed a small data set


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_sizes(train: TrainParams, training_counts: Mapping[str, int]) -> None:
    """Check sizes against the training images, before anything is started.

    Parameters
    ----------
    training_counts : training images of each class.

    Raises
    ------
    UdcError
        A batch would have more images than there are, or fewer than there are processes.
    """
    images, size = sum(training_counts.values()), train.batch_size
    if not isinstance(size, int):
        return
    if size > max(images, _SMALL_BATCH):
        raise UdcError(f"train.batch_size: got {size:,}, but there are {images:,} training images; at most "
                       f"{max(images, _SMALL_BATCH):,} are allowed")  # fmt: skip
    smallest = images // max(1, -(-images // size))
    if train.processes > smallest:
        raise UdcError(f"train.processes: {train.processes} processes cannot share a batch of {smallest} images; "
                       "lower it, or raise train.batch_size")  # fmt: skip


def check_processes(train: TrainParams) -> None:
    """:class:`UdcError` if this machine cannot run ``train.processes`` at once, or not on ``train.device``."""
    check_number_of_processes("train.processes", train.processes)
    check_shared_device(train.device, train.processes)


def check_shared_device(device: str, processes: int) -> None:
    """:class:`UdcError` if ``train.device`` is one on which several processes cannot train together."""
    if device == "mps" and processes > 1:
        raise UdcError(f"train.device: is mps, but PyTorch averages no gradients of {processes} processes on Apple "
                       "GPUs; set train.processes to 1, or train.device to cpu")  # fmt: skip


def check_number_of_processes(parameter: str, number: int) -> None:
    """:class:`UdcError` that begins with the parameter if this machine cannot run so many processes at once."""
    most = _PER_CORE * available_cores()
    if number < 1:
        raise UdcError(f"{parameter}: got {number:,}; at least 1 is needed")
    if number > most:
        raise UdcError(f"{parameter}: got {number:,}, but this machine has {available_cores()} cores; at "
                       f"most {most} are allowed")  # fmt: skip


def loader_workers(train: TrainParams) -> int:
    """``train.loader_workers``, which changes no result, but not more than this machine can run at once."""
    return min(train.loader_workers, max(1, _PER_CORE * available_cores() // train.processes))


def check_timm_channels(model: ModelParams) -> None:
    """Check that a network of timm has the channels of the other blocks, on which stage ``prepare`` depends.

    Files of earlier versions have no block ``timm``, so the stage cannot depend on it.

    Raises
    ------
    UdcError
        The blocks differ.
    """
    channels = {name: getattr(model, name).num_channels for name in MODEL_TYPES}
    if model.model_type == "timm" and len(set(channels.values())) > 1:
        values = ", ".join(f"{name} {value}" for name, value in channels.items())
        raise UdcError(f"model.timm.num_channels: must be that of the other blocks of section model, got {values}")
