"""Metrics of decisions and probabilities on one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)

from udc_model.decisions.decision import constant_costs, mean_cost, normalised_cost

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Scored:
    """One split with all that its metrics are computed from.

    Parameters
    ----------
    targets : (N,) true class indices; every class must be among them.
    decided : (N,) columns of ``outcome_costs``; K is referral.
    probabilities : (N, K) calibrated posteriors.
    outcome_costs : (K, D), rows true, D = K, or K + 1 with referral.
    weights : (N,) how often each sample counts, or None for once.
    groups : (N,) group indices, or None where each sample is its own.
    """

    targets: Indices
    decided: Indices
    probabilities: Floats
    outcome_costs: Floats
    weights: Floats | None = None
    groups: Indices | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.outcome_costs)

    @property
    def counted(self) -> Floats:
        """(N,) how often each sample counts."""
        return np.ones(len(self.targets)) if self.weights is None else self.weights

    @property
    def cost_paid(self) -> Floats:
        """(N,) cost paid for each sample."""
        return np.asarray(self.outcome_costs[self.targets, self.decided])


def split_metrics(scored: Scored, ece_bins: int, recall_of: Sequence[tuple[int, str]] = ()) -> Metrics:
    """The metrics of one split, by name, in a fixed order.

    Parameters
    ----------
    ece_bins : bins of equal mass of the calibration error.
    recall_of : index and name of the classes whose recall and miss rate are asked for.

    Returns
    -------
    ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``cohen_kappa``, ``matthews_correlation`` of the images decided
    (not referred; None where all are), ``mean_cost`` of all, ``normalised_cost`` (over ``constant_mean_cost``, that of
    the cheapest constant answer; None where it is free), ``argmax_accuracy`` and ``argmax_mean_cost`` of the most
    probable class and what is saved against it, ``cost_saved``; ``referral_rate``; ``recall/…`` (share of the class
    decided as it) and ``miss_rate/…`` (share decided as another) of named classes; ``log_loss`` (nats), ``brier_score``
    (0 to 2), ``roc_auc`` and ``average_precision`` (one against rest, mean over classes) and
    ``expected_calibration_error`` of the probabilities.
    """
    targets, p, weights = scored.targets, scored.probabilities, scored.weights
    argmax = p.argmax(axis=1)
    paid, by_argmax = (mean_cost(targets, d, scored.outcome_costs, weights) for d in (scored.decided, argmax))
    found: Metrics = {
        **_decision_metrics(scored),
        "mean_cost": paid,
        "normalised_cost": normalised_cost(targets, scored.decided, scored.outcome_costs, weights),
        "constant_mean_cost": float(constant_costs(targets, scored.outcome_costs, weights).min()),
        "argmax_accuracy": float(accuracy_score(targets, argmax, sample_weight=weights)),
        "argmax_mean_cost": by_argmax,
        "cost_saved": by_argmax - paid,
        "referral_rate": float(np.average(scored.decided == scored.num_classes, weights=weights)),
    }
    for k, name in recall_of:
        own = scored.decided[targets == k]
        found[f"recall/{name}"] = float((own == k).mean())
        found[f"miss_rate/{name}"] = float(((own != k) & (own != scored.num_classes)).mean())
    labels = np.arange(scored.num_classes)
    return found | {
        "log_loss": float(log_loss(targets, p, labels=labels, sample_weight=weights)),
        "brier_score": float(brier_score_loss(targets, p, labels=labels, sample_weight=weights, scale_by_half=False)),
        "roc_auc": one_vs_rest_auc(targets, p, weights),
        "average_precision": one_vs_rest_average_precision(targets, p, weights),
        "expected_calibration_error": expected_calibration_error(targets, p, ece_bins, weights),
    }


def _decision_metrics(scored: Scored) -> Metrics:
    """Metrics that compare decided with true classes, of the images that were not referred."""
    kept = scored.decided < scored.num_classes
    if not kept.any():
        names = ("accuracy", "balanced_accuracy", "macro_f1", "cohen_kappa", "matthews_correlation")
        return dict.fromkeys(names)
    targets, decided = scored.targets[kept], scored.decided[kept]
    weights = None if scored.weights is None else scored.weights[kept]
    labels, present = np.arange(scored.num_classes), np.unique(targets)
    options: dict[str, Any] = {"average": "macro", "sample_weight": weights, "zero_division": 0.0}
    alike = len(present) == 1 and (decided == present[0]).all()  # nothing left to agree on beyond chance
    return {
        "accuracy": float(accuracy_score(targets, decided, sample_weight=weights)),
        "balanced_accuracy": float(recall_score(targets, decided, labels=present, **options)),
        "macro_f1": float(f1_score(targets, decided, labels=labels, **options)),
        "cohen_kappa": None if alike else float(
            cohen_kappa_score(targets, decided, labels=labels, sample_weight=weights)
        ),
        "matthews_correlation": float(matthews_corrcoef(targets, decided, sample_weight=weights)),
    }  # fmt: skip


def one_vs_rest_auc(targets: Indices, probabilities: Floats, weights: Floats | None = None) -> float:
    """Area under the ROC curve of each class against the rest, mean over classes."""
    areas = [
        roc_auc_score(targets == k, probabilities[:, k], sample_weight=weights) for k in range(probabilities.shape[1])
    ]
    return float(np.mean(areas))


def one_vs_rest_average_precision(targets: Indices, probabilities: Floats, weights: Floats | None = None) -> float:
    """Area under the precision-recall curve of each class against the rest, mean over classes."""
    areas = [
        average_precision_score(targets == k, probabilities[:, k], sample_weight=weights)
        for k in range(probabilities.shape[1])
    ]
    return float(np.mean(areas))


def equal_mass_bins(confidence: Floats, bins: int) -> list[NDArray[np.intp]]:
    """The sample indices of each of ``bins`` bins (fewer if there are fewer samples) of rising confidence."""
    return np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))


def expected_calibration_error(
    targets: Indices, probabilities: Floats, bins: int, weights: Floats | None = None
) -> float:
    """Mean gap between confidence and accuracy over bins of equal mass (Naeini 2015; Nixon 2019), in [0, 1]."""
    w = np.ones(len(targets)) if weights is None else weights
    confidence = probabilities.max(axis=1)
    gap = w * (confidence - (probabilities.argmax(axis=1) == targets))
    return float(sum(abs(gap[part].sum()) for part in equal_mass_bins(confidence, bins)) / w.sum())


def per_class_table(targets: Indices, decided: Indices, classes: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each class; a referred image counts as not found."""
    labels = np.arange(len(classes))
    columns = precision_recall_fscore_support(targets, decided, labels=labels, zero_division=0.0)
    table: dict[str, Any] = dict(zip(("precision", "recall", "f1", "support"), columns, strict=True))
    return pd.DataFrame({"class": classes, **table})


