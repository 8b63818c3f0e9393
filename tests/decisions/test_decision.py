"""Decisions against the brute-force Bayes decision and Chow's rule."""

import numpy as np
import pytest
from scipy.stats import binomtest

from udc_model.decisions.actions import with_actions
from udc_model.decisions.decision import (
    clopper_pearson_bound,
    constant_costs,
    decide,
    mean_cost,
    normalised_cost,
    shift_prior,
)


def test_min_expected_cost_equals_the_brute_force_bayes_decision(rng):
    p = rng.dirichlet(np.ones(4), 500)
    costs = rng.random((4, 4)) * 10
    decided = decide(p, costs, "min_expected_cost")
    for row, k in zip(p, decided, strict=True):
        expected = [sum(row[y] * costs[y, d] for y in range(4)) for d in range(4)]
        assert expected[k] == pytest.approx(min(expected))


def test_binary_threshold_is_one_eleventh_at_ten_to_one():
    costs = np.array([[0.0, 1.0], [10.0, 0.0]])  # missing class 1 costs 10
    p1 = np.array([1 / 11 - 1e-6, 1 / 11 + 1e-6])
    assert decide(np.column_stack([1 - p1, p1]), costs, "min_expected_cost").tolist() == [0, 1]


def test_decisions_are_invariant_to_row_offsets_and_scale(rng):
    p, costs = rng.dirichlet(np.ones(3), 300), rng.random((3, 3))
    shifted = 7 * (costs + np.array([[5.0], [-2.0], [0.3]]))
    assert (decide(p, costs, "min_expected_cost") == decide(p, shifted, "min_expected_cost")).all()


def test_uniform_costs_decide_as_argmax(rng):
    p = rng.dirichlet(np.ones(5), 300)
    assert (decide(p, 1 - np.eye(5), "min_expected_cost") == decide(p, np.eye(5), "argmax")).all()


def test_mean_and_normalised_cost():
    costs = np.array([[0.0, 1.0], [10.0, 0.0]])
    targets, decided = np.array([0, 0, 0, 1]), np.array([0, 1, 0, 0])
    assert mean_cost(targets, decided, costs) == 11 / 4
    assert normalised_cost(targets, decided, costs) == pytest.approx((11 / 4) / (3 / 4))  # always deciding 1 costs 3/4
    free = np.array([[0.0, 5.0], [0.0, 0.0]])  # always deciding 0 costs nothing
    assert normalised_cost(targets, decided, free) is None


def test_referral_follows_chows_rule(rng):
    p, costs = rng.dirichlet(np.ones(3), 500), rng.random((3, 3)) * (1 - np.eye(3)) * 4
    refer = 0.7
    decided = decide(p, with_actions(costs, refer, {}), "min_expected_cost")
    for row, k in zip(p, decided, strict=True):
        expected = [sum(row[y] * costs[y, d] for y in range(3)) for d in range(3)]
        assert (k == 3) == (min(expected) > refer)
    assert 0 < (decided == 3).mean() < 1
    assert (decide(p, with_actions(costs, refer, {}), "argmax") < 3).all()


def test_shift_prior_follows_bayes(rng):
    likelihood = rng.dirichlet(np.ones(5), 3)  # p(x | y), five values of x
    old, new = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.2, 0.7])
    posterior = {name: (prior[:, None] * likelihood).T for name, prior in (("old", old), ("new", new))}
    p = {name: values / values.sum(axis=1, keepdims=True) for name, values in posterior.items()}
    assert shift_prior(p["old"], old, new) == pytest.approx(p["new"])


def test_weights_change_the_class_frequencies():
    costs = np.array([[0.0, 1.0], [10.0, 0.0]])
    targets, decided = np.array([0, 0, 0, 1]), np.array([0, 1, 0, 0])
    weights = np.array([2 / 3, 2 / 3, 2 / 3, 2.0])  # equal class frequencies
    assert mean_cost(targets, decided, costs, weights) == pytest.approx(0.5 / 3 + 5)
    assert constant_costs(targets, costs, weights).tolist() == pytest.approx([5, 0.5])
    assert normalised_cost(targets, decided, costs, weights) == pytest.approx((0.5 / 3 + 5) / 0.5)


@pytest.mark.parametrize("hits", range(13))
def test_clopper_pearson_bound_equals_scipy(hits):
    expected = binomtest(hits, 12, alternative="greater").proportion_ci(0.9, method="exact").low
    assert clopper_pearson_bound(hits, 12, 0.9) == pytest.approx(expected, abs=1e-12)
