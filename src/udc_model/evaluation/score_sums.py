"""The sums behind the areas of resamples, without those that are 0 and, of each class, the largest one.

With 300 classes nearly all images have a probability below those of the images of a class. Their weight is the total
weight minus the others', so that resamples need a hundredth of the additions.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_long
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from udc_model.evaluation.metrics import Scored, Terms, areas, cumulated, score_bins
from udc_model.native.library import call, load_library

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]

SCORE_BINS = 500  # per class at most; areas are exact up to this number of distinct probabilities
_VALUES_AT_A_TIME = 2**17  # of sums, 1 MiB: they stay in the processor's cache


@dataclass(frozen=True)
class _ClassSums:
    """Where the sums of a class are in the table (bins, 2) of its bins that have images.

    ``first`` is the column of `ScoreSums.terms` of its first sum, ``cells`` (M,) the cells of its sums in the flattened
    table, ``bins`` the number of rows, ``rest`` the cell that gets the weight of all other images, or None.
    """

    first: int
    cells: Indices
    bins: int
    rest: int | None


@dataclass(frozen=True)
class ScoreSums:
    """The sums that the areas of resamples need: the weight of all images, then the used cells of each class.

    ``terms`` is what the images add to them, ``classes`` says which cell of `score_terms` each one is.
    """

    terms: Terms
    classes: tuple[_ClassSums, ...]

    @classmethod
    def of(cls, scored: Scored, most: int = SCORE_BINS) -> ScoreSums:
        """Those of scored images, with at most ``most`` bins of a class's probabilities."""
        n, weights = len(scored.targets), scored.image_weights
        rows, columns, first = [np.arange(n)], [np.zeros(n, dtype=np.intp)], 1
        classes = []
        for j, scores in enumerate(np.ascontiguousarray(scored.probabilities.T)):
            is_of_class = scored.targets == j
            cell = score_bins(scores, is_of_class, most) * 2 + is_of_class
            used, rest = _used_cells(np.bincount(cell, weights).astype(np.float64))
            rows.append(np.flatnonzero(cell != rest))
            columns.append(first + np.searchsorted(used, cell[rows[-1]]))
            layout, bins = _without_empty_bins(np.append(used, rest)) if rest >= 0 else _without_empty_bins(used)
            classes.append(_ClassSums(first, layout[: len(used)], bins, int(layout[-1]) if rest >= 0 else None))
            first += len(used)
        row = np.concatenate(rows)
        return cls(Terms(row, np.concatenate(columns), weights[row], first), tuple(classes))

    def tables(self, sums: Floats) -> Iterator[Floats]:
        """Tables (classes, bins, 2, B) of sums (M, B), as `score_terms` describes, of a few classes at a time."""
        resamples, start = sums.shape[1], 0
        while start < len(self.classes):
            bins, end = self.classes[start].bins, start + 1
            while end < len(self.classes):
                wider = max(bins, self.classes[end].bins)
                if (end - start + 1) * wider * 2 * resamples > _VALUES_AT_A_TIME:
                    break
                bins, end = wider, end + 1
            table = np.zeros((end - start, bins * 2, resamples))
            for cells, layout in zip(table, self.classes[start:end], strict=True):
                values = sums[layout.first : layout.first + len(layout.cells)]
                cells[layout.cells] = values
                if layout.rest is not None:  # never 0 or less, by rounding: some images are there
                    cells[layout.rest] = np.maximum(sums[0] - values.sum(axis=0), 1e-9 * sums[0])
            yield table.reshape(end - start, bins, 2, resamples)
            start = end

    def areas(self, sums: Floats) -> tuple[Floats, Floats]:
        """ROC AUC and average precision of each class, (K, B) each, of sums (M, B)."""
        if load_library() is None:
            auc, average_precision = zip(*map(areas, self.tables(sums)), strict=True)
            return np.concatenate(auc), np.concatenate(average_precision)
        shape = len(self.classes), sums.shape[1]
        of_classes = np.empty(shape), np.empty(shape)
        self._call("udc_score_areas", sums, *(each.ctypes.data for each in of_classes))
        return of_classes

    def mean_curves(self, sums: Floats, grid: Floats) -> tuple[Floats, Floats]:
        """Means over the classes of two curves of each resample, (B, G) each, of sums (M, B).

        Parameters
        ----------
        grid : (G,) ascending, from 0 to 1.

        Returns
        -------
        The true positive rate at the false positive rates of the grid, with straight lines between the points of the
        curve; the highest precision at the recalls of the grid or more.
        """
        shape = sums.shape[1], len(grid)
        tpr, precision = np.zeros(shape), np.zeros(shape)
        if load_library() is None:
            for table in self.tables(sums):
                _add_curves(table, grid, tpr, precision)
        else:
            self._call("udc_score_curves", sums, grid.ctypes.data, len(grid), tpr.ctypes.data, precision.ctypes.data)
        return tpr / len(self.classes), precision / len(self.classes)

    def _call(self, kernel: str, sums: Floats, *arguments: int) -> None:
        sums = np.ascontiguousarray(sums, dtype=np.float64)
        rows = (each.ctypes.data for each in self._rows)
        call(kernel, sums.ctypes.data, sums.shape[1], len(self.classes), *rows, *arguments)

    @cached_property
    def _rows(self) -> tuple[Indices, ...]:
        """What the native kernels need of the classes.

        Returns
        -------
        (K + 1,) the first row of the sums of each class; (K + 1,) the first of its bins, highest probability first;
        (bins,) row of the images of other classes in each bin, and of those of the class: -1 for none, -2 for the rest.
        """
        rows, first, bins = [], [], [0]
        for each in self.classes:
            row = np.full(2 * each.bins, -1)
            row[each.cells] = each.first + np.arange(len(each.cells))
            if each.rest is not None:
                row[each.rest] = -2
            rows.append(row.reshape(-1, 2)[::-1])
            first.append(each.first)
            bins.append(bins[-1] + each.bins)
        negative, positive = np.concatenate(rows).T
        parts = ([*first, self.terms.width], bins, negative, positive)
        return tuple(np.array(part, dtype=np.dtype(c_long)) for part in parts)


