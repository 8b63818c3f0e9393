"""One MLflow run for each experiment, however it is started: a queue, a server with a password, single stages."""

import base64
import http.client
import io
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.pipeline

RATES = [0.0001, 0.003, 0.02]  # more than the workers
# Reads the store while stages write to it, once for each line of its input.
READER = """
import sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
while sys.stdin.readline():
    print(len(client.search_runs([e.experiment_id for e in client.search_experiments()])), flush=True)
"""


def _content(run):
    return run.data.to_dictionary(), run.info.status, run.info.end_time


def test_queued_experiments_on_two_workers_and_sweep_report(by_hand):
    project = by_hand
    project.has_senders = True
    refused = project.udc("sweep-report", "train.learning_rate", check=False)
    assert "a sweep needs two values" in refused.stderr
    values = ",".join(map(str, RATES))
    project.run("dvc", "exp", "run", "--queue", "-S", f"train.learning_rate={values}")
    # the workers outlive the command and hold its output open, so it must not be read to its end
    subprocess.run(["dvc", "queue", "start", "-j", "2"], cwd=project.root, env=project.env(), stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=True)  # fmt: skip
    reader = None
    deadline = time.monotonic() + 900
    while (status := _queue_status(project)).count("Success") < len(RATES):
        assert "Failed" not in status, status
        assert time.monotonic() < deadline, status
        if reader is None and (project.root / "mlflow.db").exists():
            command = [sys.executable, "-c", READER, f"sqlite:///{project.root / 'mlflow.db'}"]
            reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if reader:
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline().strip().isdigit(), "the store cannot be read"
        time.sleep(1)  # between two polls
    reader.communicate()
    assert reader.returncode == 0
    project.udc("sync")
    runs = project.runs()
    assert sorted(float(run.data.params["train.learning_rate"]) for run in runs) == RATES
    shown = pd.read_csv(io.StringIO(project.run("dvc", "exp", "show", "--csv", "--hide-workspace").stdout))
    shown = shown[shown["Experiment"].notna()].set_index("Experiment")
    assert sorted(shown.index) == sorted(run.info.run_name for run in runs)
    for run in runs:
        assert run.info.status == "FINISHED"
        rate = run.data.params["train.learning_rate"]
        row = shown.loc[run.info.run_name]
        assert float(row["train.learning_rate"]) == float(rate)
        assert float(row["test.mean_cost"]) == run.data.metrics["test/mean_cost"]
        params_file = project.client().download_artifacts(run.info.run_id, "params.yaml")
        assert yaml.safe_load(Path(params_file).read_text())["train"]["learning_rate"] == float(rate)
    logs = "".join(path.read_text() for path in (project.root / ".dvc/tmp/exps/run").glob("*/*.out"))
    assert "Running stage" in logs
    assert "database is locked" not in logs
    done = project.run("udc", "sweep-report", "train.learning_rate")
    table = pd.read_csv(project.root / "sweeps/train.learning_rate.csv")
    assert sorted(table["train.learning_rate"]) == RATES
    assert table["mean_cost_low"].notna().all()
    assert (project.root / "sweeps/train.learning_rate.png").is_file()
    assert "differ in other parameters" not in done.stderr
    by_cost = project.udc("sweep-report", "true=3,predicted=8", check=False)
    assert "a sweep needs two values" in by_cost.stderr  # all runs have the same cost


def _queue_status(project):
    """Output of `dvc queue status`, or nothing until git has all experiments or a failed one.

    The command takes a second of processor time, which the experiments need.
    """
    names = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.splitlines()
    experiments = [name for name in names if not name.startswith(("refs/exps/celery/", "refs/exps/exec/"))]
    if len(experiments) < len(RATES) and "refs/exps/celery/failed" not in names:
        return ""
    return project.run("dvc", "queue", "status").stdout


def test_passwords_of_a_server_are_neither_printed_nor_stored(by_hand, free_port, tmp_path):
    project, store = by_hand, tmp_path / "store"
    project.has_senders = True
    store.mkdir()
    command = ("mlflow", "server", "--port", str(free_port), "--workers", "1", "--backend-store-uri",
               f"sqlite:///{store / 'server.db'}", "--artifacts-destination", str(store / "files"))  # fmt: skip
    gate = ThreadingHTTPServer(("127.0.0.1", 0), _gate(free_port, "anna", "open-sesame-42"))
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{gate.server_port}"
    settings = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "anna"}
    with project.server(*command, ready=f"http://127.0.0.1:{free_port}/health"):
        project.udc("prepare")
        refused = project.udc("train", MLFLOW_TRACKING_PASSWORD="wrong-guess", **settings)
        project.wait_for_senders()
        assert list((project.root / ".udc/tracking").glob("*-train-*/journal.jsonl"))  # pending
        done = project.udc("evaluate", MLFLOW_TRACKING_PASSWORD="open-sesame-42", **settings)
        assert "1 journal(s) of earlier stages are not delivered to MLflow" in done.stderr
        project.wait_for_senders()
        client = mlflow.MlflowClient(f"http://127.0.0.1:{free_port}")
        (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert run.info.status == "FINISHED"
        assert "test/mean_cost" in run.data.metrics
    gate.shutdown()
    printed = refused.stdout + refused.stderr + done.stdout + done.stderr
    stored = b"".join(path.read_bytes() for folder in (project.root / ".udc", store) for path in folder.rglob("*")
                    if path.is_file())  # fmt: skip
    for secret in ("open-sesame-42", "wrong-guess"):
        assert secret not in printed
        assert secret.encode() not in stored


def _gate(port, user, password):
    """A handler that lets requests with this user and password through to the server on ``port``."""
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Gate(BaseHTTPRequestHandler):
        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != expected:
                self.send_error(401)
                return
            headers = {**self.headers, "Host": f"127.0.0.1:{port}"}
            if headers.pop("Transfer-Encoding", None):  # requests sends an empty file as a body without chunks
                self.rfile.readline()
                self.rfile.readline()
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            contents = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(contents)))
            self.end_headers()
            self.wfile.write(contents)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

        def log_message(self, *_):
            pass

    return Gate


def test_stages_by_udc_with_a_failed_and_a_repeated_evaluation(by_hand):
    project = by_hand
    project.has_senders = True
    project.run("udc", "prepare")
    project.udc("train")
    config = project.root / "model/config.json"
    contents = config.read_text()
    config.write_text("{")
    failed = project.udc("evaluate", check=False)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    config.write_text(contents)
    project.udc("evaluate")
    runs = project.runs()
    complete = [run for run in runs if run.info.status == "FINISHED" and "test/mean_cost" in run.data.metrics]
    assert len(complete) == 1
    assert all(run.info.status in ("FINISHED", "FAILED") for run in runs)
    before = {run.info.run_id: _content(run) for run in runs}
    project.run("udc", "evaluate")
    again = {run.info.run_id: run for run in project.runs()}
    (new,) = set(again) - set(before)
    assert again[new].data.tags["mlflow.udc.trained_by"] in before
    assert {key: _content(again[key]) for key in before} == before  # no run changes after its end
