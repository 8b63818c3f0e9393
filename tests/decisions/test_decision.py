"""Decisions against the brute-force Bayes decision and Chow's rule, and the guarantee of recall floors."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from udc_model.decisions.decision import (
    clopper_pearson_bound,
    constant_costs,
    decide,
    mean_cost,
    normalised_cost,
    positives_needed,
    recall_surcharge,
    shift_prior,
    with_surcharge,
)
from udc_model.decisions.matrix import with_referral
from udc_model.errors import UdcError


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
    decided = decide(p, with_referral(costs, refer), "min_expected_cost")
    for row, k in zip(p, decided, strict=True):
        expected = [sum(row[y] * costs[y, d] for y in range(3)) for d in range(3)]
        assert (k == 3) == (min(expected) > refer)
    assert 0 < (decided == 3).mean() < 1
    assert (decide(p, with_referral(costs, refer), "argmax") < 3).all()


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


@pytest.mark.parametrize(("floor", "confidence", "n"), [(0.95, 0.9, 45), (0.95, 0.95, 59), (0.9, 0.95, 29)])
def test_positives_needed_equals_published_numbers(floor, confidence, n):
    assert positives_needed(floor, confidence) == n
    assert clopper_pearson_bound(n, n, confidence) >= floor > clopper_pearson_bound(n - 1, n - 1, confidence)


@pytest.mark.parametrize("hits", range(13))
def test_clopper_pearson_bound_equals_scipy(hits):
    expected = binomtest(hits, 12, alternative="greater").proportion_ci(0.9, method="exact").low
    assert clopper_pearson_bound(hits, 12, 0.9) == pytest.approx(expected, abs=1e-12)


def test_recall_surcharge_raises_with_the_number_of_missing_samples(rng):
    p, targets = rng.dirichlet(np.ones(2), 40), np.repeat([0, 1], 20)
    with pytest.raises(UdcError, match=r"at least 59 .* which has 20: 39 more are needed"):
        recall_surcharge(p, targets, 1 - np.eye(2), 1, 0.95, 0.95, "venomous")


def _population(rng, n):
    """Posteriors of three classes and targets drawn from them."""
    p = rng.dirichlet([0.6, 0.6, 0.6], n)
    return p, (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


def test_recall_floor_is_missed_at_most_at_its_level(rng):
    floor, confidence, draws = 0.9, 0.9, 500
    costs = np.array([[0.0, 1.0, 4.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    p_all, y_all = _population(rng, 60_000)
    p_of_class = p_all[y_all == 1]
    missed = 0
    for _ in range(draws):
        p, y = _population(rng, 300)
        surcharge = recall_surcharge(p, y, costs, 1, floor, confidence, "b")
        recall = (decide(p_of_class, with_surcharge(costs, 1, surcharge), "min_expected_cost") == 1).mean()
        missed += recall < floor
    assert missed <= binom.ppf(0.999, draws, 1 - confidence)
    assert missed >= binom.ppf(0.001, draws, (1 - confidence) / 4)  # and the surcharge is no larger than needed


def test_surcharge_of_a_floor_already_reached_is_zero(rng):
    p, y = _population(rng, 2000)
    costs = 1 - np.eye(3)
    surcharge = recall_surcharge(p, y, costs, 1, 0.3, 0.95, "b")
    assert surcharge < 1e-6
    assert (decide(p, with_surcharge(costs, 1, surcharge), "min_expected_cost") == p.argmax(axis=1)).all()


def test_recall_floor_decisions_cost_least_for_their_recall(rng):
    p, y = _population(rng, 4000)
    costs = np.array([[0.0, 1.0, 4.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    surcharge = recall_surcharge(p, y, costs, 1, 0.8, 0.95, "b")
    decided = decide(p, with_surcharge(costs, 1, surcharge), "min_expected_cost")
    needed = int((decided[y == 1] == 1).sum())
    # the alternative: a threshold on the probability of the class, least expected cost among the others
    order = np.sort(p[y == 1, 1])[::-1]
    rest = np.array([0, 2])[decide(p, costs[:, [0, 2]], "min_expected_cost")]
    by_threshold = np.where(p[:, 1] >= order[needed - 1], 1, rest)
    expected = (p @ costs)[np.arange(len(p))[:, None], np.column_stack([decided, by_threshold])].mean(axis=0)
    assert expected[0] <= expected[1] + 1e-9
