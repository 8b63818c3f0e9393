"""Decisions against the brute-force Bayes decision; calibration against a known temperature."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from udc_model.costs.calibration import fit_temperature, negative_log_likelihood, probabilities
from udc_model.costs.decision import decide, mean_cost, normalised_cost


def test_minimum_expected_cost_is_the_brute_force_bayes_decision(rng):
    p = rng.dirichlet(np.ones(4), 500)
    costs = rng.random((4, 4)) * 10
    decided = decide(p, costs, "min_expected_cost")
    for row, k in zip(p, decided, strict=True):
        prices = [sum(row[y] * costs[y, d] for y in range(4)) for d in range(4)]
        assert prices[k] == pytest.approx(min(prices))


def test_binary_threshold_is_one_eleventh_at_ten_to_one():
    costs = np.array([[0.0, 1.0], [10.0, 0.0]])  # missing class 1 costs 10
    p1 = np.array([1 / 11 - 1e-6, 1 / 11 + 1e-6])
    assert decide(np.column_stack([1 - p1, p1]), costs, "min_expected_cost").tolist() == [0, 1]


def test_adding_to_a_row_or_scaling_changes_no_decision(rng):
    p, costs = rng.dirichlet(np.ones(3), 300), rng.random((3, 3))
    shifted = 7 * (costs + np.array([[5.0], [-2.0], [0.3]]))
    assert (decide(p, costs, "min_expected_cost") == decide(p, shifted, "min_expected_cost")).all()


def test_uniform_costs_are_argmax(rng):
    p = rng.dirichlet(np.ones(5), 300)
    assert (decide(p, 1 - np.eye(5), "min_expected_cost") == decide(p, np.eye(5), "argmax")).all()


def test_mean_and_normalised_cost():
    costs = np.array([[0.0, 1.0], [10.0, 0.0]])
    targets, decided = np.array([0, 0, 0, 1]), np.array([0, 1, 0, 0])
    assert mean_cost(targets, decided, costs) == 11 / 4
    assert normalised_cost(targets, decided, costs) == pytest.approx((11 / 4) / (3 / 4))  # always saying 1 costs 3/4
    free = np.array([[0.0, 5.0], [0.0, 0.0]])  # calling everything 0 costs nothing
    assert normalised_cost(targets, decided, free) is None


def test_temperature_recovers_a_known_one(rng):
    logits = rng.normal(0, 2, (200_000, 4))
    p = softmax(logits, axis=1)
    targets = (p.cumsum(axis=1) > rng.random((200_000, 1))).argmax(axis=1)
    for true in (0.25, 1.0, 3.0):
        assert fit_temperature(logits * true, targets) == pytest.approx(true, rel=0.02)


def test_negative_log_likelihood_is_scikit_learns(rng):
    logits, targets = rng.normal(0, 2, (100, 3)), rng.integers(0, 3, 100)
    assert negative_log_likelihood(logits, targets, 1.7) == pytest.approx(
        log_loss(targets, probabilities(logits, 1.7), labels=[0, 1, 2])
    )


def test_temperature_stays_one_where_none_is_best():
    targets = np.array([0, 1, 0, 1])
    logits = np.where(np.eye(2)[targets] > 0, 1.0, -1.0)  # all right: the likelihood rises for ever
    assert fit_temperature(logits, targets) == 1.0


def test_temperature_at_the_bound_is_told(caplog):
    logits = np.array([[5.0, 0.0]] * 2 + [[0.0, 5.0]] * 2)
    assert fit_temperature(logits, np.array([1, 1, 0, 0])) > 300
    assert "at the bound" in caplog.text
