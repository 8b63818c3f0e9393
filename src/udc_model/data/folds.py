"""The folds of a cross-validation: the prepared images with other splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.config import SPLITS, SplitShares
from udc_model.data.packed import PackedDataset, write_packed
from udc_model.data.scratch import PixelScratch
from udc_model.data.sources.records import join_for_message
from udc_model.data.splits import assign_folds, assign_splits, connected_components
from udc_model.errors import UdcError

_BLOCK = 1024  # images copied at a time
# entries of dataset.json that each fold has anew, and those about shards, since a fold has arrays of pixels
_OF_THE_SPLITS = ("digest", "images", "counts", "preprocessing", "packed", "decoders")


@dataclass(frozen=True)
class Fold:
    """One fold: the split of each image of the pool.

    Attributes
    ----------
    repeat, number : from 1.
    splits : (N,) index into `SPLITS` of each image; the images of the fold itself are the test split.
    """

    repeat: int
    number: int
    splits: NDArray[np.intp]

    @property
    def name(self) -> str:
        """Name of the fold in paths and tags."""
        return f"repeat-{self.repeat}-fold-{self.number}"

    def counts(self, labels: NDArray[np.intp], classes: Sequence[str]) -> dict[str, dict[str, int]]:
        """Images by split and class, of the classes (N,) of the images."""
        return {split: {name: int(((self.splits == s) & (labels == k)).sum()) for k, name in enumerate(classes)}
                for s, split in enumerate(SPLITS)}  # fmt: skip


@dataclass(frozen=True)
class ImagePool:
    """The N prepared images that folds are made of: all, but those of a test split that the data prescribes.

    Attributes
    ----------
    dataset : the prepared data.
    rows : of its manifest, in the order of splits and rows.
    units : (N,) component of each image: images of a group, or with the same pixels, are not divided.
    kept_out : number of images of the prescribed test split.
    """

    dataset: PackedDataset
    rows: pd.DataFrame
    units: NDArray[np.intp]
    kept_out: int

    @classmethod
    def of(cls, dataset: PackedDataset) -> ImagePool:
        """The pool of a prepared data set."""
        manifest = dataset.manifest
        has_own_test = "test" in dataset.info.get("prescribed_splits", [])
        rows = manifest[manifest["split"] != "test"] if has_own_test else manifest
        order = rows["split"].map(SPLITS.index)
        rows = rows.assign(place=order).sort_values(["place", "row"], ignore_index=True).drop(columns="place")
        groups = [group or None for group in rows["group"]]
        units = connected_components(len(rows), [groups, list(rows["sha256"])])
        return cls(dataset, rows, units, len(manifest) - len(rows))

    @property
    def labels(self) -> NDArray[np.intp]:
        """(N,) class index of each image."""
        index = {name: k for k, name in enumerate(self.dataset.classes)}
        return np.array([index[name] for name in self.rows["label"]], dtype=np.intp)

    def folds(self, folds: int, repeats: int, shares: SplitShares, seed: int) -> list[Fold]:
        """The folds of all repeats, stratified by class; those of a repeat depend on no other repeat.

        The images outside a fold are its train, validation and calibration split, by ``shares``.

        Raises
        ------
        UdcError
            A class has too few images, or groups, for a split of a fold.
        """
        labels, found = self.labels, []
        for repeat in range(1, repeats + 1):
            fold_of_image = assign_folds(labels, self.units, folds, [seed, repeat])
            for k in range(folds):
                is_test = fold_of_image == k
                fixed = ["test" if each else None for each in is_test]
                splits = assign_splits(labels, self.units, fixed, shares, seed_of(seed, repeat, k + 1))
                # of an empty fold, the test split would be drawn from the other images
                found.append(Fold(repeat, k + 1, splits if is_test.any() else np.zeros_like(splits)))
        self._check(found, folds, shares)
        return found

    def _check(self, found: Sequence[Fold], folds: int, shares: SplitShares) -> None:
        """Raise an error unless every split of every fold has an image of every class."""
        labels, problems = self.labels, []
        used = [k for k, name in enumerate(SPLITS) if getattr(shares, name) > 0]
        for index, name in enumerate(self.dataset.classes):
            is_class = labels == index
            missing = next((f"{SPLITS[k]} of fold {fold.number}" for fold in found for k in used
                            if not (is_class & (fold.splits == k)).any()), None)  # fmt: skip
            if missing:
                units = len(np.unique(self.units[is_class]))
                in_units = "" if units == is_class.sum() else f" in {units} groups or sets of copies"
                problems.append(f"{name}: {is_class.sum()} image(s){in_units}, none for {missing}")
        if problems:
            raise UdcError(f"--folds: too few images for {folds} folds (each split of a fold needs an image, or group, "
                           "of every class):\n  " + join_for_message(problems, "\n  ")
                           + "\nLower --folds, add images, or change data.splits.")  # fmt: skip

    def write_images(self, path: Path) -> None:
        """Write the prepared images one after the other into a file, from which `write` takes those of a fold."""
        with path.open("wb") as handle:
            for split in SPLITS:
                if (self.rows["split"] == split).any():
                    images = self.dataset.split(split).images
                    for start in range(0, len(images), _BLOCK):
                        handle.write(np.ascontiguousarray(images[start : start + _BLOCK]).tobytes())

    def write(self, fold: Fold, folder: Path, images: Path) -> None:
        """Write the prepared data of a fold into an existing folder; ``images`` is from `write_images`."""
        table = self.rows.assign(split=[SPLITS[k] for k in fold.splits], scratch_row=np.arange(len(self.rows)))
        rows = [{str(key): value for key, value in row.items()}
                for row in table.sort_values("path").to_dict("records")]  # fmt: skip
        info = {key: value for key, value in self.dataset.info.items() if key not in _OF_THE_SPLITS}
        note = f"fold {fold.number} of repeat {fold.repeat} of a cross-validation"
        notes = [note, *info.get("notes", [])]
        write_packed(folder, PixelScratch(images), rows, self.dataset.preprocessing, info | {"notes": notes})


def seed_of(seed: int, repeat: int, fold: int) -> int:
    """A seed for one fold, below 2**32, which no other fold has but by chance."""
    return int(np.random.SeedSequence([seed, repeat, fold]).generate_state(1)[0])
