"""Errors under DVC: one message, no traceback, no partial outputs."""

import pytest

pytestmark = pytest.mark.pipeline


def test_invalid_parameters_and_data_give_one_message(new_project):
    project = new_project()
    for flag, message in (
        (["-S", "+train.lerning_rate=1"], "train.lerning_rate: no such parameter"),
        (["-S", "model.num_labels=2"], "model.num_labels: is 2, but the data has 10 classes"),
        (["-S", "data.source=folder", "-S", "data.path=config"], "config: contains no images"),
    ):
        done = project.run("dvc", "exp", "run", *flag, check=False)
        assert done.returncode
        assert message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert not (project.root / "data/prepared").exists()
        project.run("git", "checkout", "-q", "params.yaml")  # dvc exp run leaves its changes there


def test_a_diverged_training_run_fails_and_writes_no_model(small_project):
    project = small_project(train={"epochs": 2, "optimizer": "sgd", "learning_rate": 1e30})
    done = project.run("dvc", "repro", check=False)
    assert done.returncode
    assert "lower train.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert [run.info.status for run in project.runs()] == ["FAILED"]
    assert not (project.root / "model").exists()
