"""Metrics of decisions and probabilities on one split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from udc_model.costs.decision import mean_cost, normalised_cost

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]


def split_metrics(
    targets: Indices, decided: Indices, probabilities: Floats, costs: Floats, ece_bins: int
) -> dict[str, float | None]:
    """The headline metrics of one split, by name, in a fixed order.

    Parameters
    ----------
    targets, decided : (N,) true and decided class indices; every class must be among the targets.
    probabilities : (N, K) calibrated posteriors.
    costs : (K, K), rows true.

    Returns
    -------
    ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``mean_cost`` and ``normalised_cost`` (None where a constant
    answer is free) of the decisions; ``argmax_accuracy`` and ``argmax_mean_cost`` of the most probable class, for
    comparison; ``cohen_kappa`` and ``matthews_correlation`` of the decisions; ``log_loss`` (nats), ``brier_score`` (0
    to 2), ``roc_auc`` and ``average_precision`` (one against rest, mean over classes) and
    ``expected_calibration_error`` of the probabilities.
    """
    labels = np.arange(len(costs))
    argmax = probabilities.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(targets, decided)),
        "balanced_accuracy": float(balanced_accuracy_score(targets, decided)),
        "macro_f1": float(f1_score(targets, decided, average="macro", labels=labels, zero_division=0.0)),
        "mean_cost": mean_cost(targets, decided, costs),
        "normalised_cost": normalised_cost(targets, decided, costs),
        "argmax_accuracy": float(accuracy_score(targets, argmax)),
        "argmax_mean_cost": mean_cost(targets, argmax, costs),
        "cohen_kappa": float(cohen_kappa_score(targets, decided, labels=labels)),
        "matthews_correlation": float(matthews_corrcoef(targets, decided)),
        "log_loss": float(log_loss(targets, probabilities, labels=labels)),
        "brier_score": float(brier_score_loss(targets, probabilities, labels=labels, scale_by_half=False)),
        "roc_auc": one_vs_rest_auc(targets, probabilities),
        "average_precision": one_vs_rest_average_precision(targets, probabilities),
        "expected_calibration_error": expected_calibration_error(targets, probabilities, ece_bins),
    }


def one_vs_rest_auc(targets: Indices, probabilities: Floats) -> float:
    """Area under the ROC curve of each class against the rest, mean over classes."""
    areas = [roc_auc_score(targets == k, probabilities[:, k]) for k in range(probabilities.shape[1])]
    return float(np.mean(areas))


def one_vs_rest_average_precision(targets: Indices, probabilities: Floats) -> float:
    """Area under the precision-recall curve of each class against the rest, mean over classes."""
    areas = [average_precision_score(targets == k, probabilities[:, k]) for k in range(probabilities.shape[1])]
    return float(np.mean(areas))


def expected_calibration_error(targets: Indices, probabilities: Floats, bins: int) -> float:
    """Mean gap between confidence and accuracy over bins of equal mass (Naeini 2015; Nixon 2019), in [0, 1]."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == targets
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(abs(confidence[part].sum() - correct[part].sum()) for part in parts) / len(order))


def per_class_table(targets: Indices, decided: Indices, classes: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each class."""
    labels = np.arange(len(classes))
    columns = precision_recall_fscore_support(targets, decided, labels=labels, zero_division=0.0)
    table: dict[str, Any] = dict(zip(("precision", "recall", "f1", "support"), columns, strict=True))
    return pd.DataFrame({"class": classes, **table})
