"""Metrics against scikit-learn and hand-worked values."""

import numpy as np
import pytest
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
from udc_model.evaluation.metrics import Scored, Terms, areas, class_areas, decision_metrics, score_terms
from udc_model.evaluation.metrics import split_metrics as split_metrics_of
from udc_model.evaluation.tables import baselines_table, cost_by_pair, per_class_table

RECALLS = [(0, "a"), (2, "c")]


def split_metrics(targets, decided, probabilities, costs, bins, recall_of=(), weights=None):
    return split_metrics_of(Scored(targets, decided, probabilities, costs, weights), bins, recall_of)


def calibration_error(targets, p, bins):
    return split_metrics(targets, p.argmax(axis=1), p, 1 - np.eye(p.shape[1]), bins)["expected_calibration_error"]


@pytest.fixture
def scored(rng):
    targets = rng.integers(0, 3, 300)
    p = rng.dirichlet(np.ones(3), 300) * 0.5 + np.eye(3)[targets] * 0.5 * rng.random((300, 1))
    return targets, p / p.sum(axis=1, keepdims=True)


def scikit_learn_metrics(scored, bins, recall_of):
    """All metrics of `split_metrics`, from scikit-learn and from means over images."""
    targets, p, weights, costs = scored.targets, scored.probabilities, scored.weights, scored.outcome_costs
    k, argmax = scored.num_classes, p.argmax(axis=1)
    is_decided = scored.decided < k
    y, decided = targets[is_decided], scored.decided[is_decided]
    sample_weight = None if weights is None else weights[is_decided]
    options = {"average": "macro", "sample_weight": sample_weight, "zero_division": 0.0}
    paid, argmax_paid = (mean_cost(targets, d, costs, weights) for d in (scored.decided, argmax))
    metrics = {
        "accuracy": accuracy_score(y, decided, sample_weight=sample_weight),
        "balanced_accuracy": recall_score(y, decided, labels=np.unique(y), **options),
        "macro_f1": f1_score(y, decided, **options),
        "cohen_kappa": cohen_kappa_score(y, decided, labels=np.arange(k), sample_weight=sample_weight),
        "matthews_correlation": matthews_corrcoef(y, decided, sample_weight=sample_weight),
        "mean_cost": paid,
        "normalised_cost": normalised_cost(targets, scored.decided, costs, weights),
        "constant_mean_cost": constant_costs(targets, costs, weights).min(),
        "argmax_accuracy": accuracy_score(targets, argmax, sample_weight=weights),
        "argmax_mean_cost": argmax_paid,
        "cost_saved": argmax_paid - paid,
        "referral_rate": np.average(scored.decided == k, weights=weights),
    }
    for j, name in recall_of:
        of_class = scored.decided[targets == j]
        metrics[f"recall/{name}"] = (of_class == j).mean()
        metrics[f"miss_rate/{name}"] = ((of_class != j) & (of_class != k)).mean()
    labels = {"labels": np.arange(k), "sample_weight": weights}
    confidence, w = p.max(axis=1), np.ones(len(targets)) if weights is None else weights
    gap = w * (confidence - (argmax == targets))
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return metrics | {
        "log_loss": log_loss(targets, p, **labels),
        "brier_score": brier_score_loss(targets, p, scale_by_half=False, **labels),
        "roc_auc": np.mean([roc_auc_score(targets == j, p[:, j], sample_weight=weights) for j in range(k)]),
        "average_precision": np.mean(
            [average_precision_score(targets == j, p[:, j], sample_weight=weights) for j in range(k)]
        ),
        "expected_calibration_error": sum(abs(gap[part].sum()) for part in parts) / w.sum(),
    }


@pytest.mark.parametrize("n", [60, 400, 6000])  # with 6000 images, resamples would use bins of probabilities
@pytest.mark.parametrize("refer", [None, 0.6])
@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_equal_scikit_learn(rng, n, refer, weighted):
    targets = np.append([0, 1, 2], rng.integers(0, 3, n - 3))
    p = rng.dirichlet(np.ones(3), n) * 0.6 + np.eye(3)[targets] * 0.4 * rng.random((n, 1))
    p /= p.sum(axis=1, keepdims=True)
    costs = np.abs(np.subtract.outer(np.arange(3), np.arange(3))).astype(float) ** 1.5
    if refer is not None:
        costs = np.column_stack([costs, np.full(3, refer)])
    weights = rng.random(3)[targets] + 0.5 if weighted else None
    scored = Scored(targets, (p @ costs).argmin(axis=1), p, costs, weights)
    metrics, expected = split_metrics_of(scored, 15, RECALLS), scikit_learn_metrics(scored, 15, RECALLS)
    assert list(metrics) == list(expected)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_areas_of_tied_and_certain_probabilities_equal_scikit_learn(rng):
    """Ties, and probabilities of exactly 0 and 1."""
    targets = np.append([0, 1, 2], rng.integers(0, 3, 197))
    p = np.round(rng.dirichlet(np.ones(3) * 0.3, 200) * 4)
    p /= p.sum(axis=1, keepdims=True)
    auc, average_precision = class_areas(Scored(targets, targets, p, 1 - np.eye(3)))
    for k in range(3):
        assert auc[k] == pytest.approx(roc_auc_score(targets == k, p[:, k]), rel=1e-12)
        assert average_precision[k] == pytest.approx(average_precision_score(targets == k, p[:, k]), rel=1e-12)
    metrics = split_metrics(targets, targets, p, 1 - np.eye(3), 15)
    assert metrics["log_loss"] == pytest.approx(log_loss(targets, p, labels=[0, 1, 2]), rel=1e-9)


