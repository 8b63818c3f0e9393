"""Records: experiments and runs linked both ways, reproduced, promoted, and searched for, by the real commands."""

import json
import os
import signal

import mlflow
import pytest

pytestmark = pytest.mark.pipeline

TRIALS = int(os.environ.get("UDC_STUDY_TRIALS", "4"))


@pytest.fixture(scope="module")
def project(new_project):
    """A committed first result with one epoch, and the experiment `slow`."""
    project = new_project(train={"epochs": 1})
    project.run("dvc", "repro", "-q")
    project.run("git", "add", "dvc.lock", "metrics.json")
    project.run("git", "commit", "-qm", "first result")
    project.run("dvc", "exp", "run", "-q", "--name", "slow", "-S", "train.learning_rate=0.0001")
    project.reset()
    return project


def _show(project, name):
    return json.loads(project.run("udc", "show", name, "--json").stdout)


def test_a_restored_experiment_is_linked_to_the_run_with_its_content(project):
    before = len(project.runs())
    project.run("dvc", "exp", "run", "-q", "--temp", "--name", "again", "-S", "train.learning_rate=0.0001")
    assert len(project.runs()) == before  # DVC restored it; no code of ours ran
    told = project.run("udc", "sync").stdout
    slow = _show(project, "slow")
    assert f"again: run {slow['run']}" in told
    assert _show(project, "again") == slow == _show(project, slow["run"])
    assert slow["experiments"] == ["slow", "again"]
    commit = project.run("git", "rev-parse", slow["experiment_commit"] + ":params.yaml").stdout
    assert commit
    assert slow["uncommitted_changes"]  # the experiment's own parameters
    assert slow["dvc_outs"]["model"] in project.run("git", "show", slow["experiment_commit"] + ":dvc.lock").stdout


def test_a_run_is_reproduced_to_the_bit(project):
    assert "can be reproduced" in project.run("udc", "reproduce", "--check", "slow").stdout
    assert project.run("udc", "reproduce", "slow").stdout.startswith("identical: run ")


def test_only_a_model_that_is_shown_to_be_cheaper_becomes_champion(project):
    first = _show(project, "HEAD")["run"]
    worse = project.run("udc", "promote", "slow", "--as", "digits")
    assert "version 1 is champion: the first of its name" in worse.stdout
    better = project.run("udc", "promote", first, "--as", "digits")
    assert "version 2 is champion" in better.stdout
    refused = project.run("udc", "promote", "slow", "--as", "digits", check=False)
    assert refused.returncode == 1
    assert "not champion" in refused.stdout
    client = project.client()
    assert client.get_model_version_by_alias("digits", "champion").run_id == first
    assert str(client.get_model_version_by_alias("digits", "challenger").version) == "1"
    assert json.loads(client.get_model_version("digits", "1").tags["udc.comparison"])["p_value"] < 0.05
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    assert model.metadata.run_id == first


def test_a_study_goes_on_after_a_kill(by_hand):
    """Killed in its third trial; also with a sampler and a metric that are asked for."""
    project = by_hand
    command = ["udc", "tune", "-S", "train.learning_rate=log(1e-4,1e-1)", "--trials", str(TRIALS), "--study", "s",
               "--sampler", "random", "--metric", "validation/log_loss"]  # fmt: skip
    process = project.start(*command)
    project.wait_for(".udc/studies/s/s-2.log", process)  # the third trial has begun
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    table = project.run(*command).stdout.splitlines()
    assert len([line for line in table if "complete" in line or "pruned" in line]) == TRIALS
    runs = project.runs()
    (parent,) = [run for run in runs if run.data.tags.get("udc.study") == "s"]
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in trials) == [f"s-{k}" for k in range(TRIALS)]
    assert len({run.data.params["train.learning_rate"] for run in trials}) == TRIALS
    assert parent.info.status == "FINISHED"
    pictures = {item.path for item in project.client().list_artifacts(parent.info.run_id, "study")}
    assert len([name for name in pictures if name.endswith(".png")]) == 2  # history and importance
