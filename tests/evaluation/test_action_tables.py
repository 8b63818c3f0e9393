"""Actions in tables, metrics, figures, comparisons and decisions made again, with the right numbers."""

import csv
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import binomtest

from udc_model.config import EvaluateParams, validate_params
from udc_model.data.packed import PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.comparison import compare_predictions
from udc_model.evaluation.curves import cost_curve, referral_curve
from udc_model.evaluation.evidence import warnings_of
from udc_model.evaluation.intervals import metric_intervals
from udc_model.evaluation.metrics import Scored, split_metrics
from udc_model.evaluation.redecision import (
    StoredEvaluation,
    Sweep,
    decided_by,
    decision_report,
    under_costs_of,
    write_sweep,
)
from udc_model.evaluation.tables import read_predictions, write_curves, write_split
from udc_model.experiments.results import cost_difference

CLASSES = ["a", "b", "c"]
ACTIONS = {"retest": [0.3, 0.2, 0.45], "discard": [0.6, 0.9, 0.05]}
COSTS = {"refer": 0.35, "actions": {name: dict(zip(CLASSES, row, strict=True)) for name, row in ACTIONS.items()}}


@pytest.fixture
def policy():
    return Policy(CLASSES, (1 - np.eye(3)).tolist(), refer=0.35, actions=ACTIONS, training_prior=[1 / 3] * 3)


@pytest.fixture
def folder(tmp_path, rng, policy):
    """The evaluation folder of 120 images with referral and two actions."""
    labels = np.repeat(np.arange(3), 40)
    names = [f"{i}.png" for i in range(120)]
    split = PackedSplit(np.zeros((120, 2, 2, 3), np.uint8), labels, names, [""] * 120, ["0"] * 120)
    logits = (rng.normal(0, 1, (120, 3)) + 1.2 * np.eye(3)[labels]).astype(np.float32)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "policy.json").write_text(policy.to_json())
    for name in ("validation", "test"):
        scored, *_ = write_split(folder / name, split, logits, policy, EvaluateParams(resamples=100))
    write_curves(folder / "test", scored, policy, logits, EvaluateParams(resamples=100))
    return folder


def test_predictions_equal_those_by_hand(folder):
    """From the logits of the file and the table of costs, number by number."""
    rows = {true: {decided: float(true != decided) for decided in CLASSES} | {"refer": 0.35} for true in CLASSES}
    for name, costs in ACTIONS.items():
        for true, cost in zip(CLASSES, costs, strict=True):
            rows[true][name] = cost
    decided = set()
    with (folder / "test/predictions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            p = softmax([float(row[f"logit_{name}"]) for name in CLASSES])
            expected = {name: sum(p[k] * rows[true][name] for k, true in enumerate(CLASSES)) for name in rows["a"]}
            best = min(expected, key=expected.__getitem__)
            assert row["predicted"] == best
            assert float(row["expected_cost"]) == pytest.approx(expected[best])
            assert float(row["cost_paid"]) == rows[row["true"]][best]
            decided.add(best)
    assert decided == {*CLASSES, "refer", "retest", "discard"}


def test_tables_have_a_column_for_each_action(folder):
    table = read_predictions(folder / "test/predictions.csv")
    confusion = json.loads((folder / "test/confusion_matrix.json").read_text())
    assert confusion["outcomes"] == [*CLASSES, "refer", "retest", "discard"]
    by_pair = pd.crosstab(table["true"], table["predicted"]).reindex(columns=confusion["outcomes"], fill_value=0)
    assert confusion["counts"] == by_pair.to_numpy().tolist()
    pairs = pd.read_csv(folder / "test/cost_by_pair.csv").set_index(["true", "decided"])
    assert pairs.loc[("c", "retest"), "cost"] == pytest.approx(0.45 * by_pair.loc["c", "retest"])
    metrics = pd.read_csv(folder / "test/metrics.csv").set_index("metric")
    for metric, name in (
        ("referral_rate", "refer"),
        ("action_rate/retest", "retest"),
        ("action_rate/discard", "discard"),
    ):
        count = int((table["predicted"] == name).sum())
        interval = binomtest(count, 120).proportion_ci(0.95, method="exact")
        assert metrics.loc[metric].tolist() == pytest.approx([count / 120, interval.low, interval.high])
    classes = table[table["predicted"].isin(CLASSES)]
    assert metrics.loc["accuracy", "value"] == pytest.approx((classes["true"] == classes["predicted"]).mean())
    mistakes = pd.read_csv(folder / "test/costliest_mistakes.csv")
    assert set(mistakes["decided"]) <= set(CLASSES)
    baselines = pd.read_csv(folder / "test/baselines.csv")
    assert baselines["decision"].tolist()[-1] == "always retest"  # costs 0.32 on average, less than referral
    assert baselines["mean_cost"].tolist()[-1] == pytest.approx(np.mean(ACTIONS["retest"]))


def test_rates_are_weighted_and_undefined_names_are_refused():
    costs = np.column_stack([1 - np.eye(2), [0.3, 0.4], [0.1, 5.0]])
    targets, decided = np.array([0, 0, 1, 1]), np.array([0, 3, 2, 3])
    weights = np.array([1.5, 1.5, 0.5, 0.5])
    scored = Scored(targets, decided, np.full((4, 2), 0.5), costs, weights, None, ["refer", "x/y"])
    metrics = split_metrics(scored, 2)
    assert metrics["referral_rate"] == pytest.approx(0.5 / 4)
    assert metrics["action_rate/x:2Fy"] == pytest.approx(2 / 4)
    assert metrics["mean_cost"] == pytest.approx((0 + 1.5 * 0.1 + 0.5 * 0.4 + 0.5 * 5) / 4)
    intervals = metric_intervals(scored, metrics, 2, (), 200, 0.9)
    assert intervals["action_rate/x:2Fy"][0] < 0.5 < intervals["action_rate/x:2Fy"][1]
    only = replace(scored, actions=["x", "refer"], decided=np.array([0, 2, 2, 2]))
    assert split_metrics(only, 2)["referral_rate"] == 0
    with pytest.raises(ValueError, match="must have a name for each column"):
        replace(scored, actions=["refer"])
    with pytest.raises(ValueError, match="must have a name for each column"):
        replace(scored, actions=None)


def test_actions_are_no_mistakes():
    costs = np.column_stack([20 * (1 - np.eye(3)), np.full((3, 2), 15.0)])
    scored = Scored(np.arange(30) % 3, np.full(30, 4), np.full((30, 3), 1 / 3), costs, actions=["refer", "x"])
    assert any(text.startswith("no mistakes") for text in warnings_of(scored, [*"abc", "refer", "x"], 0.95))


def _scored(policy, n=400, seed=1):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3) * 0.7, n)
    targets = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return Scored(targets, policy.decide(p), p, policy.outcome_costs, actions=policy.action_names)


