"""The commands of docs/experiments.md, in their order, as a newcomer types them; with a remote and an origin."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline

TEXT = (Path(__file__).parents[2] / "docs/experiments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)


# Blocks that take long, by a command in them, with the test that runs the same.
ELSEWHERE = {
    "make ui": "test_make_ui_answers",
    "dvc queue start": "test_a_queue_of_eight_on_two_workers_and_its_report",
    "udc tune": "test_a_study_goes_on_after_a_kill",
    "udc reproduce": "test_a_run_is_reproduced_to_the_bit",
}


def test_every_command_in_order(by_hand, tmp_path, free_port):
    project = by_hand
    home = {"HOME": str(tmp_path)}
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "udc-model.git")], check=True)
    project.run("git", "remote", "add", "origin", str(tmp_path / "udc-model.git"))
    server = project.root.parent / "server"
    server.mkdir(exist_ok=True)
    told, tests = [], "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for block in BLOCKS:
        if elsewhere := [name for command, name in ELSEWHERE.items() if command in block]:
            assert f"def {elsewhere[0]}(" in tests
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
        told.append(project.run("bash", "-ec", commands, **home).stdout)
    text = "\n".join(told)
    assert text.count("Data and pipelines are up to date") == 2  # the second repro, and that of the clone
    assert "again: run " in text
    assert "version 1 is champion" in text
    runs = project.runs()
    names = [run.info.run_name for run in runs]
    assert {"dear", "wide"} <= set(names)
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
