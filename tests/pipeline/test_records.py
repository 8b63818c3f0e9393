"""Recorded runs: links to experiments, reproduction, promotion, comparison in MLflow's page, and tuning."""

import json
import os
import re
import shutil
import signal
import urllib.parse
from pathlib import Path

import mlflow
import pytest

from udc_model.tracking.pages import address

pytestmark = pytest.mark.pipeline

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
TRIALS = int(os.environ.get("UDC_STUDY_TRIALS", "3"))


@pytest.fixture(scope="module")
def project(new_project):
    """A project with a committed result of one epoch, and the experiment `slow`."""
    project = new_project(train={"epochs": 1}, evaluate={"resamples": 100})
    project.commit_result()
    project.run("dvc", "exp", "run", "-q", "--name", "slow", "-S", "train.learning_rate=0.0001")
    project.reset()
    return project


def _show(project, name):
    return json.loads(project.udc("show", name, "--json").stdout)


def test_a_restored_experiment_is_linked_to_the_run_with_its_content(project):
    before = len(project.runs())
    project.run("dvc", "exp", "run", "-q", "--temp", "--name", "again", "-S", "train.learning_rate=0.0001")
    assert len(project.runs()) == before  # DVC restored it from its cache, so no stage ran
    synced = project.udc("sync").stdout
    slow = _show(project, "slow")
    assert f"again: run {slow['run']}" in synced
    assert _show(project, "again") == slow == _show(project, slow["run"])
    assert slow["experiments"] == ["slow", "again"]
    commit = project.run("git", "rev-parse", slow["experiment_commit"] + ":params.yaml").stdout
    assert commit
    assert slow["uncommitted_changes"]  # the parameters of the experiment
    assert _show(project, ".")["run"] == _show(project, "HEAD")["run"]
    assert slow["dvc_outs"]["model"] in project.run("git", "show", slow["experiment_commit"] + ":dvc.lock").stdout


def test_reproduce_gives_bitwise_equal_results(project):
    assert "can be reproduced" in project.udc("reproduce", "--check", "slow").stdout
    assert project.run("udc", "reproduce", "slow").stdout.startswith("identical: run ")


def test_promote_makes_a_model_champion_only_if_costs_are_significantly_lower(project):
    first = _show(project, "HEAD")["run"]
    worse = project.udc("promote", "slow", "--as", "digits")
    assert "version 1 is champion: it is the first version" in worse.stdout
    better = project.udc("promote", first, "--as", "digits")
    assert "version 2 is champion" in better.stdout
    refused = project.udc("promote", "slow", "--as", "digits", check=False)
    assert refused.returncode == 1
    assert "not champion" in refused.stdout
    assert "error" not in refused.stdout + refused.stderr
    client = project.client()
    assert client.get_model_version_by_alias("digits", "champion").run_id == first
    description = client.get_model_version("digits", "2").description
    assert description.startswith("**Champion** when it was promoted: test mean cost ")
    assert "**Test cost " in description
    assert "`champion` is the version to deploy" in client.get_registered_model("digits").description
    assert str(client.get_model_version_by_alias("digits", "challenger").version) == "1"
    assert json.loads(client.get_model_version("digits", "1").tags["mlflow.udc.comparison"])["p_value"] < 0.05
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    assert model.metadata.run_id == first


