"""Curves against scikit-learn, the formulas of their papers, and their end points."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.policy import Policy
from udc_model.evaluation.curves import (
    class_curves,
    cost_curve,
    costliest_class,
    mean_curves,
    referral_curve,
    reliability,
)
from udc_model.evaluation.metrics import Scored

CLASSES = ["a", "b", "c"]


@pytest.fixture
def scored(rng):
    p = rng.dirichlet(np.ones(3) * 0.7, 500)
    targets = (p.cumsum(axis=1) > rng.random((500, 1))).argmax(axis=1)
    costs = np.array([[0.0, 1.0, 2.0], [6.0, 0.0, 3.0], [1.0, 1.0, 0.0]])
    return Scored(targets, (p @ costs).argmin(axis=1), p, costs)


def test_mean_curves_end_at_the_corners_and_match_the_areas(scored):
    roc, pr, areas = mean_curves(scored, CLASSES, 100, 0.95)
    assert roc.iloc[-1].tolist() == [1.0] * 4
    assert (np.diff(roc["true_positive_rate"]) >= 0).all()
    exact = [roc_auc_score(scored.targets == k, scored.probabilities[:, k]) for k in range(3)]
    assert areas["roc_auc"].tolist() == pytest.approx(exact)
    assert np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"]) == pytest.approx(
        np.mean(exact), abs=0.01
    )
    assert ((areas["roc_auc_low"] < areas["roc_auc"]) & (areas["roc_auc"] < areas["roc_auc_high"])).all()
    assert (np.diff(pr["precision"]) <= 1e-12).all()
    for table, y in ((roc, "true_positive_rate"), (pr, "precision")):
        assert ((table["low"] <= table[y] + 1e-9) & (table[y] <= table["high"] + 1e-9)).mean() > 0.95
    for curves in class_curves(scored, CLASSES):
        assert curves.groupby("class")[curves.columns[1]].max().tolist() == [1.0] * 3


@pytest.mark.parametrize("weighted", [False, True])
def test_class_curves_equal_scikit_learn(scored, weighted, rng):
    weights = rng.random(3)[scored.targets] + 0.5 if weighted else None
    probabilities = scored.probabilities.round(2)  # with ties
    scored = replace(scored, probabilities=probabilities, weights=weights)
    roc, pr = class_curves(scored, CLASSES)
    for k, name in enumerate(CLASSES):
        fpr, tpr, _ = roc_curve(
            scored.targets == k, probabilities[:, k], sample_weight=weights, drop_intermediate=False
        )
        own = roc[roc["class"] == name]
        if not weighted:  # rounding decides which points of weighted curves are on a straight line
            turns = np.abs(np.diff(fpr)[:-1] * np.diff(tpr)[1:] - np.diff(fpr)[1:] * np.diff(tpr)[:-1]) > 1e-12
            assert own["false_positive_rate"].tolist() == pytest.approx(fpr[np.r_[True, turns, True]].tolist())
        assert np.interp(fpr, own["false_positive_rate"], own["true_positive_rate"])[-1] == pytest.approx(1)
        assert np.trapezoid(own["true_positive_rate"], own["false_positive_rate"]) == pytest.approx(
            np.trapezoid(tpr, fpr)
        )
        precision, recall, _ = precision_recall_curve(
            scored.targets == k, probabilities[:, k], sample_weight=weights, drop_intermediate=True
        )
        own = pr[pr["class"] == name]
        assert own["precision"].tolist() == pytest.approx(precision.tolist())
        assert own["recall"].tolist() == pytest.approx(recall.tolist())


def test_reliability_equals_scikit_learn(rng):
    p1 = rng.random(1000)
    targets = (p1 > rng.random(1000)).astype(int)
    scored = Scored(targets, targets, np.column_stack([1 - p1, p1]), 1 - np.eye(2))
    table = reliability(scored, scored.probabilities, 10, 0.95)
    assert table["calibration"].tolist() == ["before"] * 10 + ["after"] * 10
    confidence = np.maximum(p1, 1 - p1)
    true, predicted = calibration_curve((p1 > 0.5) == targets, confidence, n_bins=10, strategy="quantile")
    assert table["accuracy"][10:].tolist() == pytest.approx(true.tolist(), abs=0.01)
    assert table["confidence"][10:].tolist() == pytest.approx(predicted.tolist(), abs=0.01)
    for row in table.itertuples():
        interval = binomtest(round(row.accuracy * row.images), row.images).proportion_ci(0.95, method="exact")
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))


def test_cost_curve_of_two_classes_equals_drummond_and_holte(rng):
    p1 = rng.random(800)
    targets = (p1 > rng.random(800)).astype(int)
    p = np.column_stack([1 - p1, p1])
    costs = np.array([[0.0, 1.0], [5.0, 0.0]])
    policy = Policy(["neg", "pos"], costs.tolist())
    decided = policy.decide(p)
    table = cost_curve(Scored(targets, decided, p, costs), policy)
    false_negative, false_positive = (decided[targets == 1] == 0).mean(), (decided[targets == 0] == 1).mean()
    x = table["x"].to_numpy()
    assert costliest_class(costs) == 1
    assert table["fixed_decisions"].to_numpy() == pytest.approx(false_negative * x + false_positive * (1 - x))
    assert table["best_constant"].to_numpy() == pytest.approx(np.minimum(x, 1 - x))
    assert (table["policy"] <= table["best_constant"] + 0.02).all()
    assert table["policy"].mean() < table["fixed_decisions"].mean()
    assert set(table["costliest_class"]) == {"pos"}


@pytest.mark.parametrize("refer", [None, 0.4])
def test_cost_curve_decides_as_the_policy_does_at_each_frequency(refer, rng):
    """With ties, referral, and costs of missing the costliest class that are equal for some decisions."""
    p = rng.dirichlet(np.ones(5), 300).round(1) + 0.01
    p /= p.sum(axis=1, keepdims=True)
    targets = np.arange(300) % 5
    costs = np.array([[0, 1, 1, 2, 2], [9, 0, 9, 5, 5], [1, 1, 0, 1, 1], [2, 1, 1, 0, 1], [1, 3, 1, 1, 0]], dtype=float)
    policy = Policy(list("abcde"), costs.tolist(), refer=refer)
    table = cost_curve(Scored(targets, policy.decide(p), p, policy.outcome_costs), policy)
    mistake_costs = np.array([1.5, 7, 1, 1.25, 1.5])
    for x, cost in zip(table["x"][::7], table["policy"][::7], strict=True):
        odds = x / (1 - x) * (np.array([1, 0, 1, 1, 1]) / 4 @ mistake_costs) / 7
        prior = np.array([1, 4 * odds, 1, 1, 1]) / 4 / (1 + odds)
        decided = policy.decide(p * prior / (p * prior).sum(axis=1, keepdims=True))
        paid = np.average(policy.outcome_costs[targets, decided], weights=prior[targets])
        assert cost == pytest.approx(paid / (prior @ mistake_costs))


@pytest.mark.parametrize("decision", ["min_expected_cost", "argmax"])
def test_cost_curve_refers_unfamiliar_images_at_each_frequency(decision, rng):
    p = rng.dirichlet(np.ones(2), 400)
    targets = np.arange(400) % 2
    familiarity = rng.random(400).round(2)
    policy = Policy(["a", "b"], [[0.0, 1.0], [1.0, 0.0]], decision, refer=0.4,
                    familiarity=Familiarity("0" * 64, 8, 1, list(np.linspace(0, 1, 199)), "refer", 0.3))  # fmt: skip
    decided = policy.apply(np.log(p), familiarity).decided
    assert (decided[familiarity <= 0.3] == 2).all()
    table = cost_curve(Scored(targets, decided, p, policy.outcome_costs), policy, familiarity).set_index("x")
    assert table["policy"][0.5] == pytest.approx(table["fixed_decisions"][0.5])  # the frequencies of the split
    shifted = p * [0.9, 0.1]  # the first class is the costliest
    anew = np.where(familiarity <= 0.3, 2, policy.decide(shifted / shifted.sum(axis=1, keepdims=True)))
    paid = np.average(policy.outcome_costs[targets, anew], weights=np.array([0.9, 0.1])[targets])
    assert table["policy"].iloc[89] == pytest.approx(paid)


def test_no_cost_curve_if_mistakes_of_one_class_only_cost(scored):
    costs = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    policy = Policy(CLASSES, costs.tolist())
    assert cost_curve(Scored(scored.targets, scored.decided, scored.probabilities, costs), policy) is None


def test_referral_curve_starts_at_the_mean_cost_and_ends_at_the_cost_of_referral(scored):
    with_referral = replace(scored, outcome_costs=np.column_stack([scored.outcome_costs, np.full(3, 0.4)]))
    table = referral_curve(with_referral)
    cost = scored.cost_paid.mean()
    assert table.iloc[0].tolist() == pytest.approx([0, cost, cost])
    assert table["cost_of_decided"].iloc[-1] < cost
    assert table["cost_with_referral"].iloc[-1] == pytest.approx(0.4, abs=0.01)
    assert table["cost_with_referral"].min() < min(cost, 0.4)
    assert "cost_with_referral" not in referral_curve(scored)
