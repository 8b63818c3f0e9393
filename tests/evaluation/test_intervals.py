"""Intervals against SciPy's bootstrap, and their metrics against the plain ones."""

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import bootstrap

from udc_model.evaluation.intervals import Sums, bca_intervals, by_group, metric_intervals, resample_counts
from udc_model.evaluation.metrics import Scored, split_metrics

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


@pytest.mark.parametrize("options", [{}, {"refer": 0.6}, {"weighted": True}, {"refer": 0.5, "weighted": True}])
def test_metrics_of_sums_are_the_metrics(rng, options):
    scored = _scored(rng, **options)
    plain = split_metrics(scored, 15, RECALLS)
    sums = Sums.of(scored, 15, RECALLS)
    found = sums.metrics(np.asarray(sums.features.sum(axis=0)).reshape(-1, 1))
    assert list(found) == list(plain)
    for name, value in plain.items():
        assert found[name][0] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_metrics_of_a_resample_are_those_of_its_images(rng):
    scored = _scored(rng, 60, refer=0.5)
    sums = Sums.of(scored, 1, RECALLS)
    drawn = rng.integers(0, 60, 60)
    counts = np.bincount(drawn, minlength=60)[:, None].astype(float)
    found = sums.metrics(sums.features.T @ counts)
    copy = Scored(scored.targets[drawn], scored.decided[drawn], scored.probabilities[drawn], scored.outcome_costs)
    for name, value in split_metrics(copy, 1, RECALLS).items():
        assert found[name][0] == pytest.approx(value, rel=1e-9), name


def test_interval_of_a_mean_is_scipys(rng):
    values = rng.choice([0.0, 1.0, 10.0], 300, p=[0.8, 0.15, 0.05])
    features = sparse.csr_matrix(np.column_stack([values, np.ones(300)]))
    ours = bca_intervals(features, lambda s: {"mean": s[0] / s[1]}, 20_000, 0.95, 0)["mean"]
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), rel=0.02)


def test_groups_are_resampled_whole(rng):
    """Images of a group that are alike are worth one: the interval is wider by the root of their number."""
    alone = _scored(rng, 200)
    fields = (np.repeat(x, 9, axis=0) for x in (alone.targets, alone.decided, alone.probabilities))
    copied = Scored(*fields, alone.outcome_costs, None, np.repeat(np.arange(200), 9))
    point = split_metrics(alone, 15)
    of_groups = metric_intervals(copied, point, 15, (), 1000, 0.95)
    of_images = metric_intervals(alone, point, 15, (), 1000, 0.95)
    assert of_groups["mean_cost"] == pytest.approx(of_images["mean_cost"])
    blind = metric_intervals(Scored(*(getattr(copied, f) for f in ("targets", "decided", "probabilities", "costs"))),
                             point, 15, (), 1000, 0.95)  # fmt: skip
    width = {name: found["mean_cost"][1] - found["mean_cost"][0] for name, found in (("g", of_groups), ("b", blind))}
    assert width["g"] == pytest.approx(3 * width["b"], rel=0.15)


def test_features_of_groups_add_up():
    features = sparse.csr_matrix(np.array([[1.0, 0], [2, 1], [4, 1]]))
    assert by_group(features, np.array([7, 3, 7])).toarray().tolist() == [[2, 1], [5, 1]]


def test_resamples_draw_with_replacement(rng):
    counts = resample_counts(50, 200, np.random.SeedSequence(0), np.float32)
    assert (counts.sum(axis=0) == 50).all()
    assert counts.mean() == 1
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # multinomial


def test_the_same_interval_for_any_number_of_processors(rng, monkeypatch):
    scored = _scored(rng)
    point = split_metrics(scored, 15)
    found = []
    for processors in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda n=processors: n)
        found.append(metric_intervals(scored, point, 15, (), 300, 0.95))
    assert found[0] == found[1]


def test_perfect_decisions_have_an_interval_of_no_width(rng):
    targets = rng.integers(0, 3, 90)
    scored = Scored(targets, targets, np.eye(3)[targets], 1 - np.eye(3))
    point = split_metrics(scored, 15)
    found = metric_intervals(scored, point, 15, (), 200, 0.95)
    assert found["accuracy"] == (1, 1)
    assert found["mean_cost"] == (0, 0)


def test_referring_every_image_leaves_costs_and_nothing_to_score(rng, recwarn):
    """Bad images all handed to a person: no accuracy, but the money counts, and no warning reaches the user."""
    scored = _scored(rng, 60, refer=0.0)
    point = split_metrics(scored, 15)
    found = metric_intervals(scored, point, 15, (), 200, 0.95)
    assert point["referral_rate"] == 1
    assert "accuracy" not in found
    assert found["mean_cost"] == (0, 0)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_binned_scores_change_areas_little(rng):
    scored = _scored(rng, 6000)
    point = split_metrics(scored, 15)
    found = metric_intervals(scored, point, 15, (), 300, 0.95)
    for name in ("roc_auc", "average_precision"):
        assert found[name][0] < point[name] < found[name][1]
        assert found[name][1] - found[name][0] < 0.03
