"""The training images that a network finds most similar to an image, by the features that it computes anyway."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from udc_model.decisions.familiarity import evenly_spaced
from udc_model.errors import UdcError
from udc_model.files import atomic_file
from udc_model.inference.feature_statistics import MOST_REFERENCES, directions_of

if TYPE_CHECKING:
    from udc_model.data.packed import PackedSplit
    from udc_model.inference.classifier import TrainedClassifier

MOST_ADDED = 50  # references in all for classes that have few
_FEWEST_OF_CLASS = 5
_BLOCK = 256  # images whose distances are computed at a time


@dataclass(frozen=True)
class TrainingFeatures:
    """Features of some training images, the references, and which images these are.

    Parameters
    ----------
    rows : (n,) rows of the references in the training split.
    labels : (n,) their class indices.
    features : (n, M, D) of M networks, see `TrainedClassifier.features_of_stored`.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    features: NDArray[np.float32]

    def nearest(
        self, features: NDArray[np.float32], count: int = 1, class_index: int | NDArray[np.integer] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The references nearest to images, the nearest first.

        The distance is the Euclidean distance between the directions of the features, see `directions_of`, averaged
        over the networks: from 0 to 2.

        Parameters
        ----------
        features : (N, M, D) of the images, by the same networks in the same precision.
        count : references of each image.
        class_index : only references of this class, the same one or one (N,) for each image; None: of any class.

        Returns
        -------
        Rows in the training split (N, count), -1 where there are fewer references, and the distances (N, count), which
        are infinite there.
        """
        from threadpoolctl import threadpool_limits

        n, references = len(features), self._reference_directions
        of_class = None if class_index is None else np.broadcast_to(class_index, n)
        rows = np.full((n, count), -1, np.int64)
        distances = np.full((n, count), np.inf, np.float32)
        for start in range(0, n, _BLOCK):
            part = slice(start, min(start + _BLOCK, n))
            with threadpool_limits(1):  # with more threads, the last bits depend on the load of the machine
                block = _distances(_directions(features[part]), references)
            if of_class is not None:
                block[self.labels[None] != of_class[part, None]] = np.inf
            order = np.argsort(block, axis=1, kind="stable")[:, :count]
            chosen = np.take_along_axis(block, order, axis=1)
            width = order.shape[1]
            rows[part, :width] = np.where(np.isfinite(chosen), self.rows[order], -1)
            distances[part, :width] = chosen
        return rows, distances

    @cached_property
    def _reference_directions(self) -> NDArray[np.float64]:
        return _directions(self.features)

    def save(self, path: Path) -> None:
        """Write a file that `load` reads; :class:`OSError` if that is not possible."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch, scratch.open("wb") as handle:
            np.savez(handle, rows=self.rows, labels=self.labels, features=self.features)

    @classmethod
    def load(cls, path: Path) -> TrainingFeatures:
        """Read a file; `FileNotFoundError` if there is none, and :class:`UdcError` if it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                rows, labels, features = (file[name] for name in ("rows", "labels", "features"))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UdcError(f"{path}: cannot be read ({error}); delete it") from None
        if not (rows.shape == labels.shape == features.shape[:1] and features.ndim == 3):
            raise UdcError(f"{path}: is damaged; delete it")
        return cls(rows.astype(np.int64), labels.astype(np.int64), features.astype(np.float32))


def _directions(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """The directions (M, n, D) of features (n, M, D)."""
    return np.stack([directions_of(features[:, m].astype(np.float64)) for m in range(features.shape[1])])


def _distances(directions: NDArray[np.float64], references: NDArray[np.float64]) -> NDArray[np.float32]:
    """Mean distances (N, n) between directions (M, N, D) and (M, n, D), of length 1 each."""
    products = np.stack([a @ b.T for a, b in zip(directions, references, strict=True)])
    distances: NDArray[np.float32] = np.sqrt(np.maximum(2 - 2 * products, 0)).mean(axis=0).astype(np.float32)
    return distances


def reference_rows(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The training images that are references: `MOST_REFERENCES`, evenly spaced, then more of classes with few.

    A class with fewer than 5 among the first gets up to 5, evenly spaced, as long as no more than `MOST_ADDED` images
    are added; the classes with fewest references first.

    Parameters
    ----------
    labels : (N,) of the training split.
    """
    first = evenly_spaced(len(labels), MOST_REFERENCES)
    counts = np.bincount(labels[first], minlength=int(labels.max(initial=-1)) + 1)
    added: list[int] = []
    for label in np.argsort(counts, kind="stable"):
        others = np.setdiff1d(np.flatnonzero(labels == label), first)
        chosen = others[evenly_spaced(len(others), max(_FEWEST_OF_CLASS - int(counts[label]), 0))]
        added += chosen[: MOST_ADDED - len(added)].tolist()
        if counts[label] >= _FEWEST_OF_CLASS or len(added) >= MOST_ADDED:
            break
    return np.concatenate([first, np.array(added, np.int64)]).astype(np.int64)


def compute_training_features(classifier: TrainedClassifier, split: PackedSplit, batch_size: int) -> TrainingFeatures:
    """The features of `reference_rows` of the training split; those of the evenly spaced images are computed first.

    They are computed by themselves, so that the images that are added do not change their last bits.
    """
    rows, label = reference_rows(split.labels), "features of training images"
    parts = [part for part in (rows[:MOST_REFERENCES], rows[MOST_REFERENCES:]) if len(part)]
    features = [classifier.features_of_stored(split.images[part], batch_size, label) for part in parts]
    return TrainingFeatures(rows, split.labels[rows], np.concatenate(features))
