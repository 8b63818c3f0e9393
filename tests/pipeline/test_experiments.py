"""Experiments: which stages a change runs again, what DVC and MLflow show, and equal results in other clones."""

import csv
import hashlib
import io
import json

import pytest

from udc_model.tracking.links import EXPERIMENT_COMMIT, LINKED

pytestmark = pytest.mark.pipeline

SHORT = ("-S", "train.epochs=1")


def _stages_run(done):
    return [name for name in ("prepare", "train", "evaluate") if f"Running stage '{name}'" in done.stdout]


def _results(project):
    """The digest of the weights, the metrics, and the hashes of all outputs with plots and tables."""
    weights = hashlib.sha256((project.root / "model/model.safetensors").read_bytes()).hexdigest()
    return weights, (project.root / "metrics.json").read_text(), (project.root / "dvc.lock").read_text()


def _without_links(run):
    """What a run holds, without the links that `udc sync` and later stages may add."""
    data = run.data.to_dictionary()
    return data | {"tags": {k: v for k, v in data["tags"].items() if k not in (LINKED, EXPERIMENT_COMMIT)}}


@pytest.fixture(scope="module")
def project(small_project):
    """A small project with a committed result of two epochs."""
    project = small_project(train={"epochs": 2})
    project.commit_result()
    return project


def test_convnext_by_one_parameter_with_equal_results_in_another_clone(project, small_project):
    copy = small_project(train={"epochs": 2})
    for clone, stages in ((project, ["train", "evaluate"]), (copy, ["prepare", "train", "evaluate"])):
        done = clone.run("dvc", "exp", "run", "--name", "convnext", "-S", "model.model_type=convnext")
        assert _stages_run(done) == stages
    assert _results(copy) == _results(project)
    run = project.runs()[-1]
    assert run.info.run_name == run.data.tags["dvc.exp_name"] == "convnext"
    assert run.data.params["model.model_type"] == "convnext"
    assert run.info.status == "FINISHED"
    assert "test/accuracy" in run.data.metrics
    project.reset()


def test_a_training_parameter_does_not_rerun_prepare_and_is_shown(project):
    before = {run.info.run_id for run in project.runs()}
    done = project.run("dvc", "exp", "run", "--name", "slow", *SHORT, "-S", "train.learning_rate=0.0001")
    assert _stages_run(done) == ["train", "evaluate"]
    new = [run for run in project.runs() if run.info.run_id not in before]
    assert [run.data.params["train.learning_rate"] for run in new] == ["0.0001"]
    shown = list(csv.DictReader(io.StringIO(project.run("dvc", "exp", "show", "--csv").stdout)))
    row = next(row for row in shown if row["Experiment"] == "slow")
    assert row["train.learning_rate"] == "0.0001"
    assert float(row["test.accuracy"]) == pytest.approx(new[0].data.metrics["test/accuracy"], abs=1e-4)
    change = json.loads(project.run("dvc", "params", "diff", "--json").stdout)["params.yaml"]
    assert sorted(change) == ["train.epochs", "train.learning_rate"]
    assert (change["train.learning_rate"]["old"], change["train.learning_rate"]["new"]) == (0.003, 0.0001)
    metrics = json.loads(project.run("dvc", "metrics", "diff", "--json").stdout)
    assert metrics["metrics.json"]["test.accuracy"]["diff"] < 0
    project.run("dvc", "plots", "diff", "HEAD", "slow", "-o", "plots")
    html = (project.root / "plots/index.html").read_text(encoding="utf-8")
    for title in ("Loss by epoch", "Confusion matrix, test", "ROC, test", "Precision-recall, test"):
        assert title in html
    assert "slow" in html
    project.reset()


def test_an_evaluation_parameter_does_not_rerun_train_and_creates_a_run(project):
    before = {run.info.run_id: run for run in project.runs()}
    done = project.run("dvc", "exp", "run", "--name", "argmax", "-S", "evaluate.decision=argmax")
    assert _stages_run(done) == ["evaluate"]
    new = [run for run in project.runs() if run.info.run_id not in before]
    assert len(new) == 1
    run = new[0]
    assert run.info.run_name == "argmax"
    assert run.data.params["evaluate.decision"] == "argmax"
    assert run.data.params["train.epochs"] == "2"
    assert "train/train_loss" in run.data.metrics
    assert run.data.tags["udc.trained_by"] in before
    for run_id, old in before.items():
        again = next(run for run in project.runs() if run.info.run_id == run_id)
        assert _without_links(again) == _without_links(old)
        assert again.info.end_time == old.info.end_time
    project.reset()


def test_costs_rerun_train_only_if_the_loss_uses_them(project):
    done = project.run("dvc", "exp", "run", "-S", "costs.entries=[{actual: bar, predicted: stripe, cost: 50}]")
    assert _stages_run(done) == ["evaluate"]
    assert json.loads((project.root / "evaluation/policy.json").read_text())["class_costs"][0][2] == 50
    done = project.run("dvc", "exp", "run", *SHORT, "-S", "loss.name=cost_weighted")
    assert _stages_run(done) == ["train", "evaluate"]
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
