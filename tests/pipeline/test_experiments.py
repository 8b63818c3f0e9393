"""Experiments: which stages a change runs again, what DVC and MLflow show, and equal results in other clones."""

import csv
import hashlib
import io
import json

import pytest

pytestmark = pytest.mark.pipeline


def _stages_run(done):
    return [name for name in ("prepare", "train", "evaluate") if f"Running stage '{name}'" in done.stdout]


def _results(project):
    """The digest of the weights, the metrics, and the hashes of all outputs with plots and tables."""
    weights = hashlib.sha256((project.root / "model/model.safetensors").read_bytes()).hexdigest()
    return weights, (project.root / "metrics.json").read_text(), (project.root / "dvc.lock").read_text()


@pytest.fixture(scope="module")
def project(small_project):
    """A small project with a committed result of two epochs."""
    project = small_project(train={"epochs": 2})
    project.commit_result()
    return project


def test_convnext_by_one_parameter_is_shown_and_equal_in_another_clone(project, small_project):
    copy = small_project(train={"epochs": 2})
    for clone, stages in ((project, ["train", "evaluate"]), (copy, ["prepare", "train", "evaluate"])):
        done = clone.run("dvc", "exp", "run", "--name", "convnext", "-S", "model.model_type=convnext")
        assert _stages_run(done) == stages
    assert _results(copy) == _results(project)
    run = project.runs()[-1]
    assert run.info.run_name == run.data.tags["dvc.exp_name"] == "convnext"
    assert run.data.params["model.model_type"] == "convnext"
    assert run.info.status == "FINISHED"
    shown = list(csv.DictReader(io.StringIO(project.run("dvc", "exp", "show", "--csv").stdout)))
    row = next(row for row in shown if row["Experiment"] == "convnext")
    assert row["model.model_type"] == "convnext"
    assert float(row["test.mean_cost"]) == pytest.approx(run.data.metrics["test/mean_cost"], abs=1e-4)
    assert float(row["test.accuracy"]) == pytest.approx(run.data.metrics["test/accuracy"], abs=1e-4)
    change = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert change == {"params.yaml": {"model.model_type": {"old": "resnet", "new": "convnext"}}}
    committed = json.loads(project.run("git", "show", "HEAD:metrics.json").stdout)["test"]["log_loss"]
    metrics = json.loads(project.run("dvc", "metrics", "diff", "--json").stdout)["metrics.json"]
    assert metrics["test.log_loss"]["diff"] == pytest.approx(run.data.metrics["test/log_loss"] - committed)
    assert metrics["test.log_loss"]["diff"] != 0
    project.run("dvc", "plots", "diff", "HEAD", "convnext", "-o", "plots")
    html = (project.root / "plots/index.html").read_text(encoding="utf-8")
    for title in ("Loss by epoch", "Confusion matrix, test", "ROC, test", "Precision-recall, test"):
        assert title in html
    assert "convnext" in html
    project.reset()


def test_costs_rerun_train_only_if_the_loss_uses_them(project):
    """That changed costs do not rerun train by default is in the test of the tutorial."""
    done = project.run("dvc", "exp", "run", "-S", "train.epochs=1", "-S", "loss.name=cost_weighted",
                       "-S", "costs.entries=[{actual: bar, predicted: stripe, cost: 50}]", "train")  # fmt: skip
    assert _stages_run(done) == ["train"]
    project.set_params(costs={"entries": []})
    project.run("dvc", "repro", "-q", "resolve")
    assert _stages_run(project.run("dvc", "repro", "--dry")) == ["train", "evaluate"]
    project.reset()


def test_mlflow_run_gives_one_run(by_hand, outside):
    project = by_hand
    command = ("mlflow", "run", ".", "--env-manager", "local", "-P", "model_type=convnext", "-P", "train.epochs=1")
    project.run(*command)
    runs = project.runs()
    assert len(runs) == 1
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == run.data.tags["dvc.exp_name"]
    assert run.data.params["model.model_type"] == "convnext"
    assert run.data.params["train.epochs"] == "1"
    assert "test/accuracy" in run.data.metrics
    assert "epoch/train_loss" in run.data.metrics
    # from another folder, by a file URI, up to one stage; the store is in the caller's folder
    outside.run("mlflow", "run", f"file://{project.root}", "-e", "train", "--env-manager", "local",
                "-P", "train.epochs=2", "-P", "data.image_size=24")  # fmt: skip
    (trained,) = outside.runs()
    assert (trained.info.status, trained.data.params["train.epochs"]) == ("FINISHED", "2")
    assert "epoch/train_loss" in trained.data.metrics
    assert "test/accuracy" not in trained.data.metrics
    assert len(project.runs()) == 1
    assert json.loads((project.root / "data/prepared/dataset.json").read_text())["preprocessing"]["size"] == 24
