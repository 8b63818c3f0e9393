"""What the network sees of the training images, as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from udc_model.data.augmentation import Augmentation, Mixing, derived_seed
from udc_model.data.batches import TrainingBatches
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.params import TrainParams

_IMAGES, _COLUMNS, _SIDE = 32, 8, 64  # at most so many, in so many columns, enlarged to at least so many pixels


def contact_sheet(path: Path, split: PackedSplit, preprocessing: Preprocessing, params: TrainParams, seed: int) -> None:
    """Write the first images of the first epoch as a PNG: cropped, mirrored, recoloured, erased and mixed."""
    data = TrainingBatches(
        split, preprocessing, Augmentation.of(params), params.batch_size, seed, params.sampling_power
    )
    images, targets = data.epoch(0).load(0, torch.device("cpu"))
    torch.manual_seed(derived_seed(seed, 0, 0))  # as the first step
    mixed = Mixing(params.mixup, params.cutmix)(images, targets)[0][:_IMAGES]
    pixels = (preprocessing.denormalise(mixed) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    times = -(-_SIDE // pixels.shape[1])
    tiles = pixels.repeat(times, axis=1).repeat(times, axis=2)
    tiles = np.pad(tiles, ((0, -len(tiles) % _COLUMNS), (2, 2), (2, 2), (0, 0)), constant_values=255)
    rows, side = len(tiles) // _COLUMNS, tiles.shape[1]
    sheet = tiles.reshape(rows, _COLUMNS, side, side, 3).swapaxes(1, 2).reshape(rows * side, _COLUMNS * side, 3)
    Image.fromarray(sheet).save(path, optimize=False)
