"""Tests of the precision of stage evaluate, and of what it changes."""

import numpy as np
import pytest

from udc_model.config import EvaluateParams, Params
from udc_model.decisions.policy import Policy
from udc_model.evaluation.precision import PrecisionCheck, compared_rows, resolve_precision


@pytest.mark.parametrize(
    ("setting", "trained", "resolved"),
    [
        ("auto", "bf16", "bf16"),
        ("auto", "fp32", "fp32_fused"),
        ("auto", "fp16", "fp32_fused"),
        ("auto", None, "fp32_fused"),
        ("fp32", "bf16", "fp32"),
        ("bf16", "fp32", "bf16"),
    ],
)
def test_auto_follows_the_training_run(setting, trained, resolved):
    params = Params(evaluate=EvaluateParams(precision=setting))
    hardware = {} if trained is None else {"precision": trained}
    assert resolve_precision(params, {"hardware": hardware}).evaluate.precision == resolved


def test_at_most_500_images_are_compared():
    assert compared_rows(range(0)).tolist() == []
    assert compared_rows(range(3)).tolist() == [0, 1, 2]
    rows = compared_rows(range(10_000))
    assert len(rows) == 500
    assert (rows[0], rows[-1]) == (0, 9999)


def test_changed_decisions_and_their_cost():
    """Image 1, an a, becomes a b, which costs 1; image 3, a b, becomes a b instead of an a, which cost 5."""
    policy = Policy(["a", "b"], [[0.0, 1.0], [5.0, 0.0]], decision="argmax")
    exact = np.array([[2.0, 0], [2, 0], [0, 2], [2, 0]])
    logits = np.array([[2.1, 0], [0, 0.1], [0, 2], [0, 1]])
    check = PrecisionCheck.of(policy, logits, exact, np.array([0, 0, 1, 1]))
    assert check == PrecisionCheck(4, 2, (1 - 5) / 4)
    assert check.to_text("bf16") == (
        "precision bf16: 2 of 4 calibration images are decided otherwise than in fp32, which changes their mean cost "
        "by -1.0000"
    )
    unchanged = PrecisionCheck.of(policy, exact, exact, np.array([0, 0, 1, 1]))
    assert unchanged.to_text("bf16") == "precision bf16: all 4 calibration images are decided as in fp32"
    assert check.metrics() == {"precision/share_of_decisions_changed": 0.5, "precision/mean_cost_change": -1.0}


def test_an_empty_calibration_split_changes_nothing():
    check = PrecisionCheck.of(Policy(["a", "b"], [[0.0, 1.0], [1.0, 0.0]]), *(np.empty((0, 2)),) * 2, np.empty(0, int))
    assert check == PrecisionCheck(0, 0, 0.0)
