"""MLflow's page in a real browser: two runs side by side, with their metrics and confusion matrices."""

import json
import os
import re
import shutil
import urllib.parse
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture
def page():
    """An empty page; with ``UDC_SCREENSHOTS`` its pictures are kept in that folder, for a person to look at."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        page = browser.new_page(viewport={"width": 1600, "height": 2400})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def _keep(page, name):
    if folder := os.environ.get("UDC_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine (apt install chromium)")
def test_two_runs_side_by_side(by_hand, free_port, page):
    project = by_hand
    project.run("dvc", "exp", "run", "-q", "--name", "first")
    project.run("dvc", "exp", "run", "-q", "--name", "second", "-S", "train.learning_rate=0.01")
    runs = project.runs()
    experiment = runs[0].info.experiment_id
    query = urllib.parse.urlencode({"runs": json.dumps([run.info.run_id for run in runs]),
                                    "experiments": json.dumps([experiment])})  # fmt: skip
    command = ("mlflow", "server", "--port", str(free_port), "--workers", "1", "--backend-store-uri",
               f"sqlite:///{project.root / 'mlflow.db'}")  # fmt: skip
    with project.server(*command, ready=f"http://127.0.0.1:{free_port}/health"):
        page.goto(f"http://127.0.0.1:{free_port}/#/compare-runs?{query}")
        page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
        for name in ("first", "second", "train.learning_rate", "epoch/validation_log_loss"):
            page.get_by_text(name, exact=True).first.wait_for()
        _keep(page, "compare")
        page.goto(f"http://127.0.0.1:{free_port}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
        search = page.get_by_placeholder("Search metric charts")
        for name in ("test/mean_cost", "validation/accuracy"):
            search.fill(name)
            page.get_by_text(name, exact=True).first.wait_for()
        search.fill("confusion_matrix")
        pictures = page.locator("img[src*=confusion_matrix]")
        pictures.nth(1).wait_for()
        shown = {re.search(r"run_uuid=(\w+)", pictures.nth(k).get_attribute("src")) for k in range(pictures.count())}
        _keep(page, "charts")
    assert {match[1] for match in shown if match} == {run.info.run_id for run in runs}
