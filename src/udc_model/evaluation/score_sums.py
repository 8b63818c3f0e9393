"""The sums behind the areas of resamples, without those that are 0 and, of each class, the largest one.

With 300 classes nearly all images have a probability below those of the images of a class. Their weight is the total
weight minus the others', so that resamples need a hundredth of the additions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udc_model.evaluation.metrics import Scored, Terms, areas, score_bins

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
        auc, average_precision = zip(*map(areas, self.tables(sums)), strict=True)
        return np.concatenate(auc), np.concatenate(average_precision)


def _used_cells(weights: Floats) -> tuple[Indices, int]:
    """The cells whose weight is not 0, without the one that has most of all weight; and that one, or -1."""
    used, largest = np.flatnonzero(weights), int(weights.argmax())
    # Of a smaller share, the difference of the total and the others would be inaccurate.
    return (used[used != largest], largest) if weights[largest] > weights.sum() / 2 else (used, -1)


def _without_empty_bins(cells: Indices) -> tuple[Indices, int]:
    """Cells (bin * 2 + is of the class) after bins without any cell are left out, and the number of other bins."""
    bins, index = np.unique(cells // 2, return_inverse=True)
    return index * 2 + cells % 2, len(bins)
