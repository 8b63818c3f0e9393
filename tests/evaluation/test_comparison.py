"""Comparisons: what is found, what is refused, and how often the paired test is wrong."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from udc_model.errors import UdcError
from udc_model.evaluation.comparison import compare_predictions, paired_test

PRICES = {("a", "a"): 0.0, ("a", "b"): 1.0, ("b", "a"): 10.0, ("b", "b"): 0.0}


def _table(true, predicted, groups=None):
    n = len(true)
    return pd.DataFrame({
        "path": [f"{i}.png" for i in range(n)], "sha256": [f"{i:064x}" for i in range(n)], "group": groups or [""] * n,
        "true": true, "predicted": predicted, "cost": [PRICES[pair] for pair in zip(true, predicted, strict=True)],
        "weight": np.ones(n),
    })  # fmt: skip


@pytest.fixture
def pair():
    true = ["a"] * 30 + ["b"] * 30
    one = _table(true, ["a"] * 30 + ["b"] * 18 + ["a"] * 12)  # misses 12 dear ones
    other = _table(true, ["b"] * 2 + ["a"] * 28 + ["b"] * 30)  # two cheap mistakes
    return one, other


def test_the_answer_in_one_sentence(pair):
    found = compare_predictions(*pair)
    cost, accuracy = found.differences
    assert cost.a == 120 / 60
    assert cost.b == 2 / 60
    assert cost.difference == pytest.approx(-118 / 60)
    assert cost.low < cost.difference < cost.high < 0
    assert found.sentence.startswith("B is cheaper by 1.9667 per image, 95% interval ")
    assert compare_predictions(pair[1], pair[0]).sentence.startswith("A is cheaper by 1.9667 per image")
    assert (found.only_a_right, found.only_b_right) == (2, 12)
    assert found.mcnemar_p == pytest.approx(2 * binom.cdf(2, 14, 0.5))  # McNemar's exact test
    assert accuracy.difference == pytest.approx(10 / 60)
    assert len(found.changed) == 14
    assert found.changed[0]["cost_a"] == 10
    assert json.loads(json.dumps(found.to_dict()))["answer"] == found.sentence
    assert "only A is right:\n  0.png: a, A a (0), B b (1)" in found.to_text()
    assert "… and 2 more" in found.to_text()


def test_order_of_the_rows_is_of_no_matter(pair):
    one, other = pair
    assert compare_predictions(one, other.sample(frac=1, random_state=0)) == compare_predictions(one, other)


def test_equal_decisions_are_said_to_be_equal(pair):
    found = compare_predictions(pair[0], pair[0])
    assert found.sentence == "A and B cost the same on every image"
    assert found.mcnemar_p == found.differences[0].p_value == 1


def test_a_small_difference_is_not_claimed(pair):
    one = pair[0]
    other = _table(list(one["true"]), ["b", *one["predicted"][1:]])
    assert compare_predictions(one, other).sentence.startswith("No difference in cost is shown: B costs 0.0167 more")


def test_groups_widen_the_interval(pair):
    one, other = pair
    groups = [f"smear {i // 12}" for i in range(60)]
    apart, together = compare_predictions(one, other), compare_predictions(one.assign(group=groups), other)
    widths = [found.differences[0].high - found.differences[0].low for found in (apart, together)]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[1:], "1 are in A only, 0 in B only"),
        (lambda t: t.assign(sha256=["x", *t["sha256"][1:]]), "1 have the same name but other contents"),
        (lambda t: t.assign(true=["b", *t["true"][1:]]), "1 have another true class"),
        (
            lambda t: t.assign(predicted="a", cost=[0.0] * 30 + [7.0] * 30),
            "b decided as a costs 7 in one and 10 in the",
        ),
        (lambda t: t.assign(weight=2.0), "count the images differently"),
        (lambda t: pd.concat([t, t[:1]]), "names an image twice"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(pair, change, message):
    with pytest.raises(UdcError, match=message):
        compare_predictions(pair[0], change(pair[1]))


def test_the_paired_test_has_its_stated_level(rng):
    draws, level = 600, 0.05
    rejected = 0
    for i in range(draws):
        differences = rng.choice([-10.0, -1.0, 0.0, 1.0, 10.0], 60, p=[0.05, 0.1, 0.7, 0.1, 0.05])
        rejected += paired_test(differences, seed=i) <= level
    assert binom.ppf(0.001, draws, level) <= rejected <= binom.ppf(0.999, draws, level)
    assert paired_test(np.full(30, 0.2)) < 0.001
