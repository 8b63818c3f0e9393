"""Examples of augmented training images in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from udc_model.data.augmentation import Mixing
from udc_model.training.distribution import ALONE
from udc_model.training.session import TrainingSession

_IMAGES, _COLUMNS, _SIDE = 32, 8, 64  # number of images at most, of columns, and pixels of an image's side at least


def contact_sheet(path: Path, session: TrainingSession) -> None:
    """Write the first images of the first epoch, as the model gets them, to a PNG file."""
    params = session.params.model_copy(update={"loader_workers": 0})
    batches = replace(session, params=params, ranks=ALONE).batches
    _, batch = next(batches.load(0, 0, torch.device("cpu")))
    mixed = Mixing(params.mixup, params.cutmix)(batch.images, batch.targets, session.seed, 0, 0)[0][:_IMAGES]
    inputs = session.preprocessing.denormalise(mixed)
    pixels = (inputs * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    times = -(-_SIDE // pixels.shape[1])
    tiles = pixels.repeat(times, axis=1).repeat(times, axis=2)
    tiles = np.pad(tiles, ((0, -len(tiles) % _COLUMNS), (2, 2), (2, 2), (0, 0)), constant_values=255)
    rows, side = len(tiles) // _COLUMNS, tiles.shape[1]
    sheet = tiles.reshape(rows, _COLUMNS, side, side, 3).swapaxes(1, 2).reshape(rows * side, _COLUMNS * side, 3)
    Image.fromarray(sheet).save(path, optimize=False)
