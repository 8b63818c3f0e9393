"""Reliability near the thresholds of the decision, against brute force and counts by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from udc_model.evaluation import thresholds
from udc_model.evaluation.metrics import Scored
from udc_model.evaluation.thresholds import odds_by_threshold, threshold_reliability


@pytest.mark.parametrize("actions", [0, 2])
def test_thresholds_are_where_the_decision_changes(rng, actions):
    grid = np.linspace(0, 1, 20_001)[:-1]
    for _ in range(20):
        costs = np.column_stack([rng.integers(1, 9, (4, 4)) * (1 - np.eye(4)), rng.random((4, actions)) * 3])
        p = rng.dirichlet(np.ones(4), 3)
        for k in range(4):
            threshold, ratio = odds_by_threshold(p, costs, k)
            for row, t, r in zip(p, threshold, ratio, strict=True):
                moved = np.outer(1 - grid, np.where(np.arange(4) == k, 0, row) / (1 - row[k]))
                moved[:, k] = grid
                decided = (moved @ costs).argmin(axis=1)
                changed = np.flatnonzero(decided != decided[0])
                assert t == pytest.approx(grid[changed[0]] if len(changed) else 1.0, abs=1e-4)
                if t < 1:
                    assert r == pytest.approx(row[k] / (1 - row[k]) * (1 - t) / t)


def test_a_class_that_never_changes_the_decision_is_near_no_threshold():
    costs = np.array([[0.0, 1.0], [0.0, 0.0]])  # deciding the first class costs nothing
    threshold, ratio = odds_by_threshold(np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]), costs, 1)
    assert (threshold.tolist(), ratio.tolist()) == ([1, 1, 1], [0, 0, 0])


def scored_near(p, targets, **fields):
    p = np.asarray(p)
    costs = np.array([[0.0, 1.0], [9.0, 0.0]])  # the threshold on the second class is 0.1: odds of 1 / 9
    probabilities = np.column_stack([1 - p, p])
    return Scored(np.asarray(targets), (probabilities @ costs).argmin(axis=1), probabilities, costs, **fields)


def table_of(scored, confidence=0.95):
    return threshold_reliability(scored, ["no", "yes"], scored.outcome_costs, confidence).set_index(["class", "side"])


def test_probability_and_share_by_hand():
    p = [0.001] * 50 + [0.05] * 40 + [0.2] * 20 + [0.99] * 30
    targets = [0] * 50 + [1] * 10 + [0] * 30 + [1] * 5 + [0] * 15 + [1] * 30
    table = table_of(scored_near(p, targets))
    assert table.index.tolist() == [("yes", "below"), ("yes", "above"), ("no", "below"), ("no", "above")]
    below = table.loc[("yes", "below")]
    interval = binomtest(10, 40).proportion_ci(0.95, method="exact")
    expected = [0.1, 0.05, 0.25, interval.low, interval.high, 40]
    assert below.tolist() == pytest.approx(expected)
    assert below["low"] > below["probability"]  # far more frequent than predicted, where it decides
    assert table.loc[("yes", "above")].tolist()[:3] == pytest.approx([0.1, 0.2, 0.25])
    # the same images, seen from the other class, whose threshold is 0.9
    assert table.loc[("no", "above")].tolist()[:3] == pytest.approx([0.9, 0.95, 0.75])


def test_weights_and_groups_are_respected():
    p, targets = [0.05] * 40, [1] * 10 + [0] * 30
    p, targets = [*p, 0.9, 0.001], [*targets, 1, 0]
    weights = np.where(np.array(targets) == 1, 2.0, 0.5)
    weighted = table_of(scored_near(p, targets, weights=weights)).loc[("yes", "below")]
    assert weighted["share"] == pytest.approx(20 / 35)
    assert weighted["low"] < 20 / 35 < weighted["high"]
    single = table_of(scored_near(p, targets)).loc[("yes", "below")]
    grouped = table_of(scored_near(p, targets, groups=np.arange(42) // 10)).loc[("yes", "below")]
    assert grouped["high"] - grouped["low"] > 1.5 * (single["high"] - single["low"])


def test_classes_without_costly_mistakes_are_left_out():
    costs = np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 5.0], [1.0, 1.0, 0.0]])
    p = np.random.default_rng(0).dirichlet(np.ones(3), 300)
    targets = np.arange(300) % 3
    scored = Scored(targets, (p @ costs).argmin(axis=1), p, costs)
    table = threshold_reliability(scored, ["a", "b", "c"], costs, 0.9)
    assert list(dict.fromkeys(table["class"])) == ["b", "c"]


def test_no_image_near_a_threshold_is_left_out(rng, monkeypatch):
    """Exact odds are computed of the images that may be near a threshold only."""
    for _ in range(30):
        costs = np.column_stack([rng.exponential(10 ** rng.uniform(-1, 4, (4, 4))), rng.random((4, 1))])
        p = rng.dirichlet(np.full(4, 10 ** rng.uniform(-1.5, 0.5)), 200)
        scored = Scored(np.arange(200) % 4, (p @ costs).argmin(axis=1), p, costs)
        table = threshold_reliability(scored, list("abcd"), costs, 0.95)
        with monkeypatch.context() as patch:
            patch.setattr(thresholds, "_may_be_near", lambda probabilities, *_: np.ones(len(probabilities), dtype=bool))
            of_all_images = threshold_reliability(scored, list("abcd"), costs, 0.95)
        pd.testing.assert_frame_equal(table, of_all_images)