def _add_curves(scores: Floats, grid: Floats, tpr: Floats, precision: Floats) -> None:
    """Add the curves of `ScoreSums.mean_curves` of each class in a table (K, bins, 2, B) to the sums (B, G)."""
    falling = np.ascontiguousarray(cumulated(scores[:, ::-1]).transpose(2, 3, 0, 1))  # (2, B, K, bins)
    false_positives, true_positives = falling
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = true_positives / true_positives[..., -1:]
        fallout = false_positives / false_positives[..., -1:]
        ratio = np.nan_to_num(true_positives / (true_positives + false_positives))
    best = np.maximum.accumulate(ratio[..., ::-1], axis=-1)[..., ::-1]  # the highest precision at this recall or more
    zero = np.zeros((*recall.shape[:2], 1))
    recall_from_0, fallout_from_0 = np.concatenate([zero, recall], axis=-1), np.concatenate([zero, fallout], axis=-1)
    b, k, bins = recall.shape
    for i in range(b):
        for j in range(k):
            tpr[i] += np.interp(grid, fallout_from_0[i, j], recall_from_0[i, j])
            index = recall[i, j].searchsorted(grid)
            precision[i] += best[i, j][np.minimum(index, bins - 1)]


def _used_cells(weights: Floats) -> tuple[Indices, int]:
    """The cells whose weight is not 0, without the one that has most of all weight; and that one, or -1."""
    used, largest = np.flatnonzero(weights), int(weights.argmax())
    # Of a smaller share, the difference of the total and the others would be inaccurate.
    return (used[used != largest], largest) if weights[largest] > weights.sum() / 2 else (used, -1)


def _without_empty_bins(cells: Indices) -> tuple[Indices, int]:
    """Cells (bin * 2 + is of the class) after bins without any cell are left out, and the number of other bins."""
    bins, index = np.unique(cells // 2, return_inverse=True)
    return index * 2 + cells % 2, len(bins)
