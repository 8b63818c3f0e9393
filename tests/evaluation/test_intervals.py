"""Intervals against their formulas and Clopper-Pearson's; metrics of resamples against those of their images."""

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import binomtest

from udc_model.evaluation.intervals import (
    by_group,
    interval_of,
    mean_draws,
    metric_intervals,
    proportion_interval,
    resample_weights,
)
from udc_model.evaluation.metrics import Scored, SplitSums, metric_terms, metrics_of_sums, score_terms, split_metrics

RECALLS = [(0, "a"), (2, "c")]


def _scored(rng, n=400, refer=None, weighted=False, groups=None):
    targets = rng.integers(0, 3, n)
    p = rng.dirichlet(np.ones(3), n) * 0.6 + np.eye(3)[targets] * 0.4 * rng.random((n, 1))
    p /= p.sum(axis=1, keepdims=True)
    costs = np.abs(np.subtract.outer(np.arange(3), np.arange(3))).astype(float) ** 1.5
    if refer is not None:
        costs = np.column_stack([costs, np.full(3, refer)])
    weights = rng.random(3)[targets] + 0.5 if weighted else None
    return Scored(targets, (p @ costs).argmin(axis=1), p, costs, weights, groups)


def test_metrics_of_a_resample_equal_those_of_its_images(rng):
    scored = _scored(rng, 60, refer=0.5)
    terms = metric_terms(scored, 1) | {"scores": score_terms(scored)}
    drawn = np.append(np.arange(3), rng.integers(0, 60, 57))
    counts = np.bincount(drawn, minlength=60)[:, None].astype(float)
    sums = {name: part.table(60).T @ counts for name, part in terms.items()}
    metrics = metrics_of_sums(SplitSums.of(sums, scored.outcome_costs), RECALLS, scored.action_names)
    copy = Scored(scored.targets[drawn], scored.decided[drawn], scored.probabilities[drawn], scored.outcome_costs)
    for name, value in split_metrics(copy, 1, RECALLS).items():
        assert metrics[name][0] == pytest.approx(value, rel=1e-9), name


def test_interval_of_two_values_is_that_of_clopper_and_pearson():
    for hits, n in ((0, 30), (3, 60), (200, 300)):
        values = np.repeat([1.0, 0.0], [hits, n - hits])
        expected = binomtest(hits, n).proportion_ci(0.95, method="exact")
        assert proportion_interval(hits, n, 0.95) == pytest.approx((expected.low, expected.high), abs=1e-12)
        interval = interval_of(mean_draws(values, np.ones(n), 0.0, 1.0), 0.95)
        assert interval == pytest.approx((expected.low, expected.high), rel=0.02, abs=0.001)


def test_interval_of_a_mean_equals_the_formula_of_gaffke(rng):
    """Learned-Miller and Thomas 2020: the quantile of sum_i z_(i) (U_(i) - U_(i-1)), with the bound as the last z."""
    costs = rng.choice([0.0, 1.0, 20.0], 40, p=[0.8, 0.15, 0.05])
    gaps = np.diff(np.sort(rng.random((20_000, 40)), axis=1), axis=1, prepend=0.0, append=1.0)
    high = np.quantile(gaps @ np.append(np.sort(costs), 20.0), 0.975)
    low = np.quantile(gaps @ np.append(0.0, np.sort(costs)), 0.025)
    interval = interval_of(mean_draws(costs, np.ones(40), 0.0, 20.0), 0.95)
    assert interval == pytest.approx((low, high), rel=0.04)


