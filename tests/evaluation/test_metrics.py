"""Metrics against hand-worked values; tables; pictures that do not fail on many or long class names."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from udc_model.evaluation.metrics import expected_calibration_error, one_vs_rest_auc, per_class_table, split_metrics
from udc_model.evaluation.plots import plot_confusion_matrix, plot_precision_recall, plot_roc
from udc_model.evaluation.tables import precision_recall_points, predictions_table, roc_points


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


def test_curves_run_from_corner_to_corner(scored):
    targets, p = scored
    roc = roc_points(targets, p)
    assert roc.iloc[-1].tolist() == [1.0, 1.0]
    assert (np.diff(roc["true_positive_rate"]) >= 0).all()
    area = np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"])
    assert area == pytest.approx(one_vs_rest_auc(targets, p), abs=0.01)
    pr = precision_recall_points(targets, p)
    assert (np.diff(pr["precision"]) <= 1e-12).all()
    assert pr["precision"].iloc[-1] == pytest.approx(np.mean([(targets == k).mean() for k in range(3)]), abs=0.2)


def test_predictions_table(rng):
    logits = rng.normal(size=(2, 2)).astype(np.float32)
    table = predictions_table(
        ["x", "y"], ["", "g"], np.array([0, 1]), np.array([1, 1]), np.zeros(2), logits, ["a", "b"]
    )
    assert table.columns.tolist() == ["path", "group", "true", "predicted", "expected_cost", "logit_a", "logit_b"]
    assert table["predicted"].tolist() == ["b", "b"]


@pytest.mark.parametrize("n", [2, 12, 60])
def test_pictures_of_few_and_many_classes(n, rng, tmp_path):
    classes = [f"a rather long class name {k}" for k in range(n)]
    targets = np.repeat(np.arange(n), 4)
    p = rng.dirichlet(np.ones(n), 4 * n)
    counts = rng.integers(0, 2000, (n, n)) * (rng.random((n, n)) < 5 / n)
    for name in ("one.png", "two.png"):
        plot_confusion_matrix(tmp_path / name, counts, classes, "Confusion matrix")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    plot_roc(tmp_path / "roc.png", targets, p, classes)
    plot_precision_recall(tmp_path / "pr.png", targets, p, classes)