def test_curves_know_actions(policy):
    scored = _scored(policy)
    curve = referral_curve(scored)
    others = replace(policy, refer=None)
    without = policy.outcome_costs[scored.targets, np.array([0, 1, 2, 4, 5])[others.decide(scored.probabilities)]]
    assert curve["cost_of_decided"].iloc[0] == pytest.approx(without.mean())
    assert curve["cost_with_referral"].iloc[-1] == pytest.approx(0.35, abs=0.01)
    by_class = Policy(CLASSES, policy.class_costs, actions={"refer": [0.1, 0.2, 0.9]})
    curve = referral_curve(_scored(by_class))
    targets = scored.targets
    assert curve["cost_with_referral"].iloc[-1] == pytest.approx(np.array([0.1, 0.2, 0.9])[targets].mean(), abs=0.01)
    flat = referral_curve(_scored(Policy(CLASSES, policy.class_costs, actions={"refer": [0.3] * 3})))
    pd.testing.assert_frame_equal(flat, referral_curve(_scored(Policy(CLASSES, policy.class_costs, refer=0.3))), rtol=0)
    table = cost_curve(scored, policy)
    shares = np.bincount(targets) / len(targets)
    nearest = table.iloc[(table["x"] - shares[0]).abs().argmin()]  # all mistakes cost 1: x is the share of class a
    assert nearest["policy"] == pytest.approx(scored.cost_paid.mean(), rel=0.05)
    assert nearest["best_constant"] == pytest.approx(shares @ policy.outcome_costs[:, 4], rel=0.05)


def test_comparisons_count_no_action_as_a_mistake(folder, policy):
    table = read_predictions(folder / "test/predictions.csv")
    costs = dict(zip(CLASSES, ACTIONS["discard"], strict=True))  # at least half of a mistake for a and b
    discarded = table.assign(predicted="discard", cost_paid=table["true"].map(costs))
    compared = compare_predictions(table, discarded, policy.outcome_costs)
    assert compared.differences[1].b == 0  # accuracy over all images
    assert any(text.startswith("B has no mistakes") for text in compared.warnings)
    other = replace(policy, actions={"retest": [0.3, 0.25, 0.45]})
    assert cost_difference(policy, other) == "b decided as retest costs 0.2 and 0.25"
    assert cost_difference(policy, replace(policy, actions={})) is None  # the same decisions cost the same
    by_class = replace(policy, refer=None, actions={"refer": [0.35, 0.35, 1.0]})
    assert cost_difference(policy, by_class) == "c decided as refer costs 0.35 and 1"