def test_all_intervals_of_costs_are_one_mechanism(rng):
    """Those of `metric_intervals` are those of the cost paid, whose bounds are the matrix's own."""
    scored = _scored(rng, 300, groups=np.arange(300) // 4)
    interval = metric_intervals(scored, split_metrics(scored, 15), 15, (), 4000, 0.95)["mean_cost"]
    sums, sizes = np.bincount(scored.groups, scored.cost_paid), np.bincount(scored.groups).astype(float)
    expected = interval_of(mean_draws(sums, sizes, 0.0, scored.outcome_costs.max()), 0.95)
    assert interval == pytest.approx(expected, rel=0.03)


def test_many_distinct_groups_have_the_interval_of_few(rng):
    costs = rng.choice([0.0, 1.0, 20.0], 30_000, p=[0.8, 0.15, 0.05])
    few = interval_of(mean_draws(costs, np.ones(30_000), 0.0, 20.0), 0.95)
    many = interval_of(mean_draws(costs + rng.random(30_000) * 1e-6, np.ones(30_000), 0.0, 20.0), 0.95)
    assert many == pytest.approx(few, rel=0.01)


def test_interval_of_costs_allows_for_a_costly_mistake_that_was_not_seen():
    costs = np.zeros(300)
    low, high = interval_of(mean_draws(costs, np.ones(300), 0.0, 20.0), 0.95)
    assert low == 0
    assert high == pytest.approx(20 * (1 - 0.025 ** (1 / 300)), rel=0.05)  # Clopper-Pearson of no event, times 20


def test_groups_are_resampled_as_units(rng):
    """Copies of an image in one group count as one image; as separate images they narrow the interval."""
    single = _scored(rng, 200)
    fields = [np.repeat(x, 9, axis=0) for x in (single.targets, single.decided, single.probabilities)]
    grouped = Scored(*fields, single.outcome_costs, None, np.repeat(np.arange(200), 9))
    ungrouped = Scored(*fields, single.outcome_costs)
    point = split_metrics(single, 15)
    of_single, of_grouped, of_ungrouped = (
        metric_intervals(scored, point, 15, (), 1000, 0.95)["mean_cost"] for scored in (single, grouped, ungrouped)
    )
    assert of_grouped == pytest.approx(of_single)
    assert np.diff(of_grouped) == pytest.approx(3 * np.diff(of_ungrouped), rel=0.15)


def test_features_are_summed_by_group():
    features = sparse.csr_matrix(np.array([[1.0, 0], [2, 1], [4, 1]]))
    assert by_group(features, np.array([7, 3, 7])).toarray().tolist() == [[2, 1], [5, 1]]


def test_weights_of_groups_are_exponential():
    weights = resample_weights(50, 400, np.random.SeedSequence(0), np.float32)
    assert weights.shape == (51, 400)  # and that of the unseen group
    assert weights.mean() == pytest.approx(1, abs=0.02)
    assert weights.var() == pytest.approx(1, rel=0.05)


def test_intervals_do_not_depend_on_the_number_of_processors(rng, monkeypatch):
    scored = _scored(rng)
    point = split_metrics(scored, 15)
    intervals = []
    for processors in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda n=processors: n)
        intervals.append(metric_intervals(scored, point, 15, (), 300, 0.95))
    assert intervals[0] == intervals[1]


def test_perfect_decisions_are_not_certain(rng):
    targets = rng.integers(0, 3, 90)
    scored = Scored(targets, targets, np.eye(3)[targets], 1 - np.eye(3))
    point = split_metrics(scored, 15)
    intervals = metric_intervals(scored, point, 15, (), 2000, 0.95)
    lowest = 0.025 ** (1 / 90)  # Clopper-Pearson
    assert intervals["accuracy"] == pytest.approx((lowest, 1))
    assert intervals["mean_cost"] == pytest.approx((0, 1 - lowest), rel=0.1)
    assert intervals["referral_rate"] == (0, 0)  # not available
    for name in ("balanced_accuracy", "macro_f1", "cohen_kappa", "matthews_correlation", "roc_auc"):
        assert intervals[name][1] == 1
        assert 0.85 < intervals[name][0] < 0.97


def test_referring_all_images_leaves_intervals_of_costs_without_warnings(rng, recwarn):
    scored = _scored(rng, 60, refer=0.0)
    point = split_metrics(scored, 15)
    intervals = metric_intervals(scored, point, 15, (), 200, 0.95)
    assert point["referral_rate"] == 1
    assert "accuracy" not in intervals
    assert intervals["mean_cost"][0] == 0
    assert intervals["referral_rate"] == pytest.approx((0.025 ** (1 / 60), 1))
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_intervals_of_binned_areas_contain_the_exact_areas(rng):
    scored = _scored(rng, 6000)
    point = split_metrics(scored, 15)
    intervals = metric_intervals(scored, point, 15, (), 300, 0.95)
    for name in ("roc_auc", "average_precision"):
        assert intervals[name][0] < point[name] < intervals[name][1]
        assert intervals[name][1] - intervals[name][0] < 0.03
