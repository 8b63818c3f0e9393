"""The estimate of class frequencies uses the policy's own calibration, also for its interval."""

import logging

import numpy as np
import pandas as pd

from udc_model.decisions.calibration import Calibration, fit_method
from udc_model.decisions.policy import Policy
from udc_model.evaluation.estimated_prior import with_estimated_prior


def test_the_interval_refits_the_method_of_the_policy_and_logs_nothing(rng, monkeypatch, caplog):
    targets = np.repeat([0, 1], [60, 15])  # few enough for another method to be selected on a resample
    logits = rng.normal(size=(75, 2)) + 1.5 * np.eye(2)[targets]
    calibration = pd.DataFrame({"true": np.array(["a", "b"])[targets], "group": "", "logit_a": logits[:, 0],
                                "logit_b": logits[:, 1]})  # fmt: skip
    policy = Policy(["a", "b"], [[0, 1], [1, 0]], calibration=fit_method("vector", logits, targets, None),
                    training_prior=[0.8, 0.2])  # fmt: skip
    used, original = [], Calibration.probabilities
    monkeypatch.setattr(Calibration, "probabilities", lambda self, *a: used.append(self.method) or original(self, *a))
    with caplog.at_level(logging.DEBUG):
        with_estimated_prior(policy, logits[30:].astype(np.float32), calibration)
    assert not caplog.records
    assert len(used) > 50
    assert set(used) == {"vector"}
