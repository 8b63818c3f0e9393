"""The policy: fitting, its file, and errors."""

import re

import numpy as np
import pytest
from scipy.special import softmax

from udc_model.config import CostParams, EvaluateParams, validate_params
from udc_model.decisions.calibration import METHODS
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.policy import Policy, fit_policy
from udc_model.errors import UdcError

CLASSES = ["a", "b", "c"]
COUNTS = [60, 30, 10]


@pytest.fixture
def calibration_split(rng):
    """Logits, twice too large, and targets."""
    logits = rng.normal(0, 1.5, (600, 3))
    p = softmax(logits, axis=1)
    return 2 * logits, (p.cumsum(axis=1) > rng.random((600, 1))).argmax(axis=1)


def _fit(calibration_split, evaluate=None, **costs):
    params = validate_params({"costs": costs, "evaluate": evaluate or {}}, "test")
    return fit_policy(params.evaluate, params.costs, CLASSES, TrainingFrequencies(COUNTS), *calibration_split)


@pytest.mark.parametrize("calibration", METHODS)
def test_policy_file_round_trip(calibration_split, calibration, tmp_path):
    policy = _fit(calibration_split, {"calibration": calibration}, refer=0.5, prior={"a": 0.2, "b": 0.2, "c": 0.6})
    (tmp_path / "policy.json").write_text(policy.to_json())
    loaded = Policy.load(tmp_path / "policy.json")
    assert loaded == policy
    decisions, loaded_decisions = policy.apply(calibration_split[0]), loaded.apply(calibration_split[0])
    assert (decisions.decided == loaded_decisions.decided).all()
    assert (decisions.expected_cost == loaded_decisions.expected_cost).all()
    assert set(np.unique(decisions.decided)) <= {0, 1, 2, 3}
    assert policy.outcomes == [*CLASSES, "refer"]


def test_expected_cost_is_the_expected_cost_of_the_decision(calibration_split):
    matrix = {k: {j: float(k != j) * (i + 1) for i, j in enumerate(CLASSES)} for k in CLASSES}
    policy = _fit(calibration_split, matrix=matrix, refer=0.4)
    decisions = policy.apply(calibration_split[0])
    by_hand = (decisions.probabilities @ policy.outcome_costs)[np.arange(600), decisions.decided]
    assert decisions.expected_cost == pytest.approx(by_hand)
    assert (decisions.expected_cost <= 0.4 + 1e-12).all()
    assert np.abs(decisions.expected_cost[decisions.decided == 3] - 0.4).max() < 1e-12


def test_prior_changes_probabilities_and_weights(calibration_split):
    prior = {"a": 0.1, "b": 0.1, "c": 0.8}
    plain, shifted = _fit(calibration_split), _fit(calibration_split, prior=prior)
    ratio = shifted.probabilities(calibration_split[0]) / plain.probabilities(calibration_split[0])
    expected = np.array(list(prior.values())) / np.array([0.6, 0.3, 0.1])
    assert ratio / ratio[:, :1] == pytest.approx(np.tile(expected / expected[0], (600, 1)))
    weights = shifted.weights(calibration_split[1])
    assert np.bincount(calibration_split[1], weights=weights) / weights.sum() == pytest.approx(list(prior.values()))
    assert weights.mean() == pytest.approx(1)
    assert plain.weights(calibration_split[1]) is None


def test_recall_floor_is_reached_on_the_calibration_split(calibration_split):
    floor = {"class": "c", "floor": 0.9, "confidence": 0.95}
    policy = _fit(calibration_split, {"decision": "recall_floor", "recall_floor": floor})
    is_c = calibration_split[1] == 2
    assert (policy.apply(calibration_split[0]).decided[is_c] == 2).mean() >= 0.9
    assert (_fit(calibration_split).apply(calibration_split[0]).decided[is_c] == 2).mean() < 0.9
    assert policy.recall_floor["surcharge"] > 0


def test_fit_policy_raises_for_unknown_classes_and_an_empty_calibration_split(calibration_split):
    floor = {"class": "d", "floor": 0.9, "confidence": 0.95}
    for evaluate, costs, message in (
        ({"decision": "recall_floor", "recall_floor": floor}, {}, "recall_floor.class: the data has no class 'd'"),
        ({}, {"prior": {"a": 0.5, "d": 0.5}}, "costs.prior: the data has no class 'd'"),
    ):
        with pytest.raises(UdcError, match=message):
            _fit(calibration_split, evaluate, **costs)
    with pytest.raises(UdcError, match="not available for data with a class called 'refer'"):
        fit_policy(
            EvaluateParams(),
            CostParams(refer=1.0),
            ["a", "refer"],
            TrainingFrequencies([1, 1]),
            calibration_split[0][:, :2],
            calibration_split[1] % 2,
        )
    with pytest.raises(UdcError, match="the calibration split is empty"):
        fit_policy(
            EvaluateParams(),
            CostParams(),
            CLASSES,
            TrainingFrequencies(COUNTS),
            calibration_split[0][:0],
            calibration_split[1][:0],
        )


def test_load_raises_for_a_damaged_file(tmp_path):
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"classes": ["a"]}', "class_costs: is missing; allowed: list of: list of: number"),
        (
            '{"classes": ["a"], "class_costs": [[0]], "calibration": {"method": 1}}',
            "calibration.method: got 1; allowed",
        ),
    ):
        (tmp_path / "policy.json").write_text(text)
        with pytest.raises(UdcError, match=rf"policy\.json: {re.escape(message)}"):
            Policy.load(tmp_path / "policy.json")


def test_the_digest_of_costs_tells_other_costs_apart():
    a = Policy(["a", "b"], [[0, 1], [1, 0]])
    assert a.costs_digest == Policy(["a", "b"], [[0, 1], [1, 0]], decision="argmax").costs_digest
    others = (Policy(["a", "b"], [[0, 2], [1, 0]]), Policy(["a", "b"], [[0, 1], [1, 0]], refer=0.5),
              Policy(["a", "b"], [[0, 1], [1, 0]], deployment_prior=[0.1, 0.9]))  # fmt: skip
    assert len({each.costs_digest for each in (a, *others)}) == 4