def test_one_class_always_decided_right_has_no_kappa():
    p = np.array([[0.9, 0.1, 0.0], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
    costs = np.column_stack([1 - np.eye(3), np.full(3, 0.3)])
    metrics = split_metrics(np.arange(3), np.array([0, 3, 3]), p, costs, 3)
    assert metrics["cohen_kappa"] is None
    assert metrics["accuracy"] == metrics["balanced_accuracy"] == 1
    assert metrics["matthews_correlation"] == 0  # as in scikit-learn


def test_perfect_decisions_have_perfect_scores(scored):
    targets, _ = scored
    perfect = split_metrics(targets, targets, np.eye(3)[targets], 1.0 - np.eye(3), 15)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "cohen_kappa", "matthews_correlation", "roc_auc"):
        assert perfect[name] == 1, name
    assert perfect["brier_score"] == perfect["mean_cost"] == perfect["normalised_cost"] == 0


def test_brier_score_and_kappa_by_their_definitions(scored):
    targets, p = scored
    metrics = split_metrics(targets, p.argmax(axis=1), p, 1.0 - np.eye(3), 15)
    assert metrics["brier_score"] == pytest.approx(((p - np.eye(3)[targets]) ** 2).sum(axis=1).mean())
    agreement = metrics["accuracy"]
    shares = np.bincount(targets, minlength=3) / 300, np.bincount(p.argmax(axis=1), minlength=3) / 300
    chance = float(shares[0] @ shares[1])
    assert metrics["cohen_kappa"] == pytest.approx((agreement - chance) / (1 - chance))


def test_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
    targets = np.array([0, 1, 0, 0])
    # two bins of two: confidences 0.6 and 0.7 (both right), 0.8 and 0.9 (one right)
    assert calibration_error(targets, p, 2) == pytest.approx((abs(1.3 - 2) + abs(1.7 - 1)) / 4)


def test_calibrated_probabilities_have_a_small_calibration_error(rng):
    p = rng.dirichlet(np.ones(3), 50_000)
    targets = (p.cumsum(axis=1) > rng.random((50_000, 1))).argmax(axis=1)
    assert calibration_error(targets, p, 15) < 0.01
    assert calibration_error(targets, np.eye(3)[p.argmax(axis=1)], 15) > 0.2


def test_argmax_metrics_do_not_depend_on_the_decisions(scored):
    targets, p = scored
    right = split_metrics(targets, targets, p, 1.0 - np.eye(3), 15)
    assert right["accuracy"] == 1
    assert right["argmax_accuracy"] == pytest.approx((p.argmax(axis=1) == targets).mean())
    assert right["argmax_mean_cost"] == pytest.approx(1 - right["argmax_accuracy"])


def test_per_class_table_equals_scikit_learn(rng):
    targets, decided = rng.integers(0, 4, 200), rng.integers(0, 5, 200)  # 4 is referral
    decided[decided == 2] = 4  # a class that is never decided
    table = per_class_table(targets, decided, list("abcd"))
    expected = precision_recall_fscore_support(targets, decided, labels=range(4), zero_division=0.0)
    for column, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert table[column].tolist() == pytest.approx(values.tolist())


def test_per_class_table():
    table = per_class_table(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["a", "b"])
    assert table["class"].tolist() == ["a", "b"]
    assert table["recall"].tolist() == [0.5, 1.0]
    assert table["precision"].tolist() == [1.0, pytest.approx(2 / 3)]
    assert table["support"].tolist() == [2, 2]


def test_metrics_of_decisions_are_the_first_ones_of_all(rng):
    targets, p = rng.integers(0, 3, 200), rng.dirichlet(np.ones(3), 200)
    costs = np.hstack([rng.uniform(1, 9, (3, 3)) * (1 - np.eye(3)), np.full((3, 1), 0.5)])
    scored = Scored(targets, rng.integers(0, 4, 200), p, costs, rng.uniform(0.5, 2, 200))
    expected = split_metrics_of(scored, 15, RECALLS)
    metrics = decision_metrics(scored, RECALLS)
    assert list(metrics.items()) == list(expected.items())[: len(metrics)]
    assert list(expected)[len(metrics) :] == ["log_loss", "brier_score", "roc_auc", "average_precision",
                                              "expected_calibration_error"]  # fmt: skip


def test_recall_miss_rate_and_referral_by_hand():
    costs = np.array([[0.0, 1.0, 0.3], [10.0, 0.0, 0.3]])  # the third column is referral
    targets, decided = np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 0, 2])
    p = np.full((5, 2), 0.5)
    metrics = split_metrics(targets, decided, p, costs, 5, [(1, "venomous")])
    assert metrics["recall/venomous"] == metrics["miss_rate/venomous"] == pytest.approx(1 / 3)
    assert metrics["referral_rate"] == pytest.approx(2 / 5)
    assert metrics["accuracy"] == pytest.approx(2 / 3)  # of the three that were decided
    assert metrics["mean_cost"] == pytest.approx((0.3 + 10 + 0.3) / 5)
    assert metrics["constant_mean_cost"] == pytest.approx(0.3)  # refer all
    assert metrics["cost_saved"] == pytest.approx(30 / 5 - 10.6 / 5)  # argmax decides 0 for all
    all_referred = split_metrics(targets, np.full(5, 2), p, costs, 5)
    assert all_referred["accuracy"] is all_referred["macro_f1"] is all_referred["matthews_correlation"] is None
    assert all_referred["mean_cost"] == pytest.approx(0.3)


