"""Class frequencies that a network has learned and that are not those of its images."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from udc_model.config import CostParams, EvaluateParams
from udc_model.decisions.decision import mean_cost
from udc_model.decisions.frequencies import TrainingFrequencies, logit_offset
from udc_model.decisions.policy import Policy, fit_policy
from udc_model.errors import UdcError

IMAGES = [0.9, 0.1]


def _images(rng, n):
    """Labels of frequencies `IMAGES`, and the exact logits of a normal measurement, -1 or 1 plus noise, under them."""
    labels = (rng.random(n) < IMAGES[1]).astype(np.intp)
    measured = rng.normal(2.0 * labels - 1, 1.0)
    return np.column_stack([np.zeros(n), 2 * measured]) + np.log(IMAGES), labels


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("false_negative", [1.0, 5.0])
def test_decisions_are_those_of_a_network_that_saw_the_frequencies(rng, power, false_negative, scale):
    """The network saw the classes with frequencies n ** power, and its logits are ``scale`` times too large."""
    matrix = [[0, 1], [false_negative, 0]]
    logits, labels = _images(rng, 10_000)
    learned = np.array(IMAGES) ** power
    shift = (power - 1) * np.log(IMAGES)
    policy = fit_policy(
        EvaluateParams(),
        CostParams(matrix=matrix),
        ["a", "b"],
        TrainingFrequencies(IMAGES, learned / learned.sum()),
        scale * (logits + shift),
        labels,
    )
    others, others_labels = _images(rng, 20_000)
    p = policy.probabilities(scale * (others + shift))
    np.testing.assert_allclose(p, softmax(others, axis=1), atol=0.03)
    cost = mean_cost(others_labels, policy.decide(p), np.array(matrix))
    assert cost < 0.95 * min(IMAGES[1] * false_negative, IMAGES[0])  # of the best constant decision


def test_argmax_keeps_the_weights_of_training(rng):
    logits, labels = _images(rng, 300)
    policy = fit_policy(EvaluateParams(decision="argmax"), CostParams(preset="uniform"), ["a", "b"],
                        TrainingFrequencies(IMAGES, [0.5, 0.5]), logits, labels)  # fmt: skip
    assert policy.apply(logits).decided.tolist() == logits.argmax(axis=1).tolist()
    other = replace(policy, decision="min_expected_cost")
    assert other.apply(logits).decided.tolist() != logits.argmax(axis=1).tolist()


def test_the_offset_is_bayes_theorem(rng):
    likelihood = rng.random(3)
    images, learned = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.2, 0.6])
    logits = np.log(likelihood * learned) + logit_offset(images, learned)
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(p, likelihood * images / (likelihood * images).sum())


def test_the_policy_file_has_the_learned_frequencies_only_if_they_differ(tmp_path):
    policy = Policy(["a", "b"], [[0, 1], [1, 0]], training_prior=IMAGES)
    assert "learned_prior" not in policy.to_json()
    policy = replace(policy, learned_prior=[0.5, 0.5])
    path = tmp_path / "policy.json"
    path.write_text(policy.to_json())
    assert Policy.load(path) == policy
    for changed, message in (
        ({"learned_prior": [0.5]}, "learned_prior: has 1 values for 2 classes"),
        ({"learned_prior": [0.0, 1.0]}, r"learned_prior\.0"),
        ({"training_prior": None}, "training_prior: must be above 0 for each class"),
    ):
        path.write_text(replace(policy, **changed).to_json())
        with pytest.raises(UdcError, match=message):
            Policy.load(path)
