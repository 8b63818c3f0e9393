"""Actions: decisions other than a class, with a cost by true class."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.special import softmax

from udc_model.config import CostParams, EvaluateParams, validate_params
from udc_model.decisions.actions import action_costs, with_actions
from udc_model.decisions.checks import check_policy
from udc_model.decisions.decision import decide
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.guarantees import Sample, referral_threshold
from udc_model.decisions.lint import lint_costs
from udc_model.decisions.policy import Policy, fit_policy
from udc_model.errors import UdcError
from udc_model.evaluation.tables import logits_of, read_predictions
from udc_model.files import json_text

CLASSES = ["a", "b", "c"]


def fitted(costs, evaluate=None, n=600, seed=0):
    """A policy on synthetic logits, with the logits and targets that it was fitted on."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 3))
    targets = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    params = validate_params({"costs": costs, "evaluate": evaluate or {"calibration": "none"}}, "test")
    return (
        fit_policy(params.evaluate, params.costs, CLASSES, TrainingFrequencies([1, 1, 1]), logits, targets),
        logits,
        targets,
    )


def by_hand(p, costs):
    """The decision of least expected cost for one image, from the parameters; of ties the first."""
    rows = [{name: (0.0 if name == true else costs["default"]) for name in CLASSES} for true in CLASSES]
    for entry in costs["entries"]:
        rows[CLASSES.index(entry["true"])][entry["predicted"]] = entry["cost"]
    for true, row in zip(CLASSES, rows, strict=True):
        if costs["refer"] is not None:
            row["refer"] = costs["refer"]
        for name, cost in costs["actions"].items():
            row[name] = cost[true] if isinstance(cost, dict) else cost
    expected = {name: sum(p[y] * rows[y][name] for y in range(3)) for name in rows[0]}
    return min(expected, key=expected.__getitem__), expected


