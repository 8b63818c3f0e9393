"""Explanations of test images: saliency maps and similar training images, chosen so that no cost changes them.

The report shows those of the images that it shows. Which images are explained follows from the model and the data
alone: an evaluation with other costs finds them stored, does not run the model, and gives the same page whether they
were stored or not. Few images of a large test split are explained; ``udc explain`` explains the others.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.errors import UdcError
from udc_model.evaluation.tables import REFERRED
from udc_model.evaluation.unfamiliar import LEAST_FAMILIAR
from udc_model.files import atomic_file

MOST_IMAGES, MOST_CLASSES = 128, 8  # explained, and classes of each
MOST_BY_GRADIENT, CLASSES_BY_GRADIENT = 16, 2  # the same for maps that take 12 passes each
SHOWN = 12  # images of each kind in the report
_UNFAMILIAR = 12
_TABLES = ("costliest_mistakes.csv", REFERRED, LEAST_FAMILIAR)


@dataclass(frozen=True)
class Explanations:
    """Explanations of E images for T classes each; row -1 is no image.

    Parameters
    ----------
    rows : (E,) rows of the images in the test split.
    classes : (E, T) class indices, the most probable first.
    maps : (E, T, h, w) saliency maps, 255 for 1.
    neighbours : (E, T) row in the training split of the most similar reference of the class.
    size : side of the centre of a prepared image that a map covers, pixels.
    by_gradient : whether the maps are those of SmoothGrad, not of Grad-CAM.
    """

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    maps: NDArray[np.uint8]
    neighbours: NDArray[np.int64]
    size: int
    by_gradient: bool = False

    def place(self, row: int, class_index: int | None = None) -> tuple[int, int] | None:
        """Where the explanation of a test image for a class is; None is its most probable class. None without one."""
        found = np.flatnonzero(self.rows == row)
        if not len(found):
            return None
        of_class = [0] if class_index is None else np.flatnonzero(self.classes[found[0]] == class_index)
        return (int(found[0]), int(of_class[0])) if len(of_class) else None

    @property
    def method(self) -> str:
        """How the maps were computed, for a person."""
        return "SmoothGrad" if self.by_gradient else "Grad-CAM, in the form of HiResCAM"

    @classmethod
    def joined(cls, parts: Sequence[Explanations]) -> Explanations:
        """The explanations of further images by the same model, in one."""
        rows, classes, maps, neighbours = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("rows", "classes", "maps", "neighbours")
        )
        return cls(rows, classes, maps, neighbours, parts[0].size, parts[0].by_gradient)

    def save(self, path: Path) -> None:
        """Write a file that `load` reads; :class:`OSError` if that is not possible."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch, scratch.open("wb") as handle:
            np.savez(handle, **{name: np.asarray(value) for name, value in vars(self).items()})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Explanations:
        """Read a file; `FileNotFoundError` if there is none, and :class:`UdcError` if it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                rows, classes, neighbours = (file[name].astype(np.int64) for name in ("rows", "classes", "neighbours"))
                maps, size, by_gradient = file["maps"].astype(np.uint8), int(file["size"]), bool(file["by_gradient"])
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UdcError(f"{path}: cannot be read ({error}); delete it") from None
        if not (maps.ndim == 4 and maps.shape[:2] == classes.shape == neighbours.shape and len(rows) == len(classes)):
            raise UdcError(f"{path}: is damaged; delete it")
        return cls(rows, classes, maps, neighbours, size, by_gradient)


def explained_rows(
    logits: NDArray[np.floating], labels: NDArray[np.int64], distances: NDArray[np.floating], count: int
) -> NDArray[np.int64]:
    """The test images that are explained, at most ``count``: all, or the ones that a report is most likely to show.

    Those are the least familiar ones, which no cost changes. Then, in turn, the image of each class whose label is
    least probable among those that remain, because a costly mistake is an image of a costly class whose probability is
    low; and the image whose most probable class is least probable, because such images are referred.

    Parameters
    ----------
    logits, labels, distances : (N, K), (N,) and (N,) of the test split.
    """
    n = len(labels)
    if n <= count:
        return np.arange(n, dtype=np.int64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    p /= p.sum(axis=1, keepdims=True)
    of_label = p[np.arange(n), labels]
    strange = np.lexsort((np.arange(n), -distances))[:_UNFAMILIAR]
    by_label = np.lexsort((np.arange(n), of_label))
    rank = np.empty(n, np.int64)  # among the images of the class
    for label in np.unique(labels):
        of_class = by_label[labels[by_label] == label]
        rank[of_class] = np.arange(len(of_class))
    wrong = np.lexsort((np.arange(n), of_label, rank))
    unsure = np.lexsort((np.arange(n), p.max(axis=1)))
    in_turn = [row for k in range(count) for row in (*wrong[2 * k : 2 * k + 2], unsure[k])]
    return np.sort(np.array(list(dict.fromkeys([*strange, *in_turn]))[:count], np.int64))


def explained_classes(logits: NDArray[np.floating], needed: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The classes (E, T) for which images are explained: the most probable one, those needed, the next most probable.

    T is ``count``, at least the number of needed classes and one more, and at most the number of classes.

    Parameters
    ----------
    logits : (E, K) of the images.
    needed : (E, n) class indices.
    """
    order = np.argsort(-logits, axis=1, kind="stable")
    in_order = np.concatenate([order[:, :1], needed, order], axis=1)
    count = min(max(count, 1 + needed.shape[1]), logits.shape[1])
    return np.array([list(dict.fromkeys(row))[:count] for row in in_order.tolist()], np.int64)


def shown_rows(folder: Path) -> NDArray[np.int64]:
    """The test images that the report explains: costliest mistakes, referred and least familiar ones.

    Parameters
    ----------
    folder : of the test split in an evaluation folder.
    """
    tables = [pd.read_csv(folder / name, usecols=["row"], nrows=SHOWN) for name in _TABLES if (folder / name).is_file()]
    rows = [table["row"].to_numpy(np.int64) for table in tables]
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows]))
