"""The tables that evaluate writes: predictions, and the curves that `dvc plots` draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]
_POINTS = 201  # of a curve for `dvc plots`


def predictions_table(
    paths: Sequence[str],
    groups: Sequence[str],
    targets: Indices,
    decided: Indices,
    expected_cost: Floats,
    logits: NDArray[np.floating],
    classes: list[str],
) -> pd.DataFrame:
    """One row an image: path, group, true and predicted class, expected cost of the decision, raw logits."""
    names = np.array(classes, dtype=object)
    table = {
        "path": paths,
        "group": groups,
        "true": names[targets],
        "predicted": names[decided],
        "expected_cost": expected_cost,
    }
    return pd.DataFrame(table | {f"logit_{name}": logits[:, k] for k, name in enumerate(classes)})


def roc_points(targets: Indices, probabilities: Floats) -> pd.DataFrame:
    """ROC curve, mean over classes of the true positive rate at equal false positive rates."""
    grid = np.linspace(0, 1, _POINTS)
    curves = []
    for k in range(probabilities.shape[1]):
        fpr, tpr, _ = roc_curve(targets == k, probabilities[:, k])
        curves.append(np.interp(grid, fpr, tpr))
    return pd.DataFrame({"false_positive_rate": grid, "true_positive_rate": np.mean(curves, axis=0)})


def precision_recall_points(targets: Indices, probabilities: Floats) -> pd.DataFrame:
    """Precision-recall curve, mean over classes of the best precision at no less recall."""
    grid = np.linspace(0, 1, _POINTS)
    curves = []
    for k in range(probabilities.shape[1]):
        precision, recall, _ = precision_recall_curve(targets == k, probabilities[:, k])
        best = np.maximum.accumulate(precision)  # recall falls along the curve: best at this recall or more
        curves.append(best[np.searchsorted(-recall, -grid, side="right") - 1])
    return pd.DataFrame({"recall": grid, "precision": np.mean(curves, axis=0)})