def cost_by_pair(scored: Scored, classes: list[str], outcomes: list[str]) -> pd.DataFrame:
    """Images, money and share of all money for each (true, decided) that cost something, the dearest first."""
    names, decided = np.array(classes, dtype=object), np.array(outcomes, dtype=object)
    rows = pd.DataFrame({
        "true": names[scored.targets],
        "decided": decided[scored.decided],
        "images": 1,
        "cost": scored.counted * scored.cost_paid,
    })  # fmt: skip
    table = rows.groupby(["true", "decided"], as_index=False).sum()
    table = table[table["cost"] != 0].sort_values(["cost", "true", "decided"], ascending=[False, True, True])
    total = float(table["cost"].sum())
    return table.assign(share=table["cost"] / total if total else 0.0)


def baselines_table(scored: Scored, outcomes: list[str], policy: str) -> pd.DataFrame:
    """Mean cost, normalised cost and accuracy of the policy, of argmax, and of the cheapest constant answer."""
    constant = int(constant_costs(scored.targets, scored.outcome_costs, scored.weights).argmin())
    answers = {
        policy: scored.decided,
        "argmax": scored.probabilities.argmax(axis=1),
        f"always {outcomes[constant]}": np.full(len(scored.targets), constant),
    }
    rows = []
    for name, decided in answers.items():
        one = Scored(scored.targets, decided, scored.probabilities, scored.outcome_costs, scored.weights)
        rows.append({
            "decision": name,
            "mean_cost": mean_cost(one.targets, decided, one.outcome_costs, one.weights),
            "normalised_cost": normalised_cost(one.targets, decided, one.outcome_costs, one.weights),
            "accuracy": _decision_metrics(one)["accuracy"],
        })  # fmt: skip
    return pd.DataFrame(rows)