def test_a_class_whose_images_are_all_referred_is_left_out_of_means_over_classes():
    targets, decided = np.repeat([0, 1, 2], 2), np.array([0, 0, 1, 1, 3, 3])
    metrics = split_metrics(targets, decided, np.full((6, 3), 1 / 3), np.ones((3, 4)), 5)
    assert metrics["balanced_accuracy"] == metrics["macro_f1"] == 1
    assert metrics["macro_f1"] == f1_score(targets[:4], decided[:4], average="macro")
    decided[0] = 2  # then it has F1 = 0
    metrics = split_metrics(targets, decided, np.full((6, 3), 1 / 3), np.ones((3, 4)), 5)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_weights_equal_copies(scored):
    targets, p = scored
    costs = np.abs(np.subtract.outer(np.arange(3), np.arange(3))).astype(float)
    copies = 1 + np.arange(300) % 3
    decided = (p @ costs).argmin(axis=1)
    weighted = split_metrics(targets, decided, p, costs, 1, [(2, "c")], weights=copies.astype(float))
    copied = split_metrics(*(np.repeat(x, copies, axis=0) for x in (targets, decided, p)), costs, 1, [(2, "c")])
    for name, value in weighted.items():
        if "/" not in name:  # recalls are within a class, where all weights are equal
            assert value == pytest.approx(copied[name], rel=1e-6), name


def test_cost_by_pair_and_baselines_by_hand():
    costs = np.array([[0.0, 1.0], [10.0, 0.0]])
    scored = Scored(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 1]), np.full((4, 2), 0.5), costs)
    table = cost_by_pair(scored, ["a", "b"], ["a", "b"])
    assert table.to_numpy().tolist() == [["b", "a", 1, 10.0, 10 / 12], ["a", "b", 2, 2.0, 2 / 12]]
    baselines = baselines_table(scored, ["a", "b"], "min_expected_cost").set_index("decision")
    assert baselines["mean_cost"].to_dict() == {"min_expected_cost": 3.0, "argmax": 5.0, "always b": 0.5}
    assert baselines["normalised_cost"].tolist() == [6.0, 10.0, 1.0]
    assert baselines["accuracy"].tolist() == [0.25, 0.5, 0.5]


def test_areas_need_few_bins_and_are_exact(rng):
    """A bin for each score of an image of the class, and one between two of them, also with ties."""
    targets = np.repeat(np.arange(3), [400, 40, 4])
    p = (rng.dirichlet(np.ones(3), len(targets)) + 0.3 * np.eye(3)[targets]).round(3)
    scored = Scored(targets, targets, p, 1 - np.eye(3))
    auc, average_precision = class_areas(scored)
    for k in range(3):
        assert auc[k] == pytest.approx(roc_auc_score(targets == k, p[:, k]))
        assert average_precision[k] == pytest.approx(average_precision_score(targets == k, p[:, k]))
    sums = score_terms(scored).total().reshape(3, -1, 2)
    assert (sums[2].sum(axis=1) > 0).sum() <= 2 * 4 + 1
    coarse = areas(score_terms(scored, 50).total().reshape(3, -1, 2, 1))
    assert coarse[0][:, 0] == pytest.approx(auc, abs=0.02)
    assert coarse[0][2, 0] == pytest.approx(auc[2])  # 4 images of the class need fewer than 50 bins
    assert score_terms(scored, 50).width <= 3 * 2 * 50


@pytest.mark.parametrize("images", [30, 3000])  # sums of few and many terms
def test_terms_of_scores_repeat_images_and_weights_without_copies(rng, images):
    targets = np.arange(images) % 3
    scored = Scored(targets, targets, rng.dirichlet(np.ones(3), images).round(1), 1 - np.eye(3), rng.random(images))
    terms = score_terms(scored)
    assert terms.rows.strides[0] == terms.values.strides[0] == 0
    copies = Terms(terms.rows.ravel(), terms.columns.ravel(), terms.values.ravel(), terms.width)
    assert terms.total().tobytes() == copies.total().tobytes()
    assert (terms.table(images) != copies.table(images)).nnz == 0
