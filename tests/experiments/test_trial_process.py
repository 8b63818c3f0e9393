"""What a complete trial has reached: metrics of its experiment, and how long its model was trained."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.training_record import write_seconds
from udc_model.experiments import trial_process
from udc_model.experiments.objectives import Outcome
from udc_model.experiments.trial_process import TrialPlace, TrialProcess

DIGEST = "5" * 64


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """The trial s-0, whose experiment has a table of metrics and a policy."""
    evaluation = tmp_path / "evaluation"
    (evaluation / "validation").mkdir(parents=True)
    (evaluation / "validation/metrics.csv").write_text("metric,value,low,high\nmean_cost,0.5,0.4,0.6\n")
    policy = Policy(["a", "b"], [[0, 1], [1, 0]], training_prior=[0.5, 0.5], model_sha256=DIGEST)
    (evaluation / "policy.json").write_text(policy.to_json())
    monkeypatch.setattr(trial_process, "dvc_experiments", lambda: {"s-0": "the commit"})
    monkeypatch.setattr(trial_process, "from_dvc", lambda name, commit, path, scratch: tmp_path / path)
    return TrialProcess("s-0", [], TrialPlace(tmp_path, tmp_path, "key"))


def test_metrics_are_those_of_the_experiment(trial):
    (error,) = trial.outcome(["mean_cost"], 0.95).errors
    assert error == pytest.approx(0.1 / 1.96, rel=1e-4)
    with pytest.raises(UdcError, match=r"^f2: the trials have no such metric"):
        trial.outcome(["f2"], 0.95)


def test_the_duration_is_that_of_its_model(trial):
    write_seconds(trial.place.root, "4" * 64, 4.0)
    with pytest.raises(UdcError, match=r"^s-0: training/seconds is not known, because its model comes from DVC"):
        trial.outcome(["training/seconds"], 0.95)
    write_seconds(trial.place.root, DIGEST, 12.25)
    outcome = trial.outcome(["validation/mean_cost", "training/seconds"], 0.95)
    assert outcome == Outcome((0.5, 12.25), (outcome.errors[0], None))
    assert json.dumps(outcome.values)  # plain numbers, which any storage takes


@pytest.mark.parametrize("others", ["later", "running", "none"])
def test_a_lost_trial_keeps_the_experiment_of_another_worker_in_its_repository(trial, monkeypatch, others):
    lost, repeated = (TrialProcess("s-0", [], replace(trial.place, is_shared=True), attempt) for attempt in (3, 5))
    commands = []
    monkeypatch.setattr(trial_process, "subprocess", SimpleNamespace(run=lambda c, cwd: commands.append(c[2:])))
    monkeypatch.setattr(TrialProcess, "_set_aside_interrupted", lambda self, is_lost: commands.append(is_lost))
    assert lost.run(lambda _: False)  # the experiment exists
    if others == "later":
        assert repeated.run(lambda _: False)
    if others == "running":
        with repeated.lock.open("w") as lock:
            trial_process.fcntl.flock(lock, trial_process.fcntl.LOCK_EX)
            lost.forget()
    else:
        lost.forget()
    assert commands == ([["dvc", "exp", "remove", "-q", "s-0"], True] if others == "none" else [])
