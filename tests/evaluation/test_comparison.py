"""Comparisons of predictions: conclusion, refused tables, and the level of the paired test."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, norm

from udc_model.errors import UdcError
from udc_model.evaluation.comparison import compare_predictions, cost_test, images_needed
from udc_model.evaluation.paired_test import paired_test
from udc_model.evaluation.tables import read_predictions

MATRIX = np.array([[0.0, 1.0], [10.0, 0.0]])
COSTS = {("a", "a"): 0.0, ("a", "b"): 1.0, ("b", "a"): 10.0, ("b", "b"): 0.0}


def _table(true, predicted, groups=None):
    n = len(true)
    return pd.DataFrame({
        "path": [f"{i}.png" for i in range(n)], "sha256": [f"{i:064x}" for i in range(n)], "group": groups or [""] * n,
        "true": true, "predicted": predicted, "cost_paid": [COSTS[pair] for pair in zip(true, predicted, strict=True)],
        "weight": np.ones(n),
    })  # fmt: skip


@pytest.fixture
def pair():
    true = ["a"] * 30 + ["b"] * 30
    a = _table(true, ["a"] * 30 + ["b"] * 18 + ["a"] * 12)  # 12 mistakes of cost 10
    b = _table(true, ["b"] * 2 + ["a"] * 28 + ["b"] * 30)  # two mistakes of cost 1
    return a, b


def test_differences_tests_and_conclusion(pair):
    comparison = compare_predictions(*pair, MATRIX)
    cost, accuracy = comparison.differences
    assert cost.a == 120 / 60
    assert cost.b == 2 / 60
    assert cost.difference == pytest.approx(-118 / 60)
    assert cost.low < cost.difference < cost.high < 0
    assert comparison.sentence.startswith("B is cheaper by 1.9667 per image, 95% interval ")
    assert compare_predictions(pair[1], pair[0], MATRIX).sentence.startswith("A is cheaper by 1.9667 per image")
    assert (comparison.only_a_right, comparison.only_b_right) == (2, 12)
    assert comparison.mcnemar_p == pytest.approx(2 * binom.cdf(2, 14, 0.5))  # McNemar's exact test
    assert accuracy.difference == pytest.approx(10 / 60)
    assert len(comparison.changed) == 14
    assert comparison.changed[0]["cost_a"] == 10
    assert json.loads(json.dumps(comparison.to_dict()))["answer"] == comparison.sentence
    assert "only A is right:\n  0.png: a, A a (0), B b (1)" in comparison.to_text()
    assert "… and 2 more" in comparison.to_text()


def test_order_of_the_rows_has_no_effect(pair):
    a, b = pair
    assert compare_predictions(a, b.sample(frac=1, random_state=0), MATRIX) == compare_predictions(a, b, MATRIX)


def test_equal_decisions_have_equal_costs(pair):
    comparison = compare_predictions(pair[0], pair[0], MATRIX)
    assert comparison.sentence == "A and B cost the same on every image: under these costs they decide alike"
    assert comparison.mcnemar_p == comparison.differences[0].p_value == 1


def test_a_difference_within_its_interval_is_not_claimed(pair):
    a = pair[0]
    b = _table(list(a["true"]), ["b", *a["predicted"][1:]])
    assert compare_predictions(a, b, MATRIX).sentence.startswith("No difference in cost is shown: B costs 0.0167 more")


def test_three_pairs_that_differ_show_nothing():
    """The paired test gives p = 2 / 2 ** 3 at best."""
    a = _table(["a"] * 60, ["b"] * 3 + ["a"] * 57)
    b = _table(["a"] * 60, ["a"] * 60)
    comparison = compare_predictions(a, b, MATRIX)
    assert comparison.cheaper is None
    assert comparison.differences[0].p_value >= 0.25
    assert comparison.sentence.startswith("No difference in cost is shown: B costs 0.0500 less per image")
    assert re.search(r"\(p = 1\); about [\d,]+ more images would show one of this size$", comparison.sentence)
    warning = re.fullmatch(
        r"A has no mistakes of cost 10 or more among 60 images: their true share may be up to (.*)% \(95% bound\), "
        r"and would then cost (.*) per image", comparison.warnings[0],
    )  # fmt: skip
    assert float(warning[1]) == pytest.approx(100 * (1 - 0.05 ** (1 / 60)), rel=0.04)  # Clopper-Pearson of no event
    assert float(warning[2]) == pytest.approx(float(warning[1]) / 10, rel=0.01)


def test_a_loss_too_rare_to_be_seen_is_allowed_for():
    """B saves 1 on a fifth of 60 images; a mistake of 10 that none of them shows may cost more than that."""
    a = _table(["a"] * 60, ["b"] * 12 + ["a"] * 48)
    b = _table(["a"] * 60, ["a"] * 60)
    assert paired_test(b["cost_paid"].to_numpy() - a["cost_paid"].to_numpy()) == pytest.approx(2 / 2**12)
    comparison = compare_predictions(a, b, MATRIX)
    assert comparison.cheaper is None
    assert comparison.differences[0].high > 0
    assert compare_predictions(a, b, MATRIX / 10).cheaper == "B"  # if no mistake can cost that much


def test_without_the_costs_of_other_mistakes_nothing_is_said_about_chance(pair):
    comparison = compare_predictions(*pair)
    assert comparison.cheaper is None
    assert (comparison.differences[0].low, comparison.differences[0].p_value) == (None, None)
    assert comparison.sentence.startswith("B costs 1.9667 less per image; whether this is chance is not tested")
    assert "mean_cost         2.0000   0.0333  -1.9667   -" in comparison.to_text()


def test_images_needed_solves_its_equation():
    rng = np.random.default_rng(3)
    sums = rng.choice([-1.0, 0.0, 1.0], 500, p=[0.2, 0.7, 0.1])
    n = images_needed(sums.mean(), sums, np.ones(500), 20.0, 0.95)
    half_width = (norm.ppf(0.975) + norm.ppf(0.8)) * sums.std() / np.sqrt(n) + np.log(40) * 20 / n
    assert half_width == pytest.approx(abs(sums.mean()))


def test_the_test_of_accuracy_has_groups_as_units(pair):
    a, b = pair
    alone, single, one, six = (
        compare_predictions(a.assign(group=groups), b, MATRIX).mcnemar_p
        for groups in ("", [f"smear {i}" for i in range(60)],
                       ["smear"] * 60, [f"smear {i // 10}" for i in range(60)])
    )  # fmt: skip
    assert single == pytest.approx(alone)
    assert one == 1  # one group shows nothing, however many of its images differ
    assert six == paired_test(np.array([-2.0, 2.0, 10.0])) > alone


def test_each_of_many_comparisons_can_be_shown(monkeypatch):
    monkeypatch.setattr("udc_model.evaluation.intervals._DRAWS", 1000)  # fewer than 200 comparisons need
    a = _table(["a"] * 200, ["b"] * 100 + ["a"] * 100)
    b = _table(["a"] * 200, ["a"] * 200)
    assert cost_test(a, b, MATRIX / 10).p_value == 2 / 1001
    assert cost_test(a, b, MATRIX / 10, comparisons=200).p_value * 200 < 0.05


def test_groups_widen_the_interval(pair):
    a, b = pair
    groups = [f"smear {i // 12}" for i in range(60)]
    costs = [compare_predictions(table, b, MATRIX).differences[0] for table in (a, a.assign(group=groups))]
    widths = [cost.high - cost.low for cost in costs]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[1:], "1 are in A only, 0 in B only"),
        (lambda t: t.assign(sha256=["x", *t["sha256"][1:]]), "1 have the same name but other contents"),
        (lambda t: t.assign(true=["b", *t["true"][1:]]), "1 have another true class"),
        (
            lambda t: t.assign(predicted="a", cost_paid=[0.0] * 30 + [7.0] * 30),
            "b decided as a costs 7 in one and 10 in the",
        ),
        (lambda t: t.assign(weight=2.0), "weight the images differently"),
        (lambda t: pd.concat([t, t[:1]]), "lists an image twice"),
    ],
)
def test_compare_raises_for_tables_that_do_not_match(pair, change, message):
    with pytest.raises(UdcError, match=message):
        compare_predictions(pair[0], change(pair[1]))


def test_tables_of_version_0_1_are_read(pair, tmp_path):
    old, new = (tmp_path / f"{name}.csv" for name in ("old", "new"))
    pair[0].rename(columns={"cost_paid": "cost"}).to_csv(old, index=False)
    pair[0].to_csv(new, index=False)
    pd.testing.assert_frame_equal(read_predictions(old), read_predictions(new))
    assert compare_predictions(read_predictions(old), read_predictions(new)).differences[0].difference == 0
    pair[0].drop(columns="cost_paid").to_csv(old, index=False)
    with pytest.raises(UdcError, match="has no column cost_paid"):
        read_predictions(old)
