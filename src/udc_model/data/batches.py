"""The batches of a training: which image comes when is a pure function of (seed, epoch, step)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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
class Batch:
    """One step's ``images`` (n, 3, size, size) float32 and ``targets`` (n,), of the part that this process trains on,
    and ``all_targets`` (N,) of the whole batch; the first ``overlap`` images are there only to be mixed with."""

    images: Tensor
    targets: Tensor
    all_targets: Tensor
    overlap: int = 0


@dataclass(frozen=True)
class EpochPlan:
    """Which images come in each step of an epoch, how often each came before, and the draws behind its augmentation.

    Batch sizes differ by at most one and never exceed ``batch_size``: no last batch of one sample that BatchNorm could
    not use, and no sample dropped however small the set.
    """

    indices: list[NDArray[np.intp]]
    repeats: list[NDArray[np.intp]]
    draws: EpochDraws


@dataclass
class TrainingBatches(Dataset[Tensor]):
    """The batches of all epochs.

    Parameters
    ----------
    power : as in `epoch_order`.
    workers : processes that read stored images ahead, and apply what torchvision does to them one by one.
    rank, world : this process gets part ``rank`` of the ``world`` parts of each batch.
    overlap : its part begins with the image before it too, which `Mixing` mixes with its first one.
    """

    split: PackedSplit
    preprocessing: Preprocessing
    augmentation: Augmentation
    batch_size: int
    seed: int
    power: float = 1.0
    workers: int = 0
    rank: int = 0
    world: int = 1
    overlap: bool = False

    def __post_init__(self) -> None:
        self._planned: tuple[int, EpochPlan] | None = None

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.split) // self.batch_size)

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch (from 0)."""
        if self._planned is None or self._planned[0] != epoch:
            order = epoch_order(self.split.labels, self.seed, epoch, self.power)
            repeats = pd.Series(order).groupby(order).cumcount().to_numpy()
            draws = EpochDraws(len(self.split), self.seed, epoch, int(repeats.max()) + 1)
            indices, counts = np.array_split(order, self.steps), np.array_split(repeats.astype(np.intp), self.steps)
            self._planned = epoch, EpochPlan(indices, counts, draws)
        return self._planned[1]

    def _own(self, epoch: int, step: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Indices and repeats of the images that this process loads."""
        plan = self.plan(epoch)
        places = np.arange(len(plan.indices[step]))
        own = np.array_split(places, self.world)[self.rank]
        if self.overlap:
            own = np.concatenate([[places[own[0] - 1]], own])
        return plan.indices[step][own], plan.repeats[step][own]

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        """The stored squares (n, S, S, 3) uint8 of an epoch's step, recoloured.

        Leaves torch's generator in a state of its own.
        """
        indices, repeats = self._own(*key)
        stored = torch.from_numpy(self.split.images[indices])  # copied out of the memory map
        if not self.augmentation.recolours:
            return stored
        return self.augmentation.recolour(stored, self.plan(key[0]).draws.seeds(repeats, indices))

    def load(self, epoch: int, start: int, device: torch.device) -> Iterator[tuple[int, Batch]]:
        """The steps of an epoch from ``start`` on, each with its augmented, normalised batch."""
        keys = [(epoch, step) for step in range(start, self.steps)]
        ahead = map(self.__getitem__, keys) if not self.workers else iter(self._loader(keys))
        for (_, step), stored in zip(keys, ahead, strict=True):
            yield step, self._batch(epoch, step, stored, device)

    def _loader(self, keys: list[tuple[int, int]]) -> DataLoader[Tensor]:
        # forked: the memory map is shared; pickled, it would be copied
        start = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        return DataLoader(self, None, sampler=keys, num_workers=self.workers, multiprocessing_context=start)

    def _batch(self, epoch: int, step: int, stored: Tensor, device: torch.device) -> Batch:
        if device.type == "cuda":
            stored = stored.pin_memory()
        indices, repeats = self._own(epoch, step)
        images = training_input(stored.to(device, non_blocking=True), indices, repeats, self.plan(epoch).draws,
                                self.augmentation, self.preprocessing)  # fmt: skip
        labels = self.split.labels
        own, whole = (torch.from_numpy(labels[k]).to(device) for k in (indices, self.plan(epoch).indices[step]))
        return Batch(images, own, whole, int(self.overlap))

    def paths(self, epoch: int, step: int) -> list[str]:
        """The files that the images of a step came from."""
        return [self.split.paths[index] for index in self.plan(epoch).indices[step]]
