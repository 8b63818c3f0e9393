"""Experiments: which stages a change runs again, what DVC and MLflow show, and equal results in other clones."""

import csv
import hashlib
import io
import json
import re
import shutil

import pytest

pytestmark = pytest.mark.pipeline

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
        done = clone.run("udc", "run", "--name", "convnext", "-S", "model.model_type=convnext")
        assert _stages_run(done) == stages
        assert "  model.model_type: resnet -> convnext\n" in done.stderr
    assert _results(copy) == _results(project)
    run = project.runs()[-1]
    assert run.info.run_name == run.data.tags["mlflow.udc.experiment"] == "convnext"
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
    listed = project.udc("experiments", "HEAD", "convnext").stdout
    row = next(line for line in listed.splitlines() if line.startswith("convnext  "))
    assert re.match(rf"convnext +convnext +{run.data.metrics['test/mean_cost']:.4f} ", row)
    assert ", p = " in row  # the tables are in DVC's cache
    project.reset()


TITLES = (
    "Loss by epoch", "Confusion matrix, test", "Reliability, test, after calibration", "Cost curve, test",
    "Cost by referral rate, test", "ROC, test, mean over classes", "Precision-recall, test, mean over classes",
)  # fmt: skip


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine (apt install chromium)")
def test_plots_of_two_experiments_are_drawn_without_a_network(project):
    from playwright.sync_api import sync_playwright

    project.run("dvc", "exp", "run", "-q", "--temp", "--name", "argmax", "-S", "evaluate.decision=argmax")
    project.run("dvc", "plots", "diff", "HEAD", "argmax")
    assert "dvc_plots" not in project.run("git", "status", "--porcelain").stdout
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.goto((project.root / "dvc_plots/index.html").as_uri())
        drawn = page.locator("main > div canvas, main > div svg.marks")
        drawn.nth(len(TITLES) - 1).wait_for()
        assert drawn.count() == len(TITLES)
        browser.close()
    html = (project.root / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="http', html)
    assert all(title in html for title in TITLES)
    revisions = {text for text in ("HEAD", "argmax") if f'"rev": "{text}"' in html}
    assert revisions == {"HEAD", "argmax"}


def test_a_class_that_the_data_lacks_is_refused_before_dvc_changes_anything(project):
    before = (project.root / "params.yaml").read_bytes()
    done = project.run("udc", "run", "-S", "evaluate.recall_of=[nix]", check=False)
    assert done.returncode == 1
    assert "evaluate.recall_of: the data has no class 'nix'" in done.stderr
    assert (project.root / "params.yaml").read_bytes() == before
    assert (project.root / "resolved/evaluate.yaml").is_file()


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
    project.has_senders = outside.has_senders = True
    command = ("mlflow", "run", ".", "--env-manager", "local", "-P", "model_type=convnext", "-P", "train.epochs=1")
    project.run(*command)
    runs = project.runs()
    assert len(runs) == 1
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == run.data.tags["mlflow.udc.experiment"]
    assert run.data.params["model.model_type"] == "convnext"
    assert run.data.params["train.epochs"] == "1"
    assert "test/accuracy" in run.data.metrics
    assert "training/train_loss" in run.data.metrics
    # from another folder, by a file URI, up to one stage; the store is in the caller's folder
    outside.run("mlflow", "run", f"file://{project.root}", "-e", "train", "--env-manager", "local",
                "-P", "train.epochs=2", "-P", "data.image_size=24")  # fmt: skip
    (trained,) = outside.runs()
    assert (trained.info.status, trained.data.params["train.epochs"]) == ("FINISHED", "2")
    assert "training/train_loss" in trained.data.metrics
    assert "test/accuracy" not in trained.data.metrics
    assert len(project.runs()) == 1
    assert json.loads((project.root / "data/prepared/dataset.json").read_text())["preprocessing"]["size"] == 24
