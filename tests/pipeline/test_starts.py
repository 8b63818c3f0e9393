"""One experiment, one run, in every way of starting; what each run holds is its own."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.pipeline

RATES = [0.0001, 0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02]
# A store that reads as it is written to: what a person does who looks at the runs meanwhile.
READER = """
import sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
while not sys.stdin.closed and sys.stdin.readline():
    print(len(client.search_runs([e.experiment_id for e in client.search_experiments()])), flush=True)
"""


def _content(run):
    return run.data.to_dictionary(), run.info.status, run.info.end_time


def test_a_queue_of_eight_on_two_workers_and_its_report(new_project):
    project = new_project(train={"epochs": 1}, evaluate={"resamples": 100})
    lone = project.run("udc", "sweep-report", "train.learning_rate", check=False)
    assert lone.returncode == 1
    values = ",".join(map(str, RATES))
    project.run("dvc", "exp", "run", "--queue", "-S", f"train.learning_rate={values}")
    # the workers outlive the command and keep its output open, so nobody may wait for its end
    subprocess.run(["dvc", "queue", "start", "-j", "2"], cwd=project.root, env=project.env(), stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=True)  # fmt: skip
    reader = None
    pause = threading.Event()
    deadline = time.monotonic() + 900
    while (told := project.run("dvc", "queue", "status").stdout).count("Success") < 8:
        assert "Failed" not in told, told
        assert time.monotonic() < deadline, told
        if reader is None and (project.root / "mlflow.db").exists():
            command = [sys.executable, "-c", READER, f"sqlite:///{project.root / 'mlflow.db'}"]
            reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if reader:
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline().strip().isdigit(), "the reader was shut out of the store"
        pause.wait(1)  # between two polls
    reader.communicate()
    assert reader.returncode == 0
    project.run("udc", "sync")
    runs = project.runs()
    assert sorted(float(run.data.params["train.learning_rate"]) for run in runs) == RATES
    shown = pd.read_csv(_exp_show(project))
    shown = shown[shown["Experiment"].notna()].set_index("Experiment")
    assert sorted(shown.index) == sorted(run.info.run_name for run in runs)
    for run in runs:
        assert run.info.status == "FINISHED"
        rate = run.data.params["train.learning_rate"]
        row = shown.loc[run.info.run_name]
        assert float(row["train.learning_rate"]) == float(rate)
        assert float(row["test.mean_cost"]) == run.data.metrics["test/mean_cost"]
        kept = project.client().download_artifacts(run.info.run_id, "params.yaml")
        assert yaml.safe_load(Path(kept).read_text())["train"]["learning_rate"] == float(rate)
    logs = "".join(path.read_text() for path in (project.root / ".dvc/tmp/exps/run").glob("*/*.out"))
    assert "Running stage" in logs
    assert "database is locked" not in logs
    done = project.run("udc", "sweep-report", "train.learning_rate")
    table = pd.read_csv(project.root / "sweeps/train.learning_rate.csv")
    assert sorted(table["train.learning_rate"]) == RATES
    assert table["mean_cost_low"].notna().all()
    assert (project.root / "sweeps/train.learning_rate.png").is_file()
    assert "differ in other parameters" not in done.stderr
    by_price = project.run("udc", "sweep-report", "true=3,predicted=8", check=False)
    assert "a sweep needs two values" in by_price.stderr  # the same price in all of them
    assert project.run("udc", "reproduce", runs[0].info.run_name).stdout.startswith("identical: run ")


def _exp_show(project):
    path = project.root / "shown.csv"
    path.write_text(project.run("dvc", "exp", "show", "--csv", "--hide-workspace").stdout)
    return path


@pytest.fixture
def by_hand(new_project, tmp_path, rng):
    """A small project on image files, nothing of it run."""
    project = new_project(
        data={"source": "folder", "path": "data/raw/shapes", "image_size": 16},
        train={"epochs": 1}, costs={"preset": "uniform"}, evaluate={"resamples": 100},
    )  # fmt: skip
    for k, label in enumerate(("bar", "dot", "stripe")):
        folder = project.root / "data/raw/shapes" / label
        folder.mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 160, (24, 24, 3), dtype="uint8")
            pixels[4 + 5 * k : 9 + 5 * k, 4:20] += 60
            Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "data")
    return project


def test_stages_by_hand_a_failure_and_another_evaluation(by_hand):
    project = by_hand
    project.run("udc", "prepare")
    project.run("udc", "train")
    config = project.root / "model/config.json"
    whole = config.read_text()
    config.write_text("{")
    failed = project.run("udc", "evaluate", check=False)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    config.write_text(whole)
    states = [run.info.status for run in project.runs()]
    project.run("udc", "evaluate")
    runs = project.runs()
    good = [run for run in runs if run.info.status == "FINISHED" and "test/mean_cost" in run.data.metrics]
    assert len(good) == 1, states
    assert all(run.info.status in ("FINISHED", "FAILED") for run in runs)
    before = {run.info.run_id: _content(run) for run in runs}
    project.run("udc", "evaluate")
    again = {run.info.run_id: run for run in project.runs()}
    (new,) = set(again) - set(before)
    assert again[new].data.tags["udc.trained_by"] in before
    assert {key: _content(again[key]) for key in before} == before  # no run is changed after it ended
