"""Tests that the decision as operators is that of `Policy.apply`."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from udc_model.decisions.calibration import METHODS, Calibration, fit_calibration
from udc_model.decisions.policy import Policy
from udc_model.inference.exports.decision_graph import Calibrate, Decide, Network
from udc_model.models import ResNetConfig, ResNetForImageClassification

K = 4
CLASSES = [f"class {k}" for k in range(K)]
FLOOR = {"class": CLASSES[1], "floor": 0.5, "confidence": 0.9, "surcharge": 1.7}
RULES = {
    "min_expected_cost": {},
    "argmax": {},
    "recall_floor": {"recall_floor": FLOOR},
    "two floors": {"recall_floor": [FLOOR, FLOOR | {"class": [CLASSES[0], CLASSES[3]]}]},
    "cost_ceiling": {"cost_ceiling": {"ceiling": 0.5, "confidence": 0.9, "threshold": 0.45}, "refer": 0.3},
}


def _calibration(method, rng):
    targets = np.arange(300) % K
    logits = rng.normal(0, 1.5, (300, K)) + 1.5 * np.eye(K)[targets]
    return fit_calibration(method, logits, targets)


def _logits(rng):
    ordinary, extreme = rng.normal(0, 2, (300, K)), rng.normal(0, 60, (40, K))
    equal = np.tile(rng.normal(0, 2, (20, 1)), (1, K))
    return np.concatenate([ordinary, extreme, equal]).astype(np.float32)


def _check(policy, logits):
    expected = policy.apply(logits)
    decision, class_, probabilities, expected_costs = (each.numpy() for each in Decide(policy)(torch.tensor(logits)))
    compared = np.sort(expected.probabilities @ policy.decision_costs, axis=1)
    is_tie = np.isclose(compared[:, 0], compared[:, 1], rtol=1e-12, atol=1e-12)
    assert is_tie.mean() < 0.2
    np.testing.assert_array_equal(decision[~is_tie], expected.decided[~is_tie])
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)
    np.testing.assert_allclose(expected_costs[np.arange(len(logits)), expected.decided], expected.expected_cost,
                               rtol=1e-6, atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(expected_costs, probabilities.astype(float) @ policy.outcome_costs, rtol=1e-5, atol=1e-6)
    of_classes = (expected.probabilities @ policy.decision_costs)[:, :K].argmin(axis=1)
    np.testing.assert_array_equal(class_[~is_tie], of_classes[~is_tie])
    is_class = (decision < K) & ~is_tie
    np.testing.assert_array_equal(class_[is_class], decision[is_class])
    return decision


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", RULES)
def test_decisions_costs_and_probabilities_are_the_policys(rng, method, rule):
    calibration, logits = _calibration(method, rng), _logits(rng)
    decided = set()
    for refer, actions, prior, learned in product(
        [None, 0.3], [{}, {"retake": [0.1, 0.4, 0.2, 0.9]}], [None, [0.7, 0.1, 0.2, 0]], [None, [0.4, 0.3, 0.2, 0.1]]
    ):
        settings = {"refer": refer} | RULES[rule]
        policy = Policy(
            CLASSES, (rng.uniform(0.5, 3, (K, K)) * (1 - np.eye(K))).tolist(),
            "recall_floor" if "floor" in rule else rule, calibration, training_prior=[0.25] * K,
            deployment_prior=prior, actions=actions, learned_prior=learned, **settings,
        )  # fmt: skip
        decided |= set(_check(policy, logits).tolist())
    assert len(decided) == (K if rule == "argmax" else K + 2)


def test_a_calibration_may_have_equal_positions_and_few_points():
    x = [[0.2, 0.5, 0.5, 0.9], [0.4], [0.0, 1.0], [0.3, 0.3]]
    y = [[0.1, 0.2, 0.6, 0.7], [0.5], [0.01, 0.99], [0.2, 0.4]]
    calibration = Calibration("isotonic", {"x": x, "y": y})
    p = np.array([[0.51, 0.2, 0.19, 0.1], [0.1, 0.4, 0.19, 0.31], [0.92, 0.02, 0.02, 0.04], [0.7, 0.1, 0.1, 0.1],
                  [0.1, 0.4, 0.21, 0.29]])  # fmt: skip
    logits = np.log(p)
    result = Calibrate(calibration)(torch.tensor(logits)).numpy()
    np.testing.assert_allclose(result, calibration.probabilities(logits), atol=1e-12)


def test_the_first_of_equal_decisions_is_taken():
    policy = Policy(CLASSES, (1 - np.eye(K)).tolist(), refer=0.75)
    decision, class_, *_ = Decide(policy)(torch.zeros(1, K))
    assert (decision.item(), class_.item()) == (0, 0) == (policy.apply(np.zeros((1, K))).decided[0], 0)
    cheaper = replace(policy, refer=0.7)
    decision, class_, *_ = Decide(cheaper)(torch.zeros(1, K))
    assert (decision.item(), class_.item()) == (K, 0)


def test_flip_averaging_is_part_of_the_network():
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = (model(images).logits + model(images.flip(-1)).logits) / 2
        assert torch.equal(Network(model, flip_averaging=True)(images), expected)
        assert not torch.equal(Network(model)(images), expected)
