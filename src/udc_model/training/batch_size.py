"""The batch size that fits into a GPU's memory."""

from __future__ import annotations

import logging
from copy import deepcopy

import torch

from udc_model.config import TrainParams
from udc_model.data.batches import Batch
from udc_model.errors import UdcError
from udc_model.models.staged import ImageClassifier
from udc_model.training.distribution import Ranks
from udc_model.training.hardware import Hardware
from udc_model.training.loop import train_step
from udc_model.training.losses import TrainingLoss
from udc_model.training.optimisation import averaged_model
from udc_model.training.state import TrainingState

logger = logging.getLogger(__name__)

_FEWEST_STEPS = 20  # of an epoch: more memory is no reason to learn less often


def largest_batch_size(
    model: ImageClassifier,
    loss_fn: TrainingLoss,
    size: int,
    n: int,
    params: TrainParams,
    hardware: Hardware,
    ranks: Ranks,
) -> int:
    """The largest power of two, times the number of processes, with which a step fits into a GPU's memory.

    At most a twentieth of the ``n`` training images, so that an epoch has some steps; ``size`` is the input's side in
    pixels.

    Raises
    ------
    UdcError
        The training is not on a GPU, or not even one image fits.
    """
    if hardware.device.type != "cuda":
        raise UdcError("train.batch_size: auto measures a GPU's memory, and this training is on "
                       f"{hardware.device.type}; give a number, as 64")  # fmt: skip
    found = 0
    if ranks.is_first:
        while 2 * found * ranks.world <= n // _FEWEST_STEPS or not found:
            if not _fits(max(1, 2 * found), model, loss_fn, size, params, hardware):
                break
            found = max(1, 2 * found)
    found = int(ranks.from_first(str(found).encode()) or 0)
    if not found:
        raise UdcError("train.batch_size: auto: not even one image fits into the GPU's memory; "
                       "choose a smaller model or data.image_size")  # fmt: skip
    logger.info("train.batch_size: auto is %d", found * ranks.world)
    return found * ranks.world


def _fits(
    n: int, model: ImageClassifier, loss_fn: TrainingLoss, size: int, params: TrainParams, hardware: Hardware
) -> bool:
    """Whether a step on n images fits, on a copy of the model."""
    copy = deepcopy(model).to(hardware.device).to(memory_format=hardware.memory_format).train()
    copy.gradient_checkpointing_enable(params.gradient_checkpointing)
    try:
        averaged = averaged_model(copy, params.ema_decay)
        state = TrainingState(copy, averaged, deepcopy(loss_fn), params, hardware, [])
        labels = torch.zeros(n, dtype=torch.int64, device=hardware.device)
        train_step(state, Batch(torch.zeros(n, 3, size, size, device=hardware.device), labels, labels), (0, 0, 0),
                   params, hardware)  # fmt: skip
    except torch.OutOfMemoryError:
        return False
    finally:
        if hardware.device.type == "cuda":
            torch.cuda.empty_cache()
    return True
