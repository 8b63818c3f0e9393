"""The sums of resamples: only those to which an image adds something, and the metrics' sums made from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from udc_model.evaluation.confusion_sums import ConfusionSums
from udc_model.evaluation.metrics import Scored, SplitSums, Terms, metric_terms
from udc_model.evaluation.score_sums import ScoreSums

Floats = NDArray[np.float64]
_MATRICES = ("decided", "argmax")


@dataclass(frozen=True)
class ResampledSums:
    """What the images add to the sums that are not 0 for all images.

    Parameters
    ----------
    features : (N, M) what each image adds to each sum.
    parts : the rows of the sums (M, B) of each kind of `metric_terms`, and of ``scores``.
    cells : of each confusion matrix, the indices of its used cells in the flattened matrix.
    scores : what the sums of the kind ``scores`` are.
    outcome_costs : (K, D), rows true.
    """

    features: sparse.csr_matrix
    parts: dict[str, slice]
    cells: dict[str, NDArray[np.integer]]
    scores: ScoreSums
    outcome_costs: Floats

    @classmethod
    def of(cls, scored: Scored, ece_bins: int) -> ResampledSums:
        """Those of scored images, with ``ece_bins`` bins of the calibration error."""
        terms, scores = metric_terms(scored, ece_bins), ScoreSums.of(scored)
        cells: dict[str, NDArray[np.integer]] = {}
        for name in _MATRICES:
            cells[name], column = np.unique(terms[name].columns, return_inverse=True)
            terms[name] = Terms(terms[name].rows, column, terms[name].values, len(cells[name]))
        terms["scores"] = scores.terms
        features = sparse.csr_matrix(sparse.hstack([part.table(len(scored.targets)) for part in terms.values()]))
        ends = np.cumsum([part.width for part in terms.values()]).tolist()
        parts = {name: slice(end - part.width, end) for (name, part), end in zip(terms.items(), ends, strict=True)}
        return cls(features, parts, cells, scores, scored.outcome_costs)

    def split_sums(self, sums: Floats) -> SplitSums:
        """The sums that the metrics need, of sums (M, B)."""
        by_name = {name: sums[rows] for name, rows in self.parts.items()}
        costs = {"decided": self.outcome_costs, "argmax": self.outcome_costs[:, : len(self.outcome_costs)]}
        return SplitSums(
            **{name: ConfusionSums.of_used_cells(by_name[name], self.cells[name], costs[name]) for name in _MATRICES},
            log_loss=by_name["log_loss"][0],
            brier_score=by_name["brier_score"][0],
            calibration_gap=by_name["calibration_gap"],
            areas=self.scores.areas(by_name["scores"]),
        )
