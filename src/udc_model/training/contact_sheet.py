"""What the network sees of the training images, as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from udc_model.config import TrainParams
from udc_model.data.augmentation import Mixing
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.training.loop import training_batches

_IMAGES, _COLUMNS, _SIDE = 32, 8, 64  # at most so many, in so many columns, enlarged to at least so many pixels


def contact_sheet(path: Path, split: PackedSplit, preprocessing: Preprocessing, params: TrainParams, seed: int) -> None:
    """Write the first images of the first epoch as a PNG: cropped, mirrored, recoloured, erased and mixed."""
    params = params.model_copy(update={"loader_workers": 0})
    _, batch = next(training_batches(split, preprocessing, params, seed).load(0, 0, torch.device("cpu")))
    mixed = Mixing(params.mixup, params.cutmix)(batch.images, batch.targets, seed, 0, 0)[0][:_IMAGES]
    pixels = (preprocessing.denormalise(mixed) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    times = -(-_SIDE // pixels.shape[1])
    tiles = pixels.repeat(times, axis=1).repeat(times, axis=2)
    tiles = np.pad(tiles, ((0, -len(tiles) % _COLUMNS), (2, 2), (2, 2), (0, 0)), constant_values=255)
    rows, side = len(tiles) // _COLUMNS, tiles.shape[1]
    sheet = tiles.reshape(rows, _COLUMNS, side, side, 3).swapaxes(1, 2).reshape(rows * side, _COLUMNS * side, 3)
    Image.fromarray(sheet).save(path, optimize=False)
