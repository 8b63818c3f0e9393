"""Experiments: what re-runs after which change, what DVC and MLflow show of it, and the same bits everywhere."""

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
    """The weights' digest, the metrics, and the hashes of every output, pictures and tables included."""
    weights = hashlib.sha256((project.root / "model/model.safetensors").read_bytes()).hexdigest()
    return weights, (project.root / "metrics.json").read_text(), (project.root / "dvc.lock").read_text()


def _without_links(run):
    """All that a run holds but the links that `udc sync` and every later stage may add to it."""
    held = run.data.to_dictionary()
    return held | {"tags": {k: v for k, v in held["tags"].items() if k not in (LINKED, EXPERIMENT_COMMIT)}}


@pytest.fixture(scope="module")
def project(new_project):
    """A project with the default parameters and its first result committed."""
    project = new_project()
    project.run("dvc", "repro", "-q")
    project.run("git", "add", "dvc.lock", "metrics.json")
    project.run("git", "commit", "-qm", "first result")
    return project


def test_convnext_by_one_parameter_and_the_same_bits_in_another_clone(project, new_project):
    other = new_project()
    other.run("dvc", "repro", "-q")
    assert _results(other) == _results(project)
    for clone in (project, other):
        done = clone.run("dvc", "exp", "run", "--name", "convnext", "-S", "model.model_type=convnext")
        assert _stages_run(done) == ["train", "evaluate"]
    assert _results(other) == _results(project)
    assert json.loads(_results(project)[1])["test"]["accuracy"] >= 0.97
    run = project.runs()[-1]
    assert run.info.run_name == run.data.tags["dvc.exp_name"] == "convnext"
    assert run.data.params["model.model_type"] == "convnext"
    assert run.info.status == "FINISHED"
    assert "test/accuracy" in run.data.metrics
    project.reset()


def test_a_change_of_train_reruns_no_prepare_and_is_shown(project):
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


def test_a_change_of_evaluate_reruns_no_train_and_opens_a_run_of_its_own(project):
    before = {run.info.run_id: run for run in project.runs()}
    done = project.run("dvc", "exp", "run", "--name", "argmax", "-S", "evaluate.decision=argmax")
    assert _stages_run(done) == ["evaluate"]
    new = [run for run in project.runs() if run.info.run_id not in before]
    assert len(new) == 1
    run = new[0]
    assert run.info.run_name == "argmax"
    assert run.data.params["evaluate.decision"] == "argmax"
    assert run.data.params["train.epochs"] == "15"
    assert "train/train_loss" in run.data.metrics
    assert run.data.tags["udc.trained_by"] in before
    for run_id, old in before.items():
        again = next(run for run in project.runs() if run.info.run_id == run_id)
        assert _without_links(again) == _without_links(old)
        assert again.info.end_time == old.info.end_time
    project.reset()


def test_costs_rerun_train_only_where_the_loss_reads_them(project):
    done = project.run("dvc", "exp", "run", "-S", "costs.entries=[{actual: '3', predicted: '8', cost: 50}]")
    assert _stages_run(done) == ["evaluate"]
    assert json.loads((project.root / "evaluation/policy.json").read_text())["class_costs"][3][8] == 50
    done = project.run("dvc", "exp", "run", *SHORT, "-S", "loss.name=cost_weighted")
    assert _stages_run(done) == ["train", "evaluate"]
    project.set_params(costs={"entries": []})
    assert _stages_run(project.run("dvc", "repro", "--dry"))[0] == "train"
    project.reset()


def test_mlflow_run_is_one_run(by_hand, outside):
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
    # from outside, by a file's address, up to one stage; into the store of the one who calls
    outside.run("mlflow", "run", f"file://{project.root}", "-e", "train", "--env-manager", "local",
                "-P", "train.epochs=2", "-P", "data.image_size=24")  # fmt: skip
    (other,) = outside.runs()
    assert (other.info.status, other.data.params["train.epochs"]) == ("FINISHED", "2")
    assert "epoch/train_loss" in other.data.metrics
    assert "test/accuracy" not in other.data.metrics
    assert len(project.runs()) == 1
    assert json.loads((project.root / "data/prepared/dataset.json").read_text())["preprocessing"]["size"] == 24
