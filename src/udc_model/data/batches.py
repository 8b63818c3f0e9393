"""Training batches. Their composition and order are a pure function of (seed, epoch, step)."""

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
from udc_model.data.background import computed_ahead
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError

_ORDER = 1  # identifier of a stream of random numbers, see augmentation.py


def epoch_order(labels: NDArray[np.int64], seed: int, epoch: int, power: float = 1.0) -> NDArray[np.intp]:
    """Draw the shuffled sample indices of an epoch.

    The share of a class with n images is proportional to ``n ** power`` (Kang et al. 2020, equation 1). Within a class
    the numbers of occurrences of two images differ by at most one.

    Parameters
    ----------
    labels : (N,) class index of each image.
    seed, epoch : determine the random numbers.
    power : in [0, 1]; with 1 each image occurs once, with 0 all classes are equally frequent.

    Returns
    -------
    (N,) sample indices.
    """
    rng = np.random.default_rng([seed, _ORDER, epoch])
    if power == 1:
        return rng.permutation(len(labels))
    counts = np.bincount(labels)
    shares = np.where(counts > 0, counts.clip(1) ** power, 0.0)
    # A random offset on the cumulative shares gives integers that sum to N and have the exact shares as expectation.
    bounds = np.floor(np.concatenate([[0.0], np.cumsum(shares) / shares.sum() * len(labels)]) + rng.random())
    bounds[-1] = bounds[0] + len(labels)
    chosen = []
    for label, n_draws in enumerate(np.diff(bounds).astype(int)):
        members = np.flatnonzero(labels == label)
        rounds = [rng.permutation(members) for _ in range(-(-n_draws // len(members)))] if n_draws else []
        chosen += [np.concatenate(rounds)[:n_draws]] if rounds else []
    return rng.permutation(np.concatenate(chosen))


@dataclass(frozen=True)
class Batch:
    """One step's batch, as one process sees it.

    Attributes
    ----------
    images : (n, C, size, size) float32, the part of the batch that this process trains on; or their features (n, D),
        see `TrainingBatches`.
    targets : (n,) class indices of ``images``.
    all_targets : (N,) class indices of the complete batch.
    all_indices : (N,) sample indices of the complete batch.
    overlap : number of leading images that only serve as partners of `Mixing`.
    """

    images: Tensor
    targets: Tensor
    all_targets: Tensor
    all_indices: NDArray[np.intp]
    overlap: int = 0


@dataclass(frozen=True)
class EpochPlan:
    """The composition of an epoch's batches and the random numbers for their augmentation.

    Batch sizes differ by at most one and never exceed ``batch_size``. So no sample is dropped, and the last batch does
    not have a single sample, which BatchNorm cannot use.

    Attributes
    ----------
    indices : sample indices of each batch.
    repeats : for each of these samples, how often it occurred earlier in the epoch.
    draws : random numbers for the augmentation.
    """

    indices: list[NDArray[np.intp]]
    repeats: list[NDArray[np.intp]]
    draws: EpochDraws


@dataclass
class TrainingBatches(Dataset[Tensor]):
    """The training batches of all epochs, as a data set indexed by (epoch, step).

    Parameters
    ----------
    split : the training images.
    batch_size : maximum number of images per batch, over all processes.
    power : as in `epoch_order`.
    workers : number of processes that read stored images ahead and apply `Augmentation.apply_per_image`; 0 does it in
        this process.
    rank, world : this process gets part ``rank`` of the ``world`` parts of each batch.
    overlap : include the image before this part as well, the partner of the part's first image in `Mixing`.

    Attributes
    ----------
    features : (N, D) float32 of the training images, which batches have instead of images; None loads images.
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
        self.features: Tensor | None = None

    @property
    def steps(self) -> int:
        """Number of batches per epoch."""
        return -(-len(self.split) // self.batch_size)

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch, counted from 0."""
        if self._planned is None or self._planned[0] != epoch:
            order = epoch_order(self.split.labels, self.seed, epoch, self.power)
            repeats = pd.Series(order).groupby(order).cumcount().to_numpy()
            draws = EpochDraws(len(self.split), self.seed, epoch, int(repeats.max()) + 1)
            indices, counts = np.array_split(order, self.steps), np.array_split(repeats.astype(np.intp), self.steps)
            self._planned = epoch, EpochPlan(indices, counts, draws)
        return self._planned[1]

    def _local(self, epoch: int, step: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return indices and repeats of the images that this process loads."""
        plan = self.plan(epoch)
        positions = np.arange(len(plan.indices[step]))
        local = np.array_split(positions, self.world)[self.rank]
        if self.overlap:
            local = np.concatenate([[positions[local[0] - 1]], local])
        return plan.indices[step][local], plan.repeats[step][local]

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        """Return the prepared images (n, S, S, C) uint8 of (epoch, step), after the per-image transforms.

        Reseeds torch's global generator if there are such transforms.
        """
        indices, repeats = self._local(*key)
        stored = torch.from_numpy(self.split.images[indices])  # indexing copies out of the memory map
        if not self.augmentation.has_per_image_transforms:
            return stored
        return self.augmentation.apply_per_image(stored, self.plan(key[0]).draws.seeds(repeats, indices))

    def load(self, epoch: int, start: int, device: torch.device) -> Iterator[tuple[int, Batch]]:
        """Yield the steps of an epoch from step ``start`` on, each with its augmented, normalised batch."""
        keys = [(epoch, step) for step in range(start, self.steps)]
        if self.features is not None:
            for _, step in keys:
                yield step, self._batch(epoch, step, self.features[self._local(epoch, step)[0]].to(device))
            return
        for (_, step), stored in zip(keys, self._stored(keys, device), strict=True):
            yield step, self._batch(epoch, step, self._input(epoch, step, stored, device))

    def _stored(self, keys: list[tuple[int, int]], device: torch.device) -> Iterator[Tensor]:
        """The prepared images of the steps; for a GPU in pinned memory, from which it copies them by itself."""
        has_gpu = device.type == "cuda"
        if self.workers:
            return self._loaded_by_workers(keys, has_gpu)
        loaded = map(self.__getitem__, keys)
        if not has_gpu:
            return loaded
        pinned = (stored.pin_memory() for stored in loaded)
        # the transforms of single images use torch's global generator, as the training step does
        return pinned if self.augmentation.has_per_image_transforms else computed_ahead(pinned)

    def _loaded_by_workers(self, keys: list[tuple[int, int]], is_pinned: bool) -> Iterator[Tensor]:
        try:
            yield from self._loader(keys, is_pinned)
        except UdcError as error:  # with the worker's traceback in its message
            raise UdcError(str(error).rpartition(f"{UdcError.__name__}: ")[2].strip()) from None

    def _loader(self, keys: list[tuple[int, int]], is_pinned: bool) -> DataLoader[Tensor]:
        # Forked processes share the memory map; spawned ones would get a pickled copy.
        start = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        return DataLoader(self, None, sampler=keys, num_workers=self.workers, multiprocessing_context=start,
                          pin_memory=is_pinned)  # fmt: skip

    def _input(self, epoch: int, step: int, stored: Tensor, device: torch.device) -> Tensor:
        indices, repeats = self._local(epoch, step)
        return training_input(stored.to(device, non_blocking=True), indices, repeats, self.plan(epoch).draws,
                              self.augmentation, self.preprocessing)  # fmt: skip

    def _batch(self, epoch: int, step: int, images: Tensor) -> Batch:
        indices, _ = self._local(epoch, step)
        labels, device = self.split.labels, images.device
        targets = torch.from_numpy(labels[indices]).to(device)
        all_indices = self.plan(epoch).indices[step]
        all_targets = torch.from_numpy(labels[all_indices]).to(device)
        return Batch(images, targets, all_targets, all_indices, int(self.overlap))

    def paths(self, epoch: int, step: int) -> list[str]:
        """Return the file paths of the images of a step."""
        return [self.split.paths[index] for index in self.plan(epoch).indices[step]]
