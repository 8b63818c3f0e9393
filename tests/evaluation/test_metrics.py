"""Metrics against scikit-learn and hand-worked values."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from udc_model.evaluation.metrics import (
    Scored,
    baselines_table,
    cost_by_pair,
    expected_calibration_error,
    one_vs_rest_auc,
    per_class_table,
)
from udc_model.evaluation.metrics import split_metrics as split_metrics_of


def split_metrics(targets, decided, probabilities, costs, bins, recall_of=(), weights=None):
    return split_metrics_of(Scored(targets, decided, probabilities, costs, weights), bins, recall_of)


@pytest.fixture
def scored(rng):
    targets = rng.integers(0, 3, 300)
    p = rng.dirichlet(np.ones(3), 300) * 0.5 + np.eye(3)[targets] * 0.5 * rng.random((300, 1))
    return targets, p / p.sum(axis=1, keepdims=True)


def test_auc_is_scikit_learns(scored):
    targets, p = scored
    assert one_vs_rest_auc(targets, p) == pytest.approx(roc_auc_score(targets, p, multi_class="ovr", average="macro"))


def test_probability_scores_by_their_definitions(scored):
    targets, p = scored
    found = split_metrics(targets, p.argmax(axis=1), p, 1.0 - np.eye(3), 15)
    assert found["brier_score"] == pytest.approx(((p - np.eye(3)[targets]) ** 2).sum(axis=1).mean())
    assert found["average_precision"] == pytest.approx(average_precision_score(np.eye(3)[targets], p, average="macro"))
    agreement = found["accuracy"]
    shares = np.bincount(targets, minlength=3) / 300, np.bincount(p.argmax(axis=1), minlength=3) / 300
    chance = float(shares[0] @ shares[1])
    assert found["cohen_kappa"] == pytest.approx((agreement - chance) / (1 - chance))
    perfect = split_metrics(targets, targets, np.eye(3)[targets], 1.0 - np.eye(3), 15)
    assert perfect["matthews_correlation"] == perfect["cohen_kappa"] == 1
    assert perfect["brier_score"] == 0


def test_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
    targets = np.array([0, 1, 0, 0])
    # two bins of two: confidences 0.6, 0.7 (both right), 0.8, 0.9 (one right)
    assert expected_calibration_error(targets, p, 2) == pytest.approx((abs(1.3 - 2) + abs(1.7 - 1)) / 4)


def test_calibrated_probabilities_have_a_small_error(rng):
    p = rng.dirichlet(np.ones(3), 50_000)
    targets = (p.cumsum(axis=1) > rng.random((50_000, 1))).argmax(axis=1)
    assert expected_calibration_error(targets, p, 15) < 0.01
    assert expected_calibration_error(targets, np.eye(3)[p.argmax(axis=1)], 15) > 0.2


def test_metrics_tell_decisions_from_argmax(scored):
    targets, p = scored
    costs = 1.0 - np.eye(3)
    right = split_metrics(targets, targets, p, costs, 15)
    assert right["accuracy"] == right["balanced_accuracy"] == right["macro_f1"] == 1
    assert right["mean_cost"] == right["normalised_cost"] == 0
    assert right["argmax_accuracy"] == pytest.approx((p.argmax(axis=1) == targets).mean())
    assert right["argmax_mean_cost"] == pytest.approx(1 - right["argmax_accuracy"])


def test_per_class_table():
    table = per_class_table(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["a", "b"])
    assert table["class"].tolist() == ["a", "b"]
    assert table["recall"].tolist() == [0.5, 1.0]
    assert table["precision"].tolist() == [1.0, pytest.approx(2 / 3)]
    assert table["support"].tolist() == [2, 2]


def test_recall_miss_rate_and_referral_by_hand():
    costs = np.array([[0.0, 1.0, 0.3], [10.0, 0.0, 0.3]])  # the third column is referral
    targets, decided = np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 0, 2])
    p = np.full((5, 2), 0.5)
    found = split_metrics(targets, decided, p, costs, 5, [(1, "venomous")])
    assert found["recall/venomous"] == found["miss_rate/venomous"] == pytest.approx(1 / 3)
    assert found["referral_rate"] == pytest.approx(2 / 5)
    assert found["accuracy"] == pytest.approx(2 / 3)  # of the three that were decided
    assert found["mean_cost"] == pytest.approx((0.3 + 10 + 0.3) / 5)
    assert found["constant_mean_cost"] == pytest.approx(0.3)  # refer all
    assert found["cost_saved"] == pytest.approx(30 / 5 - 10.6 / 5)  # argmax says 0 to all
    everything = split_metrics(targets, np.full(5, 2), p, costs, 5)
    assert everything["accuracy"] is everything["matthews_correlation"] is None
    assert everything["mean_cost"] == pytest.approx(0.3)


def test_weights_are_as_good_as_copies(scored):
    targets, p = scored
    costs = np.abs(np.subtract.outer(np.arange(3), np.arange(3))).astype(float)
    times = 1 + np.arange(300) % 3
    decided = (p @ costs).argmin(axis=1)
    weighted = split_metrics(targets, decided, p, costs, 1, [(2, "c")], weights=times.astype(float))
    copied = split_metrics(*(np.repeat(x, times, axis=0) for x in (targets, decided, p)), costs, 1, [(2, "c")])
    for name, value in weighted.items():
        if "/" not in name:  # recalls are within a class, where all weights are equal
            assert value == pytest.approx(copied[name], rel=1e-6), name


def test_where_the_money_went():
    costs = np.array([[0.0, 1.0], [10.0, 0.0]])
    scored = Scored(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 1]), np.full((4, 2), 0.5), costs)
    table = cost_by_pair(scored, ["a", "b"], ["a", "b"])
    assert table.to_numpy().tolist() == [["b", "a", 1, 10.0, 10 / 12], ["a", "b", 2, 2.0, 2 / 12]]
    rules = baselines_table(scored, ["a", "b"], "min_expected_cost").set_index("decision")["mean_cost"]
    assert rules.to_dict() == {"min_expected_cost": 3.0, "argmax": 5.0, "always b": 0.5}
