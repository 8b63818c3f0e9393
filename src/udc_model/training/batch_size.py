"""The batch size that fits into a GPU's memory."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace

import torch

from udc_model.data.batches import Batch
from udc_model.errors import UdcError
from udc_model.training.distribution import ALONE
from udc_model.training.loop import train_step
from udc_model.training.session import TrainingSession

logger = logging.getLogger(__name__)

_FEWEST_STEPS = 20  # of an epoch: a larger batch would update the weights too rarely


def largest_batch_size(session: TrainingSession) -> int:
    """The largest power of two, times the number of processes, with which a step fits into a GPU's memory.

    At most a twentieth of the training images, so that an epoch has enough steps.

    Raises
    ------
    UdcError
        The training run is not on a GPU, or not even one image fits.
    """
    if session.hardware.device.type != "cuda":
        raise UdcError("train.batch_size: auto measures a GPU's memory, but training runs on "
                       f"{session.hardware.device.type}; give a number, as 64")  # fmt: skip
    ranks, size = session.ranks, 0
    if ranks.is_first:
        while 2 * size * ranks.world <= len(session.train) // _FEWEST_STEPS or not size:
            if not _fits(max(1, 2 * size), session):
                break
            size = max(1, 2 * size)
    size = int(ranks.from_first(str(size).encode()) or 0)
    if not size:
        raise UdcError("train.batch_size: auto: not even one image fits into the GPU's memory; "
                       "choose a smaller model or data.image_size")  # fmt: skip
    logger.info("train.batch_size: auto is %d", size * ranks.world)
    return size * ranks.world


def _fits(n: int, session: TrainingSession) -> bool:
    """Whether a step with n images fits into memory, on a copy of the model."""
    trial = replace(session, model=deepcopy(session.model), loss_fn=deepcopy(session.loss_fn), ranks=ALONE,
                    params=session.params.model_copy(update={"sharded": False, "compile": False}))  # fmt: skip
    device, side = session.hardware.device, session.preprocessing.size
    try:
        trial.state.model.train()
        labels = torch.zeros(n, dtype=torch.int64, device=device)
        train_step(trial, Batch(torch.zeros(n, 3, side, side, device=device), labels, labels), (0, 0, 0))
    except torch.OutOfMemoryError:
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
