"""A contact sheet: the augmented training images that the network gets, as one image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from udc_model.data.augmentation import Mixing
from udc_model.training.distribution import ALONE
from udc_model.training.session import TrainingSession

_MAX_IMAGES, _COLUMNS, _MIN_SIDE = 32, 8, 64  # images are enlarged to at least _MIN_SIDE pixels


def contact_sheet(path: Path, session: TrainingSession) -> None:
    """Write the first images of the first epoch as a PNG: cropped, mirrored, recoloured, erased and mixed."""
    params, preprocessing = session.params.train, session.preprocessing
    batches = replace(session.with_train_params(loader_workers=0), ranks=ALONE).build_batches()
    _, batch = next(batches.load(0, 0, torch.device("cpu")))
    mixing = Mixing(params.mixup, params.cutmix)
    mixed = mixing(batch.images, batch.targets, session.params.seed, 0, 0)[0][:_MAX_IMAGES]
    pixels = (preprocessing.denormalise(mixed) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    factor = -(-_MIN_SIDE // pixels.shape[1])
    tiles = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    tiles = np.pad(tiles, ((0, -len(tiles) % _COLUMNS), (2, 2), (2, 2), (0, 0)), constant_values=255)
    rows, side = len(tiles) // _COLUMNS, tiles.shape[1]
    sheet = tiles.reshape(rows, _COLUMNS, side, side, -1).swapaxes(1, 2).reshape(rows * side, _COLUMNS * side, -1)
    Image.fromarray(sheet.squeeze()).save(path, optimize=False)
