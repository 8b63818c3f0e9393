"""Metrics of decisions and probabilities, each defined once, as a function of sums over images.

The sums are the cells of the confusion matrices of the decisions and of argmax, the losses, the calibration gap of each
bin, and, for each class, the weight of the images by bin of the class's probability. `split_metrics` evaluates the
metrics at the sums over a split, `metric_intervals` at the sums over its resamples. A new metric needs its formula in
`metrics_of_sums` and, if `SplitSums` does not determine it, a term in `metric_terms`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from udc_model.decisions.actions import REFER
from udc_model.decisions.rows import by_rows
from udc_model.evaluation.confusion_sums import ConfusionSums, agreement_metrics, cost_metrics

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]
Metrics = dict[str, float | None]

# In the name of a metric. A class . or .. would be a folder in MLflow's view of it.
_NOT_IN_METRICS = re.compile(r"[^\w .\-]|^\.{1,2}\Z")
ACTION_RATE = "action_rate/"
_LONGEST_CLASS = 200  # characters in the name of a metric
_MAX_PAIRWISE = 100  # sums of a term that are computed pairwise


@dataclass(frozen=True)
class Scored:
    """Decisions, probabilities and costs of one split.

    Parameters
    ----------
    targets : (N,) true class indices; every class must be among them.
    decided : (N,) columns of ``outcome_costs``; those from K on are actions.
    probabilities : (N, K) calibrated posteriors.
    outcome_costs : (K, D), rows true.
    weights : (N,) weight of each image; None if all are 1.
    groups : (N,) group indices; None if each image is its own group.
    actions : names of the D - K actions; None if there is none but referral.
    """

    targets: Indices
    decided: Indices
    probabilities: Floats
    outcome_costs: Floats
    weights: Floats | None = None
    groups: Indices | None = None
    actions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if len(self.action_names) != self.outcome_costs.shape[1] - self.num_classes:
            raise ValueError("actions: must have a name for each column of outcome_costs after those of the classes")

    @property
    def action_names(self) -> list[str]:
        """The names of the actions, in the order of their columns."""
        if self.actions is None:
            return [REFER] * (self.outcome_costs.shape[1] > self.num_classes)
        return list(self.actions)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.outcome_costs)

    @property
    def image_weights(self) -> Floats:
        """(N,) weight of each image."""
        return np.ones(len(self.targets)) if self.weights is None else self.weights

    @property
    def cost_paid(self) -> Floats:
        """(N,) cost paid for each image."""
        return np.asarray(self.outcome_costs[self.targets, self.decided])

    @cached_property
    def least_probability(self) -> float:
        """The lowest probability of any class of any image, at least the accuracy of a float."""
        return max(float(self.probabilities.min()), float(np.finfo(float).eps))

    @cached_property
    def score_sums(self) -> Floats:
        """(K, bins, 2) sums of `score_terms`, exact."""
        return score_terms(self).total().reshape(self.num_classes, -1, 2)


@dataclass(frozen=True)
class Terms:
    """What the images add to ``width`` sums: image ``rows[i]`` adds ``values[i]`` to sum ``columns[i]``.

    The three arrays have one shape; views that repeat their values take no memory.
    """

    rows: Indices
    columns: Indices
    values: Floats
    width: int

    def total(self) -> Floats:
        """The sums over all images, (width,)."""
        if self.width <= _MAX_PAIRWISE:  # pairwise summation, more accurate than bincount
            return np.array([self.values[self.columns == j].sum() for j in range(self.width)])
        sums = np.bincount(self.columns.ravel(), self.values.ravel(), self.width)
        return np.asarray(sums, dtype=np.float64)

    def table(self, images: int) -> sparse.csr_matrix:
        """What each image adds to each sum, (images, width)."""
        places = (self.rows.ravel(), self.columns.ravel())
        return sparse.csr_matrix((self.values.ravel(), places), shape=(images, self.width))


def metric_terms(scored: Scored, ece_bins: int) -> dict[str, Terms]:
    """What the images add to the sums that `SplitSums` needs, except those of `score_terms`, by kind of sum.

    Parameters
    ----------
    ece_bins : bins of equal mass of the calibration error.
    """
    n, k = len(scored.targets), scored.num_classes
    p, weights, rows = scored.probabilities, scored.image_weights, np.arange(n)
    argmax = p.argmax(axis=1)
    target_p = np.clip(p[rows, scored.targets], np.finfo(float).eps, 1 - np.finfo(float).eps)  # as scikit-learn does
    gap = weights * (p.max(axis=1) - (argmax == scored.targets))
    bins = equal_mass_bins(p.max(axis=1), ece_bins)
    by_confidence = np.concatenate(bins)
    bin_of_row = np.repeat(np.arange(len(bins)), [len(part) for part in bins])
    column = np.zeros(n, dtype=np.intp)
    brier = by_rows(lambda q, targets: ((q - np.eye(k)[targets]) ** 2).sum(axis=1), p, scored.targets)
    return {
        **decision_terms(scored),
        "log_loss": Terms(rows, column, -weights * np.log(target_p), 1),
        "brier_score": Terms(rows, column, weights * brier, 1),
        "calibration_gap": Terms(by_confidence, bin_of_row, gap[by_confidence], len(bins)),
    }


def decision_terms(scored: Scored) -> dict[str, Terms]:
    """Those of `metric_terms` for the confusion matrices of the decisions and of argmax."""
    k, d = scored.outcome_costs.shape
    weights, rows = scored.image_weights, np.arange(len(scored.targets))
    return {
        "decided": Terms(rows, scored.targets * d + scored.decided, weights, k * d),
        "argmax": Terms(rows, scored.targets * k + scored.probabilities.argmax(axis=1), weights, k * k),
    }


def score_terms(scored: Scored, most: int | None = None) -> Terms:
    """Weights of the images by class, bin of the class's probability, and whether the image is of the class.

    The sums have the shape (K, bins, 2), flattened: rising bins, first images of other classes, then of the class.
    """
    n, k = scored.probabilities.shape
    columns = np.empty((k, n), dtype=np.intp)
    for j, scores in enumerate(np.ascontiguousarray(scored.probabilities.T)):
        is_of_class = scored.targets == j
        columns[j] = 2 * score_bins(scores, is_of_class, most) + is_of_class
    width = int(columns.max()) // 2 + 1
    columns += (np.arange(k) * 2 * width)[:, None]
    rows, weights = np.broadcast_to(np.arange(n), (k, n)), np.broadcast_to(scored.image_weights, (k, n))
    return Terms(rows, columns, weights, 2 * k * width)


def score_bins(scores: Floats, is_of_class: NDArray[np.bool_], most: int | None) -> NDArray[np.intp]:
    """The bin of each score, rising.

    The areas depend on how many images of other classes are between two images of the class, not on their order. So
    there is a bin for each distinct score of an image of the class, and one for all scores between two of them. If that
    is more than ``most``, the bins are those of quantiles of these scores.
    """
    edges = np.unique(scores[is_of_class])
    if most is not None and 2 * len(edges) + 1 > most:
        edges = np.unique(np.quantile(edges, np.linspace(0, 1, (most - 1) // 2), method="nearest"))
    below = np.searchsorted(edges, scores)
    return np.asarray(2 * below + (edges[np.minimum(below, len(edges) - 1)] == scores))


def equal_mass_bins(confidence: Floats, bins: int) -> list[NDArray[np.intp]]:
    """The image indices of each of ``bins`` bins of rising confidence; fewer bins if there are fewer images."""
    return np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))


def split_metrics(scored: Scored, ece_bins: int, recall_of: Sequence[tuple[int, str]] = ()) -> Metrics:
    """The metrics of one split, by name, in a fixed order; None where a metric is undefined.

    Parameters
    ----------
    ece_bins : bins of equal mass of the calibration error.
    recall_of : index and name of the classes whose recall and miss rate are reported.

    Returns
    -------
    Of the images that are decided as a class: ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``cohen_kappa``,
    ``matthews_correlation``. Of all images: ``mean_cost``, ``normalised_cost`` (divided by ``constant_mean_cost``, the
    mean cost of the best constant decision; None if that is 0), ``argmax_accuracy``, ``argmax_mean_cost``,
    ``cost_saved`` (mean cost of argmax minus mean cost), ``referral_rate``, and the rate of each other action
    (`rate_metric`: share of images for which it is the decision). Of named classes: `recall_metric` (share
    decided as the class), `miss_rate_metric` (share decided as another class). Of the probabilities: ``log_loss``
    (nats), ``brier_score`` (0 to 2), ``roc_auc`` and ``average_precision`` (one class against the rest, mean over
    classes), and ``expected_calibration_error`` (mean gap between confidence and accuracy over bins; Naeini 2015, Nixon
    2019).
    """
    sums = {name: terms.total()[:, None] for name, terms in metric_terms(scored, ece_bins).items()}
    sums["scores"] = scored.score_sums.reshape(-1, 1)
    return _of_one_set(metrics_of_sums(SplitSums.of(sums, scored.outcome_costs), recall_of, scored.action_names))


def decision_metrics(scored: Scored, recall_of: Sequence[tuple[int, str]] = ()) -> Metrics:
    """Those of `split_metrics` that depend on the decisions and those of argmax, in a small part of the time."""
    sums = {name: terms.total()[:, None] for name, terms in decision_terms(scored).items()}
    return _of_one_set(metrics_of_decisions(*_confusion_sums(sums, scored.outcome_costs), recall_of,
                                            scored.action_names))  # fmt: skip


def _of_one_set(metrics: Mapping[str, Floats]) -> Metrics:
    return {name: float(value[0]) if np.isfinite(value[0]) else None for name, value in metrics.items()}


@dataclass(frozen=True)
class SplitSums:
    """The sums that the metrics of B sets of images need.

    Parameters
    ----------
    decided, argmax : of the confusion matrices of the decisions and of argmax.
    log_loss, brier_score : (B,)
    calibration_gap : (bins, B)
    areas : ROC AUC and average precision of each class, (K, B) each.
    """

    decided: ConfusionSums
    argmax: ConfusionSums
    log_loss: Floats
    brier_score: Floats
    calibration_gap: Floats
    areas: tuple[Floats, Floats]

    @classmethod
    def of(cls, sums: Mapping[str, Floats], outcome_costs: Floats) -> SplitSums:
        """Those of sums, (width, B) each, by the names of `metric_terms`, and ``scores``, those of `score_terms`."""
        scores = sums["scores"].reshape(len(outcome_costs), -1, 2, sums["scores"].shape[1])
        return cls(*_confusion_sums(sums, outcome_costs), sums["log_loss"][0], sums["brier_score"][0],
                   sums["calibration_gap"], areas(scores))  # fmt: skip


def _confusion_sums(sums: Mapping[str, Floats], outcome_costs: Floats) -> tuple[ConfusionSums, ConfusionSums]:
    """Those of the decisions and of argmax, of the sums of `decision_terms`."""
    k, d = outcome_costs.shape
    return (ConfusionSums.of_cells(sums["decided"].reshape(k, d, -1), outcome_costs),
            ConfusionSums.of_cells(sums["argmax"].reshape(k, k, -1), outcome_costs[:, :k]))  # fmt: skip


def metrics_of_sums(
    sums: SplitSums, recall_of: Sequence[tuple[int, str]] = (), actions: Sequence[str] = ()
) -> dict[str, Floats]:
    """The metrics (B,) that `split_metrics` describes, of B sets of sums; NaN where a metric is undefined.

    Parameters
    ----------
    actions : names of the actions whose rates are reported, the first ones of the columns; referral's is in any case.
    """
    weight = sums.argmax.weight
    auc, average_precision = sums.areas
    return {
        **metrics_of_decisions(sums.decided, sums.argmax, recall_of, actions),
        "log_loss": sums.log_loss / weight,
        "brier_score": sums.brier_score / weight,
        "roc_auc": auc.mean(axis=0),
        "average_precision": average_precision.mean(axis=0),
        "expected_calibration_error": sum(np.abs(sums.calibration_gap)) / weight,
    }


def metrics_of_decisions(
    decided: ConfusionSums, argmax: ConfusionSums, recall_of: Sequence[tuple[int, str]], actions: Sequence[str]
) -> dict[str, Floats]:
    """Those of `metrics_of_sums` that need no probabilities."""
    costs, argmax_mean_cost = cost_metrics(decided), argmax.cost / argmax.weight
    return {
        **agreement_metrics(decided),
        **costs,
        "argmax_accuracy": argmax.right.sum(axis=0) / argmax.weight,
        "argmax_mean_cost": argmax_mean_cost,
        "cost_saved": argmax_mean_cost - costs["mean_cost"],
        rate_metric(REFER): np.zeros_like(argmax.weight),
        **{rate_metric(name): decided.actions[j] / argmax.weight for j, name in enumerate(actions)},
        **_class_metrics(decided, recall_of),
    }


def rate_metric(action: str) -> str:
    """The name of the rate of an action among the metrics."""
    return "referral_rate" if action == REFER else f"{ACTION_RATE}{escape_class(action)}"


def recall_metric(name: str) -> str:
    """The name of the recall of a class among the metrics."""
    return f"recall/{escape_class(name)}"


def miss_rate_metric(name: str) -> str:
    """The name of the miss rate of a class among the metrics."""
    return f"miss_rate/{escape_class(name)}"


def escape_class(name: str) -> str:
    """A class name as a part of a metric's name, as MLflow allows it: other characters become ``:`` and their bytes.

    Letters, digits, spaces and ``_ . -`` stay, so most names do. Different classes have different names: ``a/b`` is
    ``a:2Fb``, ``a:b`` is ``a:3Ab``. Long names end with ``::`` and a digest, since MLflow allows 250 characters.
    """
    escaped = _NOT_IN_METRICS.sub(lambda match: "".join(f":{byte:02X}" for byte in match[0].encode()), name)
    if len(escaped) <= _LONGEST_CLASS:
        return escaped
    return f"{escaped[: _LONGEST_CLASS - 18]}::{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _class_metrics(sums: ConfusionSums, recall_of: Sequence[tuple[int, str]]) -> dict[str, Floats]:
    """Recall and miss rate, (B,), of named classes."""
    metrics = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for j, name in recall_of:
            metrics[recall_metric(name)] = sums.right[j] / sums.true[j]
            metrics[miss_rate_metric(name)] = (sums.true_decided[j] - sums.right[j]) / sums.true[j]
    return metrics


def areas(scores: Floats) -> tuple[Floats, Floats]:
    """ROC AUC and average precision of each class against the rest, (K, B) each.

    Parameters
    ----------
    scores : (K, bins, 2, B), the sums of `score_terms`; images in one bin are ties.
    """
    falling = scores[:, ::-1]
    negative, positive = falling[:, :, 0], falling[:, :, 1]
    false_positives, true_positives = np.moveaxis(cumulated(falling), 2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (negative * (true_positives - positive / 2)).sum(axis=1) / (
            true_positives[:, -1] * false_positives[:, -1]
        )
        # 0 where there are no positives yet; `divide`, with its mask, takes longer than all the rest
        precision = true_positives / np.maximum(true_positives + false_positives, np.finfo(float).tiny)
        return auc, (positive * precision).sum(axis=1) / true_positives[:, -1]


def class_areas(scored: Scored) -> tuple[Floats, Floats]:
    """ROC AUC and average precision of each class against the rest, (K,) each."""
    auc, average_precision = areas(scored.score_sums[..., None])
    return auc[:, 0], average_precision[:, 0]


def cumulated(falling: Floats) -> Floats:
    """Cumulative sums over the bins of (K, bins, 2, B)."""
    if falling.shape[-1] == 1:
        return np.asarray(falling.cumsum(axis=1))
    sums = falling.copy()  # cumsum adds number after number; a bin's sums of all resamples at a time are faster
    for i in range(1, sums.shape[1]):
        sums[:, i] += sums[:, i - 1]
    return sums
