"""Labels that may be wrong, ranked by how much training and predictions contradict them.

Training images are ranked by their margins in the first half of the epochs, before the network learns wrong labels by
heart (area under the margin, Pleiss et al. 2020, of the logarithm of the logistic function of each margin, which bounds
the influence of an epoch in which the label was clear). Other images are ranked by the calibrated probabilities of the
trained model, which has not seen them.

A label is suspicious below a threshold. Calibration is the null: of all images whose label has a probability below
0.05, a calibrated model expects less than 5 % to be right. The threshold of training images is by experiment
(benchmarks/label_errors.csv): up to 0.9 % of the labels of a clean data set are below it, and with 5 % of wrong labels
71 to 100 % of those below it are wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.data.margins import Margins
from udc_model.data.packed import PackedSplit
from udc_model.decisions.calibration import Calibration
from udc_model.evaluation.tables import write_csv

LABEL_QUALITY = "label_quality.csv"
_MOST_ROWS = 10_000  # images in the table
_STEEPNESS = 2.0  # of the logistic function: logits of early epochs are small
TRAINING_THRESHOLD, HELD_OUT_THRESHOLD = 0.1, 0.05
_LEAST = 1e-300  # probability whose logarithm is finite
_BLOCK = 2**22  # logits reduced at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelEvidence:
    """What training or predictions say about the labels of N images.

    Attributes
    ----------
    support : (N,) mean logarithm of the probability of the label against the strongest other class; 0 is certain.
    rivals : (R, N) index of the strongest other class, in R epochs or one prediction.
    is_negative : (R, N) whether that class was stronger than the label.
    threshold : the probability below which a label is suspicious.
    """

    support: Floats
    rivals: NDArray[np.integer[Any]]
    is_negative: NDArray[np.bool_]
    threshold: float

    @classmethod
    def of_training(cls, margins: Margins) -> LabelEvidence:
        """The evidence of the margins in the first half of the epochs of each network."""
        is_early = margins.is_early
        values = margins.values[is_early].astype(np.float64)
        is_used = ~np.isnan(values)
        values = np.where(is_used, values, 0.0)
        logarithms = np.where(is_used, -np.logaddexp(0.0, -_STEEPNESS * values), 0.0)
        # an image that no epoch used has no evidence against its label
        support = logarithms.sum(axis=0) / np.maximum(is_used.sum(axis=0), 1)
        return cls(support, margins.rivals[is_early], values < 0, TRAINING_THRESHOLD)

    @classmethod
    def of_predictions(
        cls,
        logits: NDArray[np.floating],
        labels: NDArray[np.integer],
        calibration: Calibration,
        offset: NDArray[np.float64] | None = None,
    ) -> LabelEvidence:
        """The evidence of the calibrated probabilities of logits (N, K); the model was not trained on the images.

        Parameters
        ----------
        offset : (K,), see `Calibration.probabilities`.
        """
        n, k = logits.shape
        margins, rivals = np.empty(n), np.empty(n, np.intp)
        # a temperature changes the scale of margins only, which saves the probabilities of many classes
        is_scaled = calibration.method in ("none", "temperature")
        temperature = calibration.parameters.get("temperature", 1.0)
        rows_at_once = max(1, _BLOCK // k)
        for start in range(0, n, rows_at_once):
            block = slice(start, start + rows_at_once)
            if is_scaled:
                rows = logits[block].copy() if offset is None else logits[block] + temperature * offset
            else:
                rows = np.log(np.maximum(calibration.probabilities(logits[block], offset), _LEAST))
            numbers = np.arange(len(rows))
            own = rows[numbers, labels[block]].astype(np.float64)
            rows[numbers, labels[block]] = -np.inf
            rivals[block] = rows.argmax(axis=1)
            margins[block] = own - rows[numbers, rivals[block]]
        margins /= temperature
        support = -np.logaddexp(0.0, -margins)
        return cls(support, rivals[None], margins[None] < 0, HELD_OUT_THRESHOLD)

    def suggested(self, images: NDArray[np.integer]) -> NDArray[np.intp]:
        """The class that was most often stronger than the label, of some images (n,), or the strongest other class."""
        if len(self.rivals) == 1:
            return np.asarray(self.rivals[0, images], np.intp)
        suggested = np.empty(len(images), np.intp)
        for k, image in enumerate(images):
            rivals, is_negative = self.rivals[:, image], self.is_negative[:, image]
            suggested[k] = np.bincount(rivals[is_negative] if is_negative.any() else rivals).argmax()
        return suggested


def label_quality(
    splits: Mapping[str, PackedSplit],
    evidence: Mapping[str, LabelEvidence],
    classes: Sequence[str],
    costs: Floats,
    reviewed: Collection[str] = (),
) -> pd.DataFrame:
    """The images with the least support for their label, sorted by it.

    Parameters
    ----------
    evidence : by split.
    costs : (K, K), true class by decision.
    reviewed : paths of images whose label a person has confirmed or corrected; they are not suspicious.

    Returns
    -------
    Columns ``path``, ``sha256``, ``label``, ``suggested_label``, ``score`` (in [0, 1]: probability of the label against
    the strongest other class), ``expected_cost`` (of decisions that learn the label, if the suggested label is right:
    1 - score, times the cost), ``split``, ``row`` (index in the split), ``is_suspicious``.
    """
    support = np.concatenate([each.support for each in evidence.values()])
    largest = np.partition(support, _MOST_ROWS)[_MOST_ROWS] if len(support) > _MOST_ROWS else np.inf
    parts = [_rows(name, splits[name], evidence[name], largest) for name in evidence]
    table = pd.concat(parts, ignore_index=True).sort_values(["support", "path"], kind="stable", ignore_index=True)
    table = table[:_MOST_ROWS]
    labels, suggested = (table[name].to_numpy(dtype=np.intp) for name in ("label", "suggested_label"))
    support, names = table["support"].to_numpy(), np.array(classes, dtype=object)
    is_new = ~table["path"].isin(set(reviewed)).to_numpy()
    table = table.assign(
        label=names[labels],
        suggested_label=names[suggested],
        score=np.exp(support),
        expected_cost=-np.expm1(support) * costs[suggested, labels],
        is_suspicious=(np.exp(support) < table["threshold"].to_numpy()) & is_new,
    )
    columns = ["path", "sha256", "label", "suggested_label", "score", "expected_cost", "split", "row", "is_suspicious"]
    return table[columns]


def _rows(name: str, split: PackedSplit, evidence: LabelEvidence, largest: float) -> pd.DataFrame:
    """The images of a split whose label has at most this support."""
    rows = np.flatnonzero(evidence.support <= largest)
    return pd.DataFrame({
        "path": [split.paths[row] for row in rows],
        "sha256": [split.digests[row] for row in rows],
        "label": split.labels[rows],
        "suggested_label": evidence.suggested(rows),
        "support": evidence.support[rows],
        "threshold": evidence.threshold,
        "split": name,
        "row": rows,
    })  # fmt: skip


def write_label_quality(folder: Path, table: pd.DataFrame) -> None:
    """Write `LABEL_QUALITY` into an evaluation folder."""
    write_csv(table, folder / LABEL_QUALITY)
