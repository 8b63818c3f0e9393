"""The sums of resamples against those of all cells and all bins; intervals against the same with dense tables."""

from dataclasses import fields

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from udc_model.evaluation import intervals as module
from udc_model.evaluation.confusion_sums import ConfusionSums
from udc_model.evaluation.intervals import by_group, interval_of, metric_intervals, resample_weights
from udc_model.evaluation.metric_bounds import LargestGroup, metric_bounds
from udc_model.evaluation.metrics import Scored, SplitSums, metric_terms, metrics_of_sums, score_terms, split_metrics
from udc_model.evaluation.resampled_sums import ResampledSums
from udc_model.evaluation.score_sums import SCORE_BINS, ScoreSums

RECALLS = [(0, "a"), (1, "b")]
KINDS = ("single", "groups", "weights", "referral", "actions", "ties", "two classes", "many images")


def _scored(rng, kind):
    n, k = (4000 if kind == "many images" else 150), (2 if kind in ("two classes", "many images") else 12)
    targets = np.append(np.arange(k), rng.integers(0, k, n - k))
    logits = rng.normal(size=(n, k)) + 3 * np.eye(k)[targets]
    logits = logits.round() if kind == "ties" else logits
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    costs = rng.random((k, k)) * (1 - np.eye(k))
    costs = np.column_stack([costs, np.full(k, 0.1)]) if kind in ("referral", "actions") else costs
    costs = np.column_stack([costs, np.linspace(0, 0.15, k)]) if kind == "actions" else costs
    weights = rng.random(k)[targets] + 0.2 if kind in ("weights", "referral") else None
    groups = rng.integers(0, 40, n) if kind in ("groups", "referral") else None
    return Scored(targets, (p @ costs).argmin(axis=1), p, costs, weights, groups,
                  ["refer", "retest"] if kind == "actions" else None)  # fmt: skip


def _dense(scored, weights):
    """The sums of all cells and bins, (width, B) of each kind, for weights (N, B) of the images."""
    terms = metric_terms(scored, 15) | {"scores": score_terms(scored, SCORE_BINS)}
    sums = {name: part.table(len(scored.targets)).T @ weights for name, part in terms.items()}
    return SplitSums.of(sums, scored.outcome_costs)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_used_cells_and_bins_are_those_of_all(rng, kind):
    scored = _scored(rng, kind)
    weights = rng.standard_exponential((len(scored.targets), 7))
    dense, sums = _dense(scored, weights), ResampledSums.of(scored, 15)
    used = sums.split_sums(sums.features.T @ weights)
    for field in fields(ConfusionSums):
        for name in ("decided", "argmax"):
            expected = getattr(getattr(dense, name), field.name)
            assert getattr(getattr(used, name), field.name) == pytest.approx(expected, rel=1e-12, abs=1e-12), field.name
    for name in ("log_loss", "brier_score", "calibration_gap"):
        assert getattr(used, name) == pytest.approx(getattr(dense, name), rel=1e-12)
    for area, expected in zip(used.areas, dense.areas, strict=True):
        assert area == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_are_those_of_dense_sums(rng, kind):
    scored = _scored(rng, kind)
    point = split_metrics(scored, 15, RECALLS)
    result = metric_intervals(scored, point, 15, RECALLS, 64, 0.9)
    n = len(scored.targets)
    groups = np.arange(n) if scored.groups is None else np.unique(scored.groups, return_inverse=True)[1]
    drawn = resample_weights(groups.max() + 1, 64, np.random.SeedSequence(0).spawn(1)[0], np.float32).astype(float)
    sums, observed = _dense(scored, drawn[groups]), _dense(scored, np.ones((n, 1)))
    values = metrics_of_sums(sums, RECALLS, scored.action_names)
    bounds = metric_bounds(sums, values, drawn[-1], observed, scored, LargestGroup.of(scored), RECALLS)
    proportions = {"accuracy", "argmax_accuracy", "recall/a", "recall/b", "miss_rate/a", "miss_rate/b", "referral_rate",
                   "action_rate/retest"}  # fmt: skip
    is_exact = scored.groups is None and scored.weights is None
    binned = metrics_of_sums(observed)
    for name in bounds.keys() & result.keys() - (proportions if is_exact else set()):
        shift = point[name] - binned[name][0] if name in ("roc_auc", "average_precision") else 0
        expected = np.clip(np.add(interval_of(bounds[name], 0.9), shift), *((0, 1) if shift else (None, None)))
        assert result[name] == pytest.approx(tuple(expected), rel=1e-5, abs=1e-6), name
    assert len(bounds.keys() & result.keys()) >= 14


