"""The batches of a training: which image comes when is a pure function of (seed, epoch, step)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from udc_model.data.augmentation import Augmentation, EpochDraws, training_input
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing

_ORDER = 1  # stream of random numbers


def epoch_order(labels: NDArray[np.int64], seed: int, epoch: int, power: float = 1.0) -> NDArray[np.intp]:
    """As many sample indices as there are ``labels`` (N,), shuffled.

    A class with n images has a share in proportion to ``n ** power`` (Kang et al. 2020, equation 1): with 1 each image
    comes once, with 0 all classes are equally frequent. Within a class no image comes twice more often than another.
    """
    rng = np.random.default_rng([seed, _ORDER, epoch])
    if power == 1:
        return rng.permutation(len(labels))
    counts = np.bincount(labels)
    shares = np.where(counts > 0, counts.clip(1) ** power, 0.0)
    # whole numbers that add up to N and are right on average: a random offset on the cumulative shares
    bounds = np.floor(np.concatenate([[0.0], np.cumsum(shares) / shares.sum() * len(labels)]) + rng.random())
    bounds[-1] = bounds[0] + len(labels)
    chosen = []
    for label, wanted in enumerate(np.diff(bounds).astype(int)):
        members = np.flatnonzero(labels == label)
        rounds = [rng.permutation(members) for _ in range(-(-wanted // len(members)))] if wanted else []
        chosen += [np.concatenate(rounds)[:wanted]] if rounds else []
    return rng.permutation(np.concatenate(chosen))


@dataclass(frozen=True)
class EpochBatches:
    """The batches of one epoch.

    Batch sizes differ by at most one and never exceed ``batch_size``: no last batch of one sample that BatchNorm could
    not use, and no sample dropped however small the set.
    """

    split: PackedSplit
    preprocessing: Preprocessing
    augmentation: Augmentation
    indices: list[NDArray[np.intp]]
    repeats: list[NDArray[np.intp]]
    draws: EpochDraws

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Augmented, normalised images (N, 3, size, size) float32 and targets (N,) of a step (from 0)."""
        indices, repeats = self.indices[step], self.repeats[step]
        stored = torch.from_numpy(self.split.images[indices])  # copied out of the memory map
        if device.type == "cuda":
            stored = stored.pin_memory()
        images = training_input(stored.to(device, non_blocking=True), indices, repeats, self.draws, self.augmentation,
                                self.preprocessing)  # fmt: skip
        return images, torch.from_numpy(self.split.labels[indices]).to(device)

    def paths(self, step: int) -> list[str]:
        """The files that the images of a step came from."""
        return [self.split.paths[index] for index in self.indices[step]]


@dataclass(frozen=True)
class TrainingBatches:
    """The batches of all epochs; ``power`` as in `epoch_order`."""

    split: PackedSplit
    preprocessing: Preprocessing
    augmentation: Augmentation
    batch_size: int
    seed: int
    power: float = 1.0

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.split) // self.batch_size)

    def epoch(self, epoch: int) -> EpochBatches:
        """The batches of an epoch (from 0)."""
        order = epoch_order(self.split.labels, self.seed, epoch, self.power)
        repeats = pd.Series(order).groupby(order).cumcount().to_numpy()
        return EpochBatches(
            self.split, self.preprocessing, self.augmentation,
            np.array_split(order, self.steps), np.array_split(repeats, self.steps),
            EpochDraws(len(self.split), self.seed, epoch, int(repeats.max()) + 1),
        )  # fmt: skip