def random_costs(rng):
    names = ["retest", "discard", "biopsy", "a b", "é"][: rng.integers(1, 6)]
    actions = {
        name: float(rng.random()) if rng.random() < 0.3 else {k: float(rng.normal(0.4, 0.4)) for k in CLASSES}
        for name in names
    }
    return {
        "default": 1.0, "refer": None if rng.random() < 0.4 else float(rng.random()), "actions": actions,
        "entries": [{"true": "b", "predicted": "a", "cost": float(rng.integers(1, 9))}],
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_decisions_equal_those_by_hand(seed):
    costs = random_costs(np.random.default_rng(seed))
    policy, logits, _ = fitted(costs, n=60, seed=seed)
    assert policy.outcomes == [*CLASSES, *["refer"] * (costs["refer"] is not None), *costs["actions"]]
    decisions = policy.apply(logits)
    for p, k, cost in zip(decisions.probabilities, decisions.decided, decisions.expected_cost, strict=True):
        name, expected = by_hand(p, costs)
        assert policy.outcomes[k] == name
        assert cost == pytest.approx(expected[name])


def test_the_example_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs/how-to/costs.md").read_text(encoding="utf-8")
    block = next(text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "actions:" in text)
    params, classes = validate_params(yaml.safe_load(block), "docs").costs, ["benign", "malignant"]
    policy = fit_policy(
        EvaluateParams(calibration="none"),
        params,
        classes,
        TrainingFrequencies([1, 1]),
        np.empty((0, 2)),
        np.empty(0, int),
    )
    assert policy.outcomes == ["benign", "malignant", "refer", "biopsy", "retake"]
    assert np.array([0.9, 0.1]) @ policy.outcome_costs == pytest.approx([5, 1.8, 1.5, 1.2, 0.4])
    assert policy.decide(np.array([[0.9, 0.1], [1.0, 0.0]])).tolist() == [4, 0]


@pytest.mark.parametrize("evaluate", [
    {"calibration": "temperature"}, {"decision": "argmax"},
    {"decision": "recall_floor", "recall_floor": {"class": "b", "floor": 0.7}},
])  # fmt: skip
def test_one_number_for_refer_below_actions_decides_as_costs_refer(evaluate):
    refer, logits, _ = fitted({"refer": 0.3}, evaluate)
    action, _, _ = fitted({"actions": {"refer": 0.3}}, evaluate)
    assert refer.outcomes == action.outcomes
    for name in ("decided", "expected_cost", "probabilities"):
        assert np.array_equal(getattr(refer.apply(logits), name), getattr(action.apply(logits), name))


def test_a_policy_with_referral_only_is_written_as_before():
    policy = Policy(["a", "b"], [[0.0, 1.0], [9.0, 0.0]], refer=0.25, training_prior=[0.5, 0.5])
    values = {
        "classes": ["a", "b"], "class_costs": [[0.0, 1.0], [9.0, 0.0]], "decision": "min_expected_cost",
        "calibration": {"method": "none", "parameters": {}}, "refer": 0.25, "training_prior": [0.5, 0.5],
        "deployment_prior": None, "recall_floor": None, "flip_averaging": False, "model_sha256": None,
        "cost_ceiling": None,
    }  # fmt: skip
    assert policy.to_json() == json_text(values) + "\n"
    assert policy.costs_digest == "ae2bdc1b"


def test_a_result_of_version_0_1_0_with_referral_is_decided_as_then(tmp_path):
    with tarfile.open(Path(__file__).parents[1] / "recorded/version_0.1.0.tar.xz") as recorded:
        for name in ("decision.json", "test/predictions.csv"):
            (tmp_path / Path(name).name).write_bytes(recorded.extractfile(f"./evaluation/{name}").read())
    policy, table = Policy.load(tmp_path), read_predictions(tmp_path / "predictions.csv")
    assert (policy.actions, policy.outcomes) == ({}, [*policy.classes, "refer"])
    decisions = policy.apply(logits_of(table, policy.classes))
    assert [policy.outcomes[k] for k in decisions.decided] == table["predicted"].tolist()
    assert decisions.expected_cost == pytest.approx(table["expected_cost"], abs=1e-6)


def test_policy_files_with_actions(tmp_path):
    policy, logits, _ = fitted({"refer": 0.4, "actions": {"retest": {"a": 0.1, "b": -1, "c": 0.6}, "ü/x": 0.35}})
    (tmp_path / "policy.json").write_text(policy.to_json(), encoding="utf-8")
    loaded = Policy.load(tmp_path / "policy.json")
    assert loaded == policy
    assert json.loads(policy.to_json())["actions"] == {"retest": [0.1, -1.0, 0.6], "ü/x": [0.35] * 3}
    assert (loaded.apply(logits).decided == policy.apply(logits).decided).all()
    others = ({"retest": [0.1, -1.0, 0.7]}, {"retry": [0.1, -1.0, 0.6]}, {})
    digests = {Policy(CLASSES, policy.class_costs, refer=0.4, actions=each).costs_digest for each in others}
    assert len(digests | {policy.costs_digest}) == 4


@pytest.mark.parametrize(("actions", "message"), [
    ({"retest": [1.0]}, "actions.retest: has 1 values for 2 classes"),
    ({"retest": [1.0, float("nan")]}, "actions.retest.1: got"),
    ({"retest": [1.0, 1e300]}, "actions.retest.1: got"),
    ({"retest": ["1", "2"]}, "actions.retest.0: got '1'"),
    ({"retest": 1.0}, "actions.retest: got 1.0"),
    ([], r"actions: got \[\]"),
    (None, "actions: got null"),
    ({"a": [1.0, 1.0]}, "actions: the name 'a' is the name of another decision"),
    ({"refer": [1.0, 1.0]}, "actions: the name 'refer' is the name of another decision"),
    ({"": [1.0, 1.0]}, "actions: the name '' is empty"),
    ({"x\n": [1.0, 1.0]}, r"actions: the name 'x\\n' begins or ends with a space"),
    ({"x\x1b[2J": [1.0, 1.0]}, "contains a line break or another control character"),
    ({"x" * 10_001: [1.0, 1.0]}, "actions"),
    ({str(i): [1.0, 1.0] for i in range(17)}, "actions: has 17 actions; at most 16 are possible"),
])  # fmt: skip
def test_hostile_actions_in_policy_files_are_refused(tmp_path, actions, message):
    values = {"classes": ["a", "b"], "class_costs": [[0, 1], [1, 0]], "refer": 1, "calibration": {"method": "none"}}
    (tmp_path / "policy.json").write_text(json.dumps(values | {"actions": actions}))
    with pytest.raises(UdcError, match=message):
        Policy.load(tmp_path / "policy.json")


@pytest.mark.parametrize(("costs", "message"), [
    ({"actions": {"a": 1}}, "costs.actions.a: is the name of a class; give the action another one"),
    ({"actions": {" x": 1}}, "costs.actions. x: the name begins or ends with a space; rename the action"),
    ({"actions": {"": 1}}, "costs.actions.: the name is empty; rename the action"),
    ({"actions": {"x\ny": 1}}, r"costs.actions.'x\ny': the name contains a line break or another control character"),
    ({"actions": {"x": {"a": 1, "b": 1}}}, "costs.actions.x: the class 'c' is missing"),
    ({"actions": {"x": {"a": 1}}}, "costs.actions.x: 2 classes are missing: b, c"),
    ({"actions": {"x": {"a": 1, "b": 1, "c": 1, "d": 1}}}, "costs.actions.x: the data has no class 'd'"),
])  # fmt: skip
def test_actions_that_do_not_fit_the_classes(costs, message):
    params = validate_params({"costs": costs, "evaluate": {"calibration": "none"}}, "test")
    with pytest.raises(UdcError, match=re.escape(message)):
        check_policy(params.evaluate, params.costs, CLASSES, {})
    with pytest.raises(UdcError, match=re.escape(message)):
        fit_policy(
            params.evaluate, params.costs, CLASSES, TrainingFrequencies([1, 1, 1]), np.empty((0, 3)), np.empty(0, int)
        )


@pytest.mark.parametrize(("costs", "message"), [
    ({"refer": 1, "actions": {"refer": 2}}, "costs.actions: names refer, which costs.refer is too; remove one"),
    ({"actions": {f"x{i}": 1 for i in range(17)}}, "costs.actions: has 17 actions; at most 16 are possible"),
    ({"actions": {"x": -1}}, "costs.actions.x: got -1; allowed: number at least 0"),
    ({"actions": {"x": 1e10}}, "costs.actions.x: got 10000000000.0; allowed: number at least 0 and at most 1e+09"),
    ({"actions": {"x": {"a": -1e10}}}, "costs.actions.x.a: got -10000000000.0; allowed: number at least -1e+09"),
    ({"actions": {"x": {"a": float("nan")}}}, "costs.actions.x.a: got nan"),
    ({"actions": {"x": None}}, "costs.actions.x: got null"),
    ({"actions": ["x"]}, "costs.actions: got ['x']; allowed: mapping from text to"),
])  # fmt: skip
def test_actions_that_are_not_valid(costs, message):
    with pytest.raises(UdcError, match=re.escape(message)):
        validate_params({"costs": costs}, "test")


def test_lint_names_actions_that_are_never_or_always_decided():
    costs = 1 - np.eye(3)
    assert lint_costs(costs, CLASSES, 0.3, {"retest": [0.1, 0.6, 0.6], "discard": [0.6, 0.6, 0.1]}) == []
    never = lint_costs(costs, CLASSES, 0.5, {"retest": [0.5, 0.6, 0.5]})
    assert never == ["costs.actions: retest never has the least expected cost, so it is never the decision"]
    always = lint_costs(costs, CLASSES, None, {"retest": [-1.0, -1.0, -1.0]})
    assert always[0] == ("costs.actions: retest costs less than any other decision for each true class, so it is "
                         "always the decision; is a sign wrong?")  # fmt: skip
    assert len([text for text in always if "never has the least expected cost" in text]) == 3
    # an action can make a class useless that would be decided without it
    useless = lint_costs(costs, CLASSES, None, {"x": [-0.1, 1.0, 1.0]})
    assert useless == ["costs: deciding a never has the least expected cost; no image is decided a"]
    free = np.array([[0.0, 5.0], [0.0, 0.0]])
    assert not any("always" in text for text in lint_costs(free, ["a", "b"], None, {"x": [1.0, -1.0]}))


def test_a_recall_floor_counts_actions_as_missed():
    evaluate = {"calibration": "none", "decision": "recall_floor", "recall_floor": {"class": "b", "floor": 0.8}}
    costs = {"refer": 0.4, "actions": {"retest": {"a": 0.3, "b": 0.2, "c": 0.3}}}
    plain, logits, targets = fitted(costs, n=1500)
    policy, _, _ = fitted(costs, evaluate, n=1500)
    retest = policy.outcomes.index("retest")
    is_b = targets == 1
    before, after = plain.apply(logits).decided[is_b], policy.apply(logits).decided[is_b]
    assert (before == retest).mean() > 0.3
    assert (before == 1).mean() < 0.8 <= (after == 1).mean()
    assert (policy.decision_costs - policy.outcome_costs)[1].tolist() == pytest.approx(
        np.array([1, 0, 1, 1, 1]) * policy.recall_floor["surcharge"]
    )


def test_a_cost_ceiling_holds_with_actions_and_rations_referral_only():
    costs, refer, ceiling, draws = 4 * (1 - np.eye(3)), 0.5, 0.5, 40
    actions = {"retest": [0.1, 0.9, 0.9]}
    rng = np.random.default_rng(0)

    def population(n):
        p = rng.dirichlet(np.ones(3) * 0.7, n)
        return p, (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)

    all_costs, broken, rates = with_actions(costs, refer, actions), 0, []
    p, y = population(20_000)
    for _ in range(draws):
        threshold = referral_threshold(Sample(*population(1500)), costs, refer, actions, ceiling, 0.9)
        decided = decide(p, with_actions(costs, threshold, actions), "min_expected_cost")
        broken += all_costs[y, decided].mean() > ceiling
        rates.append([(decided == column).mean() for column in (3, 4)])
    chow = decide(p, all_costs, "min_expected_cost")
    assert broken <= 9  # of 40 at a level of 0.1, exceeded with a probability of 0.0015
    assert np.mean(rates, axis=0)[0] < (chow == 3).mean() - 0.02  # fewer referrals
    assert np.mean(rates, axis=0)[1] >= (chow == 4).mean()


def test_a_cost_ceiling_needs_referral_and_knows_what_actions_cost():
    ceiling = {"decision": "cost_ceiling", "cost_ceiling": {"ceiling": 0.3}}
    with pytest.raises(UdcError, match=r"cost_ceiling needs costs\.refer"):
        fitted({"actions": {"refer": 0.2}}, ceiling)
    params = validate_params({"costs": {"refer": 0.2, "actions": {"x": {"a": 0.2, "b": 500, "c": 0.2}}},
                              "evaluate": ceiling}, "test")  # fmt: skip
    with pytest.raises(UdcError, match="if an image can cost 500"):
        check_policy(params.evaluate, params.costs, CLASSES, {"a": 5, "b": 5, "c": 5})


def test_costs_by_class_follow_the_order_of_the_classes():
    params = CostParams(actions={"x": {"c": 3, "a": 1, "b": 2}, "y": 5})
    assert action_costs(params, CLASSES) == {"x": [1.0, 2.0, 3.0], "y": [5.0, 5.0, 5.0]}
    assert action_costs(CostParams(), CLASSES) == {}
    assert with_actions(np.eye(3), 7.0, {"x": [1.0, 2.0, 3.0]})[1].tolist() == [0, 1, 0, 7, 2]
