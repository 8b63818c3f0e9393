"""predictions.csv is read back exactly; recall intervals."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from udc_model.data.packed import PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.evaluation import tables
from udc_model.evaluation.metrics import Scored
from udc_model.evaluation.tables import (
    logits_of,
    read_predictions,
    recall_intervals,
    write_confusion,
    write_predictions,
)

EXTREMES = np.array([0.0, -0.0, 1e-45, -1e-38, 3.4e38, 1 / 3, 16777217, 0.1, -12.5, 1e10], dtype=np.float32)


def test_predictions_are_read_back_exactly(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(tables, "_ROWS", 3)  # several blocks
    paths = ["plain.png", 'with "quotes", commas.png', "two\nlines.png", "é 蜘蛛.png", " spaces .png", "-1", "NA"]
    n, classes = len(paths), ["a", 'b "c", d', "e\nf"]
    split = PackedSplit(np.zeros((n, 2, 2, 3), np.uint8), np.arange(n) % 3, paths, [""] * n, ["00"] * n)
    logits = rng.choice(EXTREMES[:-1][np.abs(EXTREMES[:-1]) < 100], (n, 3)).astype(np.float32)
    logits[0] = EXTREMES[[2, 3, 5]]
    policy = Policy(classes, (1 - np.eye(3)).tolist())
    decisions = write_predictions(tmp_path / "test", split, logits, policy)
    table = read_predictions(tmp_path / "test" / "predictions.csv")
    assert table["path"].tolist() == paths
    assert table["sha256"].tolist() == ["00"] * n
    assert table["true"].tolist() == [classes[k % 3] for k in range(n)]
    assert table["expected_cost"].tolist() == decisions.expected_cost.tolist()
    assert logits_of(table, classes).tobytes() == logits.tobytes()
    with (tmp_path / "test" / "predictions.csv").open(encoding="utf-8", newline="") as handle:
        assert {len(row) for row in csv.reader(handle)} == {8 + 3}


def test_all_floats_are_read_back_exactly(rng):
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    values = np.append(bits[np.isfinite(bits)], EXTREMES)[:, None]
    lines = tables._logit_lines(values)
    assert np.array([np.float32(line) for line in lines]).tobytes() == values.astype(np.float32).tobytes()
    assert pd.Series(lines).astype(float).astype(np.float32).to_numpy().tobytes() == values.tobytes()


def _scored(hits, support, groups=None):
    targets = np.repeat(np.arange(len(support)), support)
    decided = np.concatenate([np.r_[np.full(h, k), np.full(n - h, (k + 1) % len(support))]
                              for k, (h, n) in enumerate(zip(hits, support, strict=True))]).astype(int)  # fmt: skip
    k = len(support)
    return Scored(targets, decided, np.full((len(targets), k), 1 / k), 1 - np.eye(k), groups=groups)


def test_recall_intervals_equal_scipy():
    hits, support = [10, 0, 27], [20, 5, 27]
    low, high = recall_intervals(_scored(hits, support), 0.9)
    for k, (h, n) in enumerate(zip(hits, support, strict=True)):
        expected = binomtest(h, n).proportion_ci(0.9, method="exact")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high))


def test_recall_intervals_of_groups_are_those_of_their_number():
    groups = np.r_[np.arange(20) // 4, 5 + np.arange(12) // 4]  # 5 groups of the first class, 3 of the second
    low, high = recall_intervals(_scored([20, 0], [20, 12], groups), 0.95)
    all_of_5, none_of_3 = (binomtest(h, n).proportion_ci(0.95, method="exact") for h, n in ((5, 5), (0, 3)))
    assert (low[0], high[0]) == pytest.approx((all_of_5.low, 1.0), abs=0.02)  # random draws
    assert (low[1], high[1]) == pytest.approx((0.0, none_of_3.high), abs=0.02)


@pytest.mark.parametrize("order", [None, [1, 0, 2]])
def test_tables_by_class_follow_the_stated_order(order, tmp_path):
    names = ["bad", "mild", "worst"]
    policy = Policy(names, [[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [4.0, 3.0, 0.0]], refer=1.0)
    targets, decided = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 0, 2, 3, 1])
    scored = Scored(targets, decided, np.full((6, 3), 1 / 3), policy.outcome_costs, None, None)
    write_confusion(tmp_path, scored, policy, 0.95, order)
    confusion = json.loads((tmp_path / "confusion_matrix.json").read_text())
    place = [0, 1, 2] if order is None else order
    assert confusion["is_ordinal"] == (order is not None)
    assert confusion["classes"] == [names[k] for k in place]
    assert confusion["outcomes"] == [*confusion["classes"], "refer"]
    cells = {(t, d): n for t, row in zip(confusion["classes"], confusion["counts"], strict=True)
             for d, n in zip(confusion["outcomes"], row, strict=True) if n}  # fmt: skip
    assert cells == {("bad", "bad"): 1, ("bad", "mild"): 1, ("mild", "bad"): 1, ("worst", "worst"): 1,
                     ("worst", "refer"): 1, ("worst", "mild"): 1}  # fmt: skip
    per_class = pd.read_csv(tmp_path / "per_class.csv")
    assert per_class["class"].tolist() == confusion["classes"]
    assert dict(zip(per_class["class"], per_class["support"], strict=True)) == {"bad": 2, "mild": 1, "worst": 3}
    pairs = pd.read_csv(tmp_path / "cost_by_pair.csv")
    ties = [("bad", "mild"), ("mild", "bad")] if order is None else [("mild", "bad"), ("bad", "mild")]
    assert list(zip(pairs["true"], pairs["decided"], strict=True)) == [("worst", "mild"), *ties, ("worst", "refer")]
