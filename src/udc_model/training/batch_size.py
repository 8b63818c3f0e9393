"""The largest batch size that fits into the memory of a GPU."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from udc_model.data.batches import Batch
from udc_model.errors import UdcError
from udc_model.training.distribution import ALONE
from udc_model.training.loop import train_step
from udc_model.training.session import TrainingSession

logger = logging.getLogger(__name__)

_MIN_STEPS = 20  # of an epoch: a larger batch would update the weights too rarely


def largest_batch_size(session: TrainingSession) -> int:
    """The largest power of two, times the number of processes, with which a training step fits into a GPU's memory.

    At most a twentieth of the training images. The session is not started.

    Raises
    ------
    UdcError
        The training run uses no GPU, or not even one image fits.
    """
    device, ranks, n = session.hardware.device, session.ranks, len(session.train_split)
    if device.type != "cuda":
        raise UdcError("train.batch_size: auto measures the memory of a GPU, but this training run uses "
                       f"{device.type}; set a number, e.g. 64")  # fmt: skip
    size = 0  # of the part of one process
    if ranks.is_first:
        while not size or 2 * size * ranks.world <= n // _MIN_STEPS:
            if not _fits(max(1, 2 * size), session):
                break
            size = max(1, 2 * size)
    size = int(ranks.from_first(str(size).encode()) or 0)
    if not size:
        raise UdcError("train.batch_size: auto: not even one image fits into the memory of the GPU; "
                       "choose a smaller model or data.image_size")  # fmt: skip
    logger.info("train.batch_size: auto is %d", size * ranks.world)
    return size * ranks.world


def _fits(n: int, session: TrainingSession) -> bool:
    """Whether a training step of one process on n images fits into memory; tried on a copy of model and loss."""
    device, shape = session.hardware.device, (session.preprocessing.channels, *[session.preprocessing.size] * 2)
    trial = session.with_train_params(
        batch_size=n, num_frozen_stages=0, sync_batchnorm=False, sharded=False, compile=False
    )
    trial = replace(trial, model=deepcopy(session.model), loss_fn=deepcopy(session.loss_fn), ranks=ALONE)
    try:
        trial.start()
        trial.trained.train()
        labels = torch.zeros(n, dtype=torch.int64, device=device)
        train_step(trial, Batch(torch.zeros(n, *shape, device=device), labels, labels, np.arange(n)), (0, 0, 0))
    except torch.OutOfMemoryError:
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
