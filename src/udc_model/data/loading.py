"""Batches from the packed store: order and augmentation are pure functions of (seed, epoch, sample index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing

_ORDER, _AUGMENT = 1, 2  # streams of random numbers that must not meet


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.intp]]:
    """The sample indices of each batch of a training epoch.

    Every sample comes once. Batch sizes differ by at most one and never exceed ``batch_size``: no last batch of one
    sample that BatchNorm could not use, and no sample dropped however small the set.
    """
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(n)
    return np.array_split(order, -(-n // batch_size))


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop and flip of a whole batch at once.

    Parameters
    ----------
    name : ``none``, ``light`` (80 to 100% of the area, square) or ``standard`` (35 to 100%, sides 3:4 to 4:3).
    horizontal_flip : mirror half of the samples.
    """

    name: str
    horizontal_flip: bool

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return self.name != "none" or self.horizontal_flip

    def draws(self, n: int, seed: int, epoch: int) -> NDArray[np.float32]:
        """The random numbers of all n samples in an epoch, (n, 5) in [0, 1): scale, ratio, x, y, flip."""
        return np.random.default_rng([seed, _AUGMENT, epoch]).random((n, 5), dtype=np.float32)

    def __call__(self, images: Tensor, draws: Tensor, size: int) -> Tensor:
        """Crop, resize bilinearly to (N, C, size, size) and flip images (N, C, S, S), by draws (N, 5)."""
        low, log_ratio = {"none": (1.0, 0.0), "light": (0.8, 0.0), "standard": (0.35, float(np.log(4 / 3)))}[self.name]
        area = low + (1 - low) * draws[:, 0]
        ratio = torch.exp((2 * draws[:, 1] - 1) * log_ratio)
        width = (area * ratio).sqrt().clamp(max=1.0)  # as shares of the image's side
        height = (area / ratio).sqrt().clamp(max=1.0)
        left, top = draws[:, 2] * (1 - width), draws[:, 3] * (1 - height)
        sign = torch.where((draws[:, 4] < 0.5) & self.horizontal_flip, -1.0, 1.0)
        theta = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
        theta[:, 0, 0], theta[:, 0, 2] = sign * width, 2 * left + width - 1
        theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
        grid = F.affine_grid(theta, [len(images), images.shape[1], size, size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def gather(split: PackedSplit, indices: NDArray[np.intp]) -> Tensor:
    """Copy stored squares out of the memory map, (len(indices), S, S, 3) uint8."""
    return torch.from_numpy(split.images[indices])


def training_input(stored: Tensor, draws: Tensor, augmentation: Augmentation, preprocessing: Preprocessing) -> Tensor:
    """Stored squares (N, S, S, 3) uint8 to augmented, normalised input (N, 3, size, size) float32."""
    if not augmentation.active:
        return preprocessing.to_input(stored)
    images = stored.permute(0, 3, 1, 2).float() / 255
    return preprocessing.normalise(augmentation(images, draws, preprocessing.size))


def evaluation_batches(images: NDArray[np.uint8], preprocessing: Preprocessing, batch_size: int) -> Iterator[Tensor]:
    """Normalised inputs (n, 3, size, size) of stored squares, in order, nothing drawn."""
    for start in range(0, len(images), batch_size):
        yield preprocessing.to_input(torch.from_numpy(np.array(images[start : start + batch_size])))


@torch.inference_mode()
def compute_logits(
    forward: Callable[[Tensor], Tensor],
    images: NDArray[np.uint8],
    preprocessing: Preprocessing,
    batch_size: int,
    progress: str | None = None,
) -> NDArray[np.float32]:
    """Logits (N, K) of stored squares (N, S, S, 3); ``forward`` maps an input batch to logits.

    ``progress`` names a bar that is shown on a terminal; None shows none.
    """
    parts = []
    with tqdm(total=len(images), desc=progress, unit="img", disable=None if progress else True, leave=False) as bar:
        for batch in evaluation_batches(images, preprocessing, batch_size):
            parts.append(forward(batch).float().cpu())
            bar.update(len(batch))
    return torch.cat(parts).numpy()