def test_another_result_is_decided_under_the_costs_with_their_actions(folder, policy):
    table = read_predictions(folder / "test/predictions.csv")
    plain = Policy(CLASSES, policy.class_costs, training_prior=[1 / 3] * 3)
    assert set(decided_by(plain, table)["predicted"]) == set(CLASSES)
    again = decided_by(under_costs_of(policy, plain, None), table)
    assert again["predicted"].equals(table["predicted"])
    assert again["cost_paid"].equals(table["cost_paid"])


def _stored(folder):
    tables = [read_predictions(folder / name / "predictions.csv") for name in ("validation", "test")]
    return StoredEvaluation(Policy.load(folder), *tables)


def test_decisions_made_again_have_the_rate_of_each_action(folder):
    params = validate_params({"costs": COSTS, "evaluate": {"calibration": "none", "resamples": 100}}, "test")
    stored = _stored(folder)
    policy, scored = stored.decide(params.evaluate, params.costs)
    text = decision_report(stored, policy, scored, params.evaluate)
    assert text.startswith("0 of 120 decisions change")
    shares = stored.predictions["predicted"].value_counts() / 120
    assert (f"referral rate {shares['refer']:.4f}\nretest rate {shares['retest']:.4f}\n"
            f"discard rate {shares['discard']:.4f}\na: recall") in text  # fmt: skip


def test_decisions_made_again_assume_the_frequencies_that_the_network_learned(folder, policy):
    params = validate_params({"costs": COSTS, "evaluate": {"calibration": "none", "resamples": 100}}, "test")
    stored = _stored(folder)
    learned = replace(policy, learned_prior=[0.6, 0.3, 0.1])
    again, scored = replace(stored, policy=learned).decide(params.evaluate, params.costs)
    assert again.learned_prior == learned.learned_prior
    assert (
        scored.probabilities[:, 2].mean() > stored.decide(params.evaluate, params.costs)[1].probabilities[:, 2].mean()
    )


def test_a_sweep_varies_the_cost_of_an_action(folder, tmp_path):
    params = validate_params({"costs": COSTS, "evaluate": {"calibration": "none", "resamples": 100}}, "test")
    stored, sweep = _stored(folder), Sweep.parse("true=b,predicted=retest,values=0:2:1")
    table, cells = sweep.run(stored, params.evaluate, params.costs)
    for cost in (0.0, 1.0, 2.0):
        costs = COSTS | {"actions": COSTS["actions"] | {"retest": COSTS["actions"]["retest"] | {"b": cost}}}
        _, scored = stored.decide(params.evaluate, validate_params({"costs": costs}, "test").costs)
        row = table[table["cost"] == cost].iloc[0]
        assert row["mean_cost"] == pytest.approx(scored.cost_paid.mean())
        assert row["images"] == ((scored.targets == 1) & (scored.decided == 4)).sum()
        assert row["action_rate/retest"] == (scored.decided == 4).mean()
    assert table["images"].is_monotonic_decreasing
    assert set(cells["decided"]) == {*CLASSES, "refer", "retest", "discard"}
    text, files = write_sweep(sweep, stored, params.evaluate, params.costs, tmp_path / "sweeps")
    assert files[0].name == "cost_of_b_as_retest.csv"
    assert "recall/b" in text
    with pytest.raises(UdcError, match="--sweep true=retest: the data has no class 'retest'"):
        Sweep.parse("true=retest,predicted=a,values=0:2:1").run(stored, params.evaluate, params.costs)
    with pytest.raises(UdcError, match="--sweep predicted=retake: the data has no class 'retake'"):
        Sweep.parse("true=a,predicted=retake,values=0:2:1").run(stored, params.evaluate, params.costs)


@pytest.mark.parametrize("values", ["0:2e9:1e9", "-2e9:0:1e9", "0:inf:1", "nan:1:1"])
def test_a_sweep_beyond_the_largest_cost_is_refused(values):
    with pytest.raises(UdcError, match=r"--sweep true=a,predicted=b,values=.*: costs must be from -1e\+09 to 1e\+09"):
        Sweep.parse(f"true=a,predicted=b,values={values}")
