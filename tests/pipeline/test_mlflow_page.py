"""MLflow's page in a real browser: two runs side by side, with their metrics and confusion matrices."""

import json
import os
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip


def _page(address, profile, *options):
    """The page's text and markup once its scripts have come to rest."""
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", "--window-size=1600,2400", "--virtual-time-budget=30000",
               *options, address]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine (apt install chromium)")
def test_two_runs_side_by_side(by_hand, free_port, tmp_path):
    project = by_hand
    project.run("dvc", "exp", "run", "-q", "--name", "first")
    project.run("dvc", "exp", "run", "-q", "--name", "second", "-S", "train.learning_rate=0.01")
    ids = [run.info.run_id for run in project.runs()]
    assert len(ids) == 2
    experiment = project.runs()[0].info.experiment_id
    command = ("mlflow", "server", "--port", str(free_port), "--workers", "1", "--backend-store-uri",
               f"sqlite:///{project.root / 'mlflow.db'}")  # fmt: skip
    with project.server(*command, ready=f"http://127.0.0.1:{free_port}/health"):
        query = urllib.parse.urlencode({"runs": json.dumps(ids), "experiments": json.dumps([experiment])})
        addresses = {
            "compare": f"http://127.0.0.1:{free_port}/#/compare-runs?{query}",
            "charts": f"http://127.0.0.1:{free_port}/#/experiments/{experiment}/runs?compareRunsMode=CHART",
        }
        found = {name: _page(address, tmp_path / "profile", "--dump-dom") for name, address in addresses.items()}
        if folder := os.environ.get("UDC_SCREENSHOTS"):  # for a person to look at
            for name, address in addresses.items():
                _page(address, tmp_path / "profile", f"--screenshot={Path(folder) / name}.png")
    for name in ("test/mean_cost", "test/accuracy", "validation/log_loss", "train.learning_rate", "first", "second"):
        assert name in found["compare"], name
    assert "test/confusion_matrix" in found["charts"]
    pictures = sum(found["charts"].count(f"confusion_matrix{plus}step{plus}0") for plus in ("+", "%2B"))
    assert pictures >= 2, "both runs' confusion matrices"
