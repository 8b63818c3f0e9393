"""The decision policy as a whole: what it reads, keeps in its file, and refuses."""

import numpy as np
import pytest
from scipy.special import softmax

from udc_model.config import CostParams, EvaluateParams, validate_params
from udc_model.decisions.calibration import METHODS
from udc_model.decisions.policy import Policy, fit_policy
from udc_model.errors import UdcError

CLASSES = ["a", "b", "c"]
COUNTS = [60, 30, 10]


@pytest.fixture
def known(rng):
    """Logits of a calibration split, twice too large, and targets."""
    logits = rng.normal(0, 1.5, (600, 3))
    p = softmax(logits, axis=1)
    return 2 * logits, (p.cumsum(axis=1) > rng.random((600, 1))).argmax(axis=1)


def _fit(known, evaluate=None, **costs):
    params = validate_params({"costs": costs, "evaluate": evaluate or {}}, "test")
    return fit_policy(params.evaluate, params.costs, CLASSES, COUNTS, *known)


@pytest.mark.parametrize("calibration", METHODS)
def test_the_file_holds_all_of_it(known, calibration, tmp_path):
    policy = _fit(known, {"calibration": calibration}, refer=0.5, prior={"a": 0.2, "b": 0.2, "c": 0.6})
    (tmp_path / "policy.json").write_text(policy.to_json())
    again = Policy.load(tmp_path / "policy.json")
    assert again == policy
    one, other = policy.apply(known[0]), again.apply(known[0])
    assert (one.decided == other.decided).all()
    assert (one.expected_cost == other.expected_cost).all()
    assert set(np.unique(one.decided)) <= {0, 1, 2, 3}
    assert policy.outcomes == [*CLASSES, "refer"]


def test_expected_cost_is_that_of_the_decision(known):
    matrix = {k: {j: float(k != j) * (i + 1) for i, j in enumerate(CLASSES)} for k in CLASSES}
    policy = _fit(known, matrix=matrix, refer=0.4)
    found = policy.apply(known[0])
    by_hand = (found.probabilities @ policy.outcome_costs)[np.arange(600), found.decided]
    assert found.expected_cost == pytest.approx(by_hand)
    assert (found.expected_cost <= 0.4 + 1e-12).all()
    assert np.abs(found.expected_cost[found.decided == 3] - 0.4).max() < 1e-12


def test_the_prior_moves_probabilities_and_weights(known):
    prior = {"a": 0.1, "b": 0.1, "c": 0.8}
    plain, moved = _fit(known), _fit(known, prior=prior)
    ratio = moved.probabilities(known[0]) / plain.probabilities(known[0])
    expected = np.array(list(prior.values())) / np.array([0.6, 0.3, 0.1])
    assert ratio / ratio[:, :1] == pytest.approx(np.tile(expected / expected[0], (600, 1)))
    weights = moved.weights(known[1])
    assert np.bincount(known[1], weights=weights) / weights.sum() == pytest.approx(list(prior.values()))
    assert weights.mean() == pytest.approx(1)
    assert plain.weights(known[1]) is None


def test_the_recall_floor_holds_on_what_it_was_fitted_on(known):
    floor = {"class": "c", "floor": 0.9, "confidence": 0.95}
    policy = _fit(known, {"decision": "recall_floor", "recall_floor": floor})
    own = known[1] == 2
    assert (policy.apply(known[0]).decided[own] == 2).mean() >= 0.9
    assert (_fit(known).apply(known[0]).decided[own] == 2).mean() < 0.9
    assert policy.recall_floor["surcharge"] > 0


def test_what_does_not_fit_the_classes_is_refused(known):
    floor = {"class": "d", "floor": 0.9, "confidence": 0.95}
    for evaluate, costs, message in (
        ({"decision": "recall_floor", "recall_floor": floor}, {}, "recall_floor.class: the data has no class 'd'"),
        ({}, {"prior": {"a": 0.5, "d": 0.5}}, "costs.prior: the data has no class 'd'"),
    ):
        with pytest.raises(UdcError, match=message):
            _fit(known, evaluate, **costs)
    with pytest.raises(UdcError, match="not available for data with a class called 'refer'"):
        fit_policy(EvaluateParams(), CostParams(refer=1.0), ["a", "refer"], [1, 1], known[0][:, :2], known[1] % 2)
    with pytest.raises(UdcError, match="the calibration split is empty"):
        fit_policy(EvaluateParams(), CostParams(), CLASSES, COUNTS, known[0][:0], known[1][:0])


def test_a_damaged_file_is_named(tmp_path):
    for text in ("{", "[]", '{"classes": ["a"]}', '{"calibration": {"methd": 1}}'):
        (tmp_path / "policy.json").write_text(text)
        with pytest.raises(UdcError, match=r"policy\.json: cannot be read"):
            Policy.load(tmp_path / "policy.json")