@pytest.fixture
def page():
    """An empty page of a browser. Screenshots are written to the folder ``UDC_SCREENSHOTS`` if it is set."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        page = browser.new_page(viewport={"width": 1600, "height": 2400})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def _screenshot(page, name):
    if folder := os.environ.get("UDC_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine (apt install chromium)")
def test_mlflow_page_shows_result_changes_and_confusion_matrices(project, free_port, page):
    """In a real browser with a new profile, from the address that `udc ui` prints."""
    runs = [run for run in project.runs() if run.data.params["train.learning_rate"] in ("0.003", "0.0001")]
    slow = next(run for run in runs if run.info.run_name == "slow")
    server = f"http://127.0.0.1:{free_port}"
    with project.server("udc", "ui", "--port", str(free_port), ready=f"{server}/health"):
        page.set_viewport_size({"width": 1400, "height": 900})
        page.goto(address(server, slow.info.experiment_id))
        for text in ("Model training", "test/mean_cost", slow.data.tags["cost interval"]):
            page.get_by_text(text, exact=True).first.wait_for()
        assert "train.learning_rate=0.0001" in slow.data.tags["changed"]
        _screenshot(page, "runs")
        page.get_by_text("slow", exact=True).first.click()
        result = page.get_by_text(f"Test cost {slow.data.metrics['test/mean_cost']:.4f} an image")
        result.wait_for()
        paragraph = result.locator("xpath=..")
        assert slow.data.tags["cost interval"] in paragraph.inner_text()
        box = paragraph.bounding_box()
        assert box["y"] + box["height"] < 900  # visible without scrolling
        _screenshot(page, "run")
        page.goto(address(server, slow.info.experiment_id) + "&compareRunsMode=CHART")
        images = page.locator("img[src*=confusion_matrix]").filter(visible=True)
        images.nth(1).wait_for()
        boxes = [images.nth(k).bounding_box() for k in range(2)]
        assert boxes[0]["y"] == boxes[1]["y"]  # side by side
        assert boxes[0]["y"] + boxes[0]["height"] < 900  # visible without scrolling
        matches = {re.search(r"run_uuid=(\w+)", images.nth(k).get_attribute("src")) for k in range(images.count())}
        _screenshot(page, "charts")
        query = {"runs": json.dumps([run.info.run_id for run in runs]),
                 "experiments": json.dumps([slow.info.experiment_id])}  # fmt: skip
        page.goto(f"{server}/#/compare-runs?{urllib.parse.urlencode(query)}")
        page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
        for name in (*(run.info.run_name for run in runs), "train.learning_rate", "test/mean_cost"):
            page.get_by_text(name, exact=True).filter(visible=True).first.wait_for()
        page.get_by_label("Close").first.click()  # the assistant covers the list of files
        page.reload()
        page.locator("[artifact-name='confusion_matrix.png']").click()
        shown = page.locator("img[src^='blob:']").filter(visible=True)
        shown.nth(1).wait_for()
        assert len({shown.nth(k).get_attribute("src") for k in range(shown.count())}) == 2
        shown.first.scroll_into_view_if_needed()
        _screenshot(page, "compare")
    assert {match[1] for match in matches if match} == {run.info.run_id for run in runs}


def test_a_killed_study_is_resumed(by_hand):
    """Killed in the second trial; with another sampler and metric than the defaults."""
    project = by_hand
    command = ["udc", "tune", "-S", "train.learning_rate=log(1e-4,1e-1)", "--trials", str(TRIALS), "--study", "s",
               "--sampler", "random", "--metric", "validation/log_loss"]  # fmt: skip
    process = project.start(*command)
    project.wait_for(".udc/studies/s/s-1.log", process)  # the second trial has started
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    table = project.run(*command).stdout.splitlines()
    assert len([line for line in table if "complete" in line or "pruned" in line]) == TRIALS
    runs = project.runs()
    (parent,) = [run for run in runs if run.data.tags.get("study") == "s"]
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in trials) == [f"s-{k}" for k in range(TRIALS)]
    assert len({run.data.params["train.learning_rate"] for run in trials}) == TRIALS
    assert parent.info.status == "FINISHED"
    artifacts = {item.path for item in project.client().list_artifacts(parent.info.run_id, "study")}
    assert len([name for name in artifacts if name.endswith(".png")]) == 2  # history and importance


def test_a_killed_cross_validation_is_resumed_below_one_run(by_hand):
    """Killed after its first fold."""
    project = by_hand
    project.run("udc", "prepare")
    command = ["udc", "cross-validate", "--folds", "2", "--repeats", "1"]
    process = project.start(*command)
    project.wait_for(".udc/cross-validation/*/repeat-1-fold-1/metrics.json", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = project.run(*command)
    assert "repeat 1, fold 1" not in done.stderr
    assert "repeat 1, fold 2: mean cost" in done.stderr
    runs = project.runs()
    (parent,) = [run for run in runs if run.data.tags["mlflow.source.name"] == "udc cross-validate"]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["cross_validation.folds"] == "2"
    assert parent.data.metrics["cross_validation/cost_low"] < parent.data.metrics["cross_validation/cost"]
    files = {item.path for item in project.client().list_artifacts(parent.info.run_id)}
    assert {"cross_validation.txt", "folds.csv"} <= files
    folds = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    evaluated = sorted(run.data.tags["fold"] for run in folds if "test/mean_cost" in run.data.metrics)
    assert evaluated == ["1 of repeat 1", "2 of repeat 1"]
    assert len({run.data.params["seed"] for run in folds}) == 2
    assert not (project.root / "model").exists()
