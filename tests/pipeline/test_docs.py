"""The commands of docs/experiments.md, in their order, as a newcomer types them; with a remote and an origin."""

import re
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline

TEXT = (Path(__file__).parents[2] / "docs/experiments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)


def _wait_for_queue(project):
    deadline = time.monotonic() + 300
    while (told := project.run("dvc", "queue", "status").stdout).count("Success") < 2:
        assert "Failed" not in told, told
        assert time.monotonic() < deadline, told
        time.sleep(1)  # between two polls


def test_every_command_in_order(new_project, tmp_path, free_port):
    project = new_project(train={"epochs": 1}, evaluate={"resamples": 100})
    home = {"HOME": str(tmp_path)}
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "udc-model.git")], check=True)
    project.run("git", "remote", "add", "origin", str(tmp_path / "udc-model.git"))
    server = project.root.parent / "server"
    server.mkdir(exist_ok=True)
    told = []
    for block in BLOCKS:
        if "make ui" in block:  # test_make_ui_answers
            continue
        commands = block.strip()
        if "MLFLOW_TRACKING_URI" in commands:
            commands = commands.replace("5050", str(free_port))
            command = ["mlflow", "server", "--port", str(free_port), "--workers", "1", "--backend-store-uri",
                       f"sqlite:///{server / 'server.db'}", "--artifacts-destination", str(server)]  # fmt: skip
            with project.server(*command, ready=f"http://127.0.0.1:{free_port}/health"):
                told.append(project.run("bash", "-ec", commands, **home).stdout)
                _check_server(free_port)
            continue
        if "queue start" in commands:  # its workers keep the output open
            commands = commands.replace("dvc queue start -j 2", "dvc queue start -j 2 > /dev/null 2>&1")
        told.append(project.run("bash", "-ec", commands, **home).stdout)
        if "queue start" in commands:
            _wait_for_queue(project)
    text = "\n".join(told)
    assert text.count("Data and pipelines are up to date") == 2  # the second repro, and that of the clone
    assert "again: run " in text
    assert "identical: run " in text
    assert "version 1 is champion" in text
    assert "HEAD" in text
    runs = project.runs()
    names = [run.info.run_name for run in runs]
    assert {"dear", "wide", "rates-0", "rates-1"} <= set(names)
    assert "again" not in names  # it is a name of wide's run
    assert all(run.info.status == "FINISHED" for run in runs)
    assert not (tmp_path / "elsewhere/mlflow.db").exists()  # nothing ran there


def _check_server(port):
    import mlflow

    client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert "test/mean_cost" in run.data.metrics
    mlflow.set_tracking_uri(None)
