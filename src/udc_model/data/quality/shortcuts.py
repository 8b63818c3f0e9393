"""Tests whether the class can be predicted from what should not matter: file, border, mean colours, folder.

Naive Bayes on binned values, which takes milliseconds, is cross-validated on each trait. A class is named if the share
of its images that are recognised exceeds the share of other images taken for it by much, at the lower limit of an
interval that holds for all traits and classes together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.data.quality.traits import StoredTraits
from udc_model.data.sources.records import split_of_name
from udc_model.data.splits import assign_folds

_MOST_IMAGES = 2000  # of a sample
_LEAST_IMAGES = 20  # of a class, or of its groups
_MOST_CLASSES = 50  # the most frequent ones
_FOLDS = 5
_MOST_VALUES = 30  # of a text; the others are one value
_BINS, _PSEUDO_COUNT = 16, 0.5
_ERROR = 0.01  # probability that any class is named although nothing recognises it that well
# Recognised images of the class minus other images taken for it. What a picture shows does change its colours, so they
# must recognise a class nearly always; that a file betrays its class is rarely meant.
_LEAST_BY_FILE, _LEAST_BY_PIXELS = 0.5, 0.8
_LISTED = 3  # classes in a sentence
_PIXELS = ("border pixels", "mean colour", "4 x 4 thumbnail")
_LEAST_SIDE = 48  # pixels of the median short side, below which the thumbnail and the border are most of the image


@dataclass(frozen=True)
class Shortcut:
    """A class that a trait recognises.

    Attributes
    ----------
    trait : what recognises it.
    label : the class.
    recognised, taken : share of the class's images that are recognised, and of other images taken for it.
    least, most : the lower limit of ``recognised`` and the upper limit of ``taken``.
    balanced_accuracy : of the trait, over all classes of the sample.
    n_classes : of the sample.
    """

    trait: str
    label: str
    recognised: float
    taken: float
    least: float
    most: float
    balanced_accuracy: float
    n_classes: int

    def to_text(self) -> str:
        """The class, and how well it is recognised."""
        return (f"{self.label} from the {self.trait}: {self.recognised:.0%} of its images are recognised (at least "
                f"{self.least:.0%}), and {self.taken:.1%} of the others are taken for it (at most "
                f"{self.most:.1%})")  # fmt: skip


def shortcut_summary(shortcuts: Sequence[Shortcut]) -> str:
    """One sentence: how many classes, from what, and the most certain one."""
    traits = list(dict.fromkeys(shortcut.trait for shortcut in shortcuts))
    n_classes, first = len({shortcut.label for shortcut in shortcuts}), shortcuts[0]
    names = " or the ".join(traits)
    return f"{n_classes} of {first.n_classes} classes can be predicted from the {names} alone ({first.to_text()})"


def shortcut_sentences(shortcuts: Sequence[Shortcut]) -> list[str]:
    """One sentence for each trait, the most certain first."""
    sentences = []
    for trait in dict.fromkeys(shortcut.trait for shortcut in shortcuts):
        of_trait = [shortcut for shortcut in shortcuts if shortcut.trait == trait]
        classes = "; ".join(shortcut.to_text().replace(f" from the {trait}", "") for shortcut in of_trait[:_LISTED])
        more = f"; and {len(of_trait) - _LISTED} more classes" if len(of_trait) > _LISTED else ""
        sentences.append(f"from the {trait}, {len(of_trait)} of {of_trait[0].n_classes} classes: {classes}{more}")
    return sentences


def find_shortcuts(
    paths: Sequence[str],
    labels: Sequence[str],
    units: NDArray[np.intp],
    sizes: NDArray[np.intp],
    traits: StoredTraits,
) -> list[Shortcut]:
    """Find the classes that a trait recognises, those by facts about the file first, then the most certain.

    Parameters
    ----------
    paths, labels : of N images.
    units : (N,) group of each image; images of a group are in one fold, and count as one in the intervals.
    sizes : (N, 2) width and height, pixels.
    """
    sample, classes = _sample(labels, units)
    if len(classes) < 2:
        return []
    index = {name: k for k, name in enumerate(classes)}
    y = np.array([index[labels[i]] for i in sample], dtype=np.intp)
    unit = np.unique(units[sample], return_inverse=True)[1].astype(np.intp)
    folds = assign_folds(y, unit, _FOLDS, 0)
    of_trait = {name: values for name, values in _values([paths[i] for i in sample], [labels[i] for i in sample],
                sizes[sample], traits, sample).items() if (values != values[0]).any()}  # fmt: skip
    error = _ERROR / max(1, 2 * len(of_trait) * len(classes))
    found = []
    for trait, values in of_trait.items():
        decided = _cross_validated(values, y, folds, len(classes))
        least = _LEAST_BY_PIXELS if trait in _PIXELS else _LEAST_BY_FILE
        found += [shortcut for shortcut in _recognised(trait, classes, y, decided, unit, error)
                  if shortcut.least - shortcut.most >= least]  # fmt: skip
    return sorted(
        found, key=lambda each: (each.trait in _PIXELS, round(each.most - each.least, 6), each.trait, each.label)
    )


def _sample(labels: Sequence[str], units: NDArray[np.intp]) -> tuple[NDArray[np.intp], list[str]]:
    """Indices of at most `_MOST_IMAGES` images, and their classes, each of which has enough groups."""
    counts = Counter(label for label, _ in {(labels[i], int(unit)) for i, unit in enumerate(units)})
    frequent = [name for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
                if count >= _LEAST_IMAGES][:_MOST_CLASSES]  # fmt: skip
    allowed = np.flatnonzero(np.isin(np.array(labels, dtype=object), frequent))
    chosen = np.sort(np.random.default_rng(0).permutation(allowed)[:_MOST_IMAGES])
    return chosen.astype(np.intp), sorted(frequent)


def _cross_validated(
    values: NDArray[np.float64], y: NDArray[np.intp], folds: NDArray[np.intp], n_classes: int
) -> NDArray[np.intp]:
    """The class that naive Bayes with equal class frequencies decides for each image, fitted on the other folds.

    Each column of ``values`` (n, D) is divided into bins of equally many images.
    """
    bins = np.column_stack([_binned(column) for column in values.T])
    decided = np.full(len(y), -1, dtype=np.intp)
    for fold in range(_FOLDS):
        is_out = folds == fold
        likelihood = np.zeros((int(is_out.sum()), n_classes))
        for column in bins.T:
            counts = np.full((int(column.max()) + 1, n_classes), _PSEUDO_COUNT)
            np.add.at(counts, (column[~is_out], y[~is_out]), 1)
            likelihood += np.log(counts / counts.sum(axis=0))[column[is_out]]
        decided[is_out] = likelihood.argmax(axis=1)
    return decided


def _binned(column: NDArray[np.float64]) -> NDArray[np.intp]:
    """The bin of each value; few different values are a bin each."""
    distinct = np.unique(column)
    edges = distinct if len(distinct) <= _BINS else np.unique(np.quantile(column, np.arange(1, _BINS) / _BINS))
    return np.searchsorted(edges, column).astype(np.intp)


def _recognised(
    trait: str,
    classes: Sequence[str],
    y: NDArray[np.intp],
    decided: NDArray[np.intp],
    unit: NDArray[np.intp],
    error: float,
) -> list[Shortcut]:
    recalls = [float((decided[y == k] == k).mean()) for k in range(len(classes))]
    rows = []
    for k, name in enumerate(classes):
        inside = y == k
        taken = float((decided[~inside] == k).mean())
        least = _limits(recalls[k], len(np.unique(unit[inside])), error)[0]
        most = _limits(taken, len(np.unique(unit[~inside])), error)[1]
        rows.append(Shortcut(trait, name, recalls[k], taken, least, most, float(np.mean(recalls)), len(classes)))
    return rows


def _limits(share: float, n: int, error: float) -> tuple[float, float]:
    """One-sided limits of a share of n (Clopper and Pearson 1934), each wrong with probability ``error``."""
    from scipy.special import betaincinv

    k = share * n
    low = float(betaincinv(k, n - k + 1, error)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - error)) if k < n else 1.0
    return low, high


def _values(
    paths: Sequence[str], labels: Sequence[str], sizes: NDArray[np.intp], traits: StoredTraits, sample: NDArray[np.intp]
) -> dict[str, NDArray[np.float64]]:
    """The values (n, D) of each trait."""
    width, height = sizes.T.astype(np.float64)
    grid = traits.values("grid", sample).astype(np.float64)
    edges = traits.values("edges", sample).astype(np.float64)
    text = {name: [each.decode("utf-8", "replace") for each in traits.values(name, sample).tolist()]
            for name in ("form", "camera", "date")}  # fmt: skip
    of_pixels = {
        "border pixels": np.column_stack([edges.mean(axis=2).reshape(len(edges), -1), edges.std(axis=(1, 2))]),
        "mean colour": grid.mean(axis=(1, 2)),
        "4 x 4 thumbnail": grid.reshape(len(grid), -1),
    }
    return {
        "file size": np.log1p(traits.values("file_bytes", sample).astype(np.float64))[:, None],
        "dimensions": np.column_stack([width, height, width / height]),
        "file format and JPEG quality": np.column_stack(
            [_indicators(text["form"]), traits.values("quantisation", sample)]
        ),
        "EXIF camera": _indicators(text["camera"]),
        "EXIF date": np.array([_day(date) for date in text["date"]])[:, None],
        "folder": _indicators([_folder(path, label) for path, label in zip(paths, labels, strict=True)]),
        **(of_pixels if np.median(sizes.min(axis=1)) >= _LEAST_SIDE else {}),
    }


def _indicators(values: Sequence[str]) -> NDArray[np.float64]:
    """A column of 0 and 1 for each frequent value."""
    counts = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))[:_MOST_VALUES]
    array: NDArray[Any] = np.array(values, dtype=object)
    return np.column_stack([(array == value).astype(np.float64) for value, _ in counts])


def _folder(path: str, label: str) -> str:
    """The folders of an image without those of its class and split."""
    return "/".join(part for part in path.split("/")[:-1] if part != label and split_of_name(part) is None)


def _day(date: str) -> float:
    """Days since 1970; -1 without a date."""
    try:
        return datetime.strptime(date, "%Y:%m:%d %H:%M:%S").toordinal() - 719163
    except ValueError:
        return -1.0
