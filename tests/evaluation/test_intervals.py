"""Intervals against SciPy's bootstrap, and the metrics of resamples against those of their images."""

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import bootstrap

from udc_model.evaluation.intervals import SCORE_BINS, bca_intervals, by_group, metric_intervals, resample_counts
from udc_model.evaluation.metrics import Scored, metric_terms, metrics_of_sums, split_metrics

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
    terms = metric_terms(scored, 1, SCORE_BINS)
    drawn = np.append(np.arange(3), rng.integers(0, 60, 57))
    counts = np.bincount(drawn, minlength=60)[:, None].astype(float)
    sums = {name: part.table(60).T @ counts for name, part in terms.items()}
    metrics = metrics_of_sums(sums, scored.outcome_costs, RECALLS)
    copy = Scored(scored.targets[drawn], scored.decided[drawn], scored.probabilities[drawn], scored.outcome_costs)
    for name, value in split_metrics(copy, 1, RECALLS).items():
        assert metrics[name][0] == pytest.approx(value, rel=1e-9), name


def test_interval_of_a_mean_equals_scipy(rng):
    values = rng.choice([0.0, 1.0, 10.0], 300, p=[0.8, 0.15, 0.05])
    features = sparse.csr_matrix(np.column_stack([values, np.ones(300)]))
    ours = bca_intervals(features, lambda s: {"mean": s[0] / s[1]}, 20_000, 0.95, 0)["mean"]
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), rel=0.02)


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


def test_resamples_draw_with_replacement(rng):
    counts = resample_counts(50, 200, np.random.SeedSequence(0), np.float32)
    assert (counts.sum(axis=0) == 50).all()
    assert counts.mean() == 1
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # multinomial


def test_intervals_do_not_depend_on_the_number_of_processors(rng, monkeypatch):
    scored = _scored(rng)
    point = split_metrics(scored, 15)
    intervals = []
    for processors in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda n=processors: n)
        intervals.append(metric_intervals(scored, point, 15, (), 300, 0.95))
    assert intervals[0] == intervals[1]


def test_perfect_decisions_have_intervals_of_width_zero(rng):
    targets = rng.integers(0, 3, 90)
    scored = Scored(targets, targets, np.eye(3)[targets], 1 - np.eye(3))
    point = split_metrics(scored, 15)
    intervals = metric_intervals(scored, point, 15, (), 200, 0.95)
    assert intervals["accuracy"] == (1, 1)
    assert intervals["mean_cost"] == (0, 0)


def test_referring_all_images_leaves_intervals_of_costs_without_warnings(rng, recwarn):
    scored = _scored(rng, 60, refer=0.0)
    point = split_metrics(scored, 15)
    intervals = metric_intervals(scored, point, 15, (), 200, 0.95)
    assert point["referral_rate"] == 1
    assert "accuracy" not in intervals
    assert intervals["mean_cost"] == (0, 0)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_intervals_of_binned_areas_contain_the_exact_areas(rng):
    scored = _scored(rng, 6000)
    point = split_metrics(scored, 15)
    intervals = metric_intervals(scored, point, 15, (), 300, 0.95)
    for name in ("roc_auc", "average_precision"):
        assert intervals[name][0] < point[name] < intervals[name][1]
        assert intervals[name][1] - intervals[name][0] < 0.03
