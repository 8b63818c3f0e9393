"""Estimated class frequencies: value, interval, cost of the decisions, and the test for other changes."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import beta

from udc_model.decisions.decision import decide, mean_cost, shift_prior
from udc_model.decisions.prior import describe_prior, estimate_prior, shift_test

MEANS = np.array([[0.0, 0.0, 2.2], [2.2, 0.0, 0.0], [0.0, 2.2, 0.0]])
TRAINING = np.array([0.15, 0.5, 0.35])
COSTS = np.array([[0, 10, 10], [1, 0, 1], [1, 1, 0]], dtype=float)


def sample(rng, prior, n, shift=0.0):
    """Classes of n normal images of three classes, and the exact posteriors under ``TRAINING``."""
    targets = rng.choice(3, n, p=prior)
    images = MEANS[targets] + rng.standard_normal((n, 3)) + shift
    return targets, softmax(images @ MEANS.T - (MEANS**2).sum(axis=1) / 2 + np.log(TRAINING), axis=1)


def shifted(factor):
    """The frequencies with that of the first class multiplied."""
    share = TRAINING[0] * factor
    return np.array([share, *(TRAINING[1:] * (1 - share) / TRAINING[1:].sum())])


@pytest.mark.parametrize("factor", [0.2, 5])
def test_decisions_cost_as_with_the_true_frequencies_and_intervals_cover(factor, rng):
    prior, cost, covered = shifted(factor), np.zeros(3), 0
    for _ in range(20):
        targets, p = sample(rng, prior, 1000)
        estimate = estimate_prior(p, TRAINING, resamples=100)
        covered += estimate.low[0] <= prior[0] <= estimate.high[0]
        for i, frequencies in enumerate((prior, estimate.prior, TRAINING)):
            decided = decide(shift_prior(p, TRAINING, frequencies), COSTS, "min_expected_cost")
            cost[i] += mean_cost(targets, decided, COSTS)
    assert cost[1] <= 1.05 * cost[0] < cost[2]
    assert covered >= 18


def test_certain_images_have_the_interval_of_clopper_and_pearson():
    n, hits = 50, np.array([0, 5, 45])
    p = np.repeat(np.eye(3), hits, axis=0)
    estimate = estimate_prior(p, np.full(3, 1 / 3), resamples=4000)
    # one image of training's frequencies is added
    assert estimate.prior == pytest.approx((hits + 1 / 3) / (n + 1))
    assert estimate.high[0] == pytest.approx(beta.ppf(0.975, 1, n), abs=0.015)
    assert estimate.low[1] == pytest.approx(beta.ppf(0.025, 5, n - 4), abs=0.01)
    assert estimate.high[1] == pytest.approx(beta.ppf(0.975, 6, n - 5), abs=0.02)


def test_the_maximum_is_that_of_the_likelihood(rng):
    _, p = sample(rng, shifted(5), 300)
    found = estimate_prior(p, TRAINING, resamples=1).prior

    def penalised(prior):
        return np.log((p * prior / TRAINING).sum(axis=1)).sum() + TRAINING @ np.log(prior)

    for _ in range(50):
        moved = found * np.exp(rng.normal(0, 0.02, 3))
        assert penalised(moved / moved.sum()) < penalised(found)


@pytest.mark.parametrize(("k", "n"), [(2, 1), (2, 3), (300, 1), (300, 40)])
def test_few_images_and_many_classes(k, n, rng):
    p = rng.dirichlet(np.full(k, 0.05), size=n)  # many probabilities that are 0 in effect
    p[p < 1e-6] = 0
    p /= p.sum(axis=1, keepdims=True)
    training = np.full(k, 1 / k)
    estimate = estimate_prior(p, training, resamples=20)
    assert estimate.prior.sum() == pytest.approx(1)
    assert (estimate.prior > 0).all()
    ends = np.array([np.zeros(k), estimate.low, estimate.prior, estimate.high, np.ones(k)])
    assert (np.diff(ends, axis=0) >= 0).all()
    assert np.isfinite(shift_prior(p, training, estimate.prior)).all()
    assert 0 < shift_test(p, estimate.prior, training, np.eye(k), np.arange(k), resamples=20) <= 1


def test_a_class_that_training_lacks_stays_at_zero():
    estimate = estimate_prior(np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]), np.array([0.5, 0.5, 0.0]), resamples=10)
    assert estimate.prior[2] == estimate.low[2] == estimate.high[2] == 0


def test_refitted_calibrations_widen_the_interval(rng):
    _, p = sample(rng, TRAINING, 1000)
    exact = estimate_prior(p, TRAINING, resamples=200)
    logits = np.log(p)
    refitted = [softmax(logits / t, axis=1) for t in np.linspace(0.5, 2, 20)]
    wider = estimate_prior(p, TRAINING, refitted, resamples=200)
    assert wider.prior.tolist() == exact.prior.tolist()
    assert np.ptp([wider.low[0], wider.high[0]]) > 1.2 * np.ptp([exact.low[0], exact.high[0]])


def test_estimates_repeat_to_the_bit(rng):
    _, p = sample(rng, TRAINING, 100)
    one, two = (estimate_prior(p, TRAINING, resamples=20) for _ in range(2))
    assert (one.low.tolist(), one.high.tolist()) == (two.low.tolist(), two.high.tolist())


def test_other_changes_than_of_frequencies_are_found(rng):
    targets, calibration = sample(rng, TRAINING, 1500)
    values = []
    for shift in (0.0, np.array([0, 1.5, 1.5])):
        _, p = sample(rng, shifted(0.2), 1000, shift)
        prior = estimate_prior(p, TRAINING, resamples=1).prior
        values.append(shift_test(p, prior, TRAINING, calibration, targets, resamples=199))
    assert values[0] > 0.02
    assert values[1] == 1 / 200


def test_classes_without_calibration_images_are_not_tested(rng):
    targets, calibration = sample(rng, TRAINING, 300)
    _, p = sample(rng, TRAINING, 100)
    rows = targets > 0
    assert shift_test(p, TRAINING, TRAINING, calibration[rows], targets[rows], resamples=5) is None
    assert shift_test(p, TRAINING, TRAINING, calibration[:0], targets[:0], resamples=5) is None
    rare = np.array([0.005, 0.5, 0.495])  # half an image is expected
    assert shift_test(p, rare, TRAINING, calibration[rows], targets[rows], resamples=5) is not None


@pytest.mark.slow
def test_the_test_keeps_its_level(rng):
    values = []
    for _ in range(60):
        targets, calibration = sample(rng, TRAINING, 400)
        _, p = sample(rng, shifted(5), 400)
        prior = estimate_prior(p, TRAINING, resamples=1).prior
        values.append(shift_test(p, prior, TRAINING, calibration, targets, resamples=49))
    assert np.mean(np.array(values) <= 0.1) <= 0.2


def test_the_text_has_both_frequencies_and_the_classes_that_differ_most():
    estimate = estimate_prior(np.eye(2)[[0, 0, 0, 1]], np.array([0.5, 0.5]), resamples=50)
    text = describe_prior(estimate, ["ok", "crack"], np.array([0.5, 0.5]), 4)
    assert "estimated from 4 images" in text
    assert "ok       0.5000     0.7000  " in text
    many = estimate_prior(np.eye(50)[[7]], np.full(50, 0.02), resamples=5)
    text = describe_prior(many, [f"c{k}" for k in range(50)], np.full(50, 0.02), 1)
    assert "\nc7 " in text
    assert text.endswith("(20 classes that differ less are not listed)")