def test_most_probabilities_of_many_classes_are_a_remainder(rng):
    """A class's images of other classes below all of its images are not summed, and none of them is missing."""
    scored = _scored(rng, "single")
    scores, n = ScoreSums.of(scored), len(scored.targets)
    assert len(scores.terms.rows) < 0.5 * n * 12
    total = scores.terms.table(n).sum(axis=0).reshape(-1, 1)
    for table in scores.tables(np.asarray(total)):
        assert table.sum(axis=(1, 2)) == pytest.approx(float(n))


def test_classes_are_split_into_tables_that_fit_a_cache(rng, monkeypatch):
    monkeypatch.setattr("udc_model.evaluation.score_sums.load_library", lambda: None)
    scored = _scored(rng, "groups")
    scores = ScoreSums.of(scored)
    sums = by_group(scores.terms.table(150), scored.groups).T @ rng.random((40, 5))
    expected = scores.areas(sums)
    monkeypatch.setattr("udc_model.evaluation.score_sums._VALUES_AT_A_TIME", 500)
    assert len(list(scores.tables(sums))) > 3
    for area, of_one_table in zip(scores.areas(sums), expected, strict=True):
        assert area == pytest.approx(of_one_table, rel=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_native_kernels_compute_what_numpy_does(rng, monkeypatch, kind):
    scored = _scored(rng, kind)
    scores = ScoreSums.of(scored, 20 if kind == "many images" else SCORE_BINS)
    sums = scores.terms.table(len(scored.targets)).T @ rng.standard_exponential((len(scored.targets), 5))
    grid = np.linspace(0, 1, 33)
    expected = *scores.areas(sums), *scores.mean_curves(sums, grid)
    monkeypatch.setattr("udc_model.evaluation.score_sums.load_library", lambda: None)
    for native, value in zip(expected, (*scores.areas(sums), *scores.mean_curves(sums, grid)), strict=True):
        assert native.tolist() == value.tolist()


def test_mean_curves_are_those_of_the_points_of_each_class(rng):
    """Against scikit-learn's curves, whose precision is made to fall with the recall."""
    scored = _scored(rng, "single")
    sums, grid = ScoreSums.of(scored).terms.table(150).sum(axis=0).reshape(-1, 1), np.linspace(0, 1, 33)
    tpr, precision = ScoreSums.of(scored).mean_curves(np.asarray(sums), grid)
    curves, bounds = [], []
    for j in range(12):
        false, true, _ = roc_curve(scored.targets == j, scored.probabilities[:, j], drop_intermediate=False)
        curves.append(np.interp(grid, false, true))
        values, recall, _ = precision_recall_curve(scored.targets == j, scored.probabilities[:, j])
        bounds.append([values[:-1][recall[:-1] >= r].max() for r in grid])
    assert tpr[0] == pytest.approx(np.mean(curves, axis=0), abs=1e-12)
    assert precision[0] == pytest.approx(np.mean(bounds, axis=0), abs=1e-12)


def test_no_table_has_more_resamples_than_a_chunk(rng, monkeypatch):
    scored, widths = _scored(rng, "single"), []
    original = ResampledSums.split_sums
    monkeypatch.setattr(ResampledSums, "split_sums", lambda self, x: widths.append(x.shape[1]) or original(self, x))
    metric_intervals(scored, split_metrics(scored, 15), 15, (), 200, 0.95)
    assert max(widths) == module._CHUNK
    assert sum(widths) == 201
