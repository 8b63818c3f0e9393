"""A real MLflow server that is killed, unreachable, or answers errors while a stage logs: everything is stored once.

``UDC_OUTAGE_TRIALS=20`` tests twenty seeds; the default is one.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow
import pytest

from udc_model.tracking.journal import pending_journals, wait_for_senders

pytestmark = pytest.mark.slow

EPOCHS, KEYS = 24, 3
TRIALS = int(os.environ.get("UDC_OUTAGE_TRIALS", "1"))

WRITER = f"""
import logging, sys
from pathlib import Path
from udc_model.tracking.run import stage_run
logging.basicConfig(level=logging.WARNING)
big = Path("big")
big.mkdir()
(big / "weights.bin").write_bytes(bytes(range(256)) * 4096)
with stage_run("train", {{"kind": "trial"}}) as run:
    run.log_params({{"a": {{str(i): i for i in range(150)}}}})
    for epoch in range({EPOCHS}):
        run.log_metrics({{f"epoch/m{{k}}": epoch + k / 10 for k in range({KEYS})}}, step=epoch)
        print(epoch, flush=True)
        sys.stdin.readline()
    run.log_folder(big, "model")
    run.log_text("last", "notes/last.txt")
    run.log_classifier(big, Path("package"), ["mlflow"])
"""


class Server:
    """An MLflow server on loopback that can be killed and restarted on the same port and store."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri, self.process = folder, f"http://127.0.0.1:{self.port}", None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1",
                   "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}",
                   "--artifacts-destination", str(self.folder / "stored")]  # fmt: skip
        # in its own session, to kill its workers with it
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=True)  # fmt: skip

    def wait(self):
        deadline = time.monotonic() + 180
        while True:
            assert time.monotonic() < deadline, "the server does not start"
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.2)  # between two polls

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.kill()
    wait_for_senders(tmp_path)
    mlflow.set_tracking_uri(None)


def environment(server):
    return os.environ | {"MLFLOW_TRACKING_URI": server.uri, "DVC_ROOT": str(server.folder), "PYTHONPATH": "",
                         "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip


def start_writer(server):
    package = server.folder / "package"
    package.mkdir(exist_ok=True)
    (package / "code.py").write_text("x = 1\n")
    return subprocess.Popen([sys.executable, "-c", WRITER], cwd=server.folder, env=environment(server), text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def step(writer):
    """Let the writer continue after one epoch, which it has logged."""
    assert writer.stdout.readline()
    writer.stdin.write("\n")
    writer.stdin.flush()


def sync(server):
    """Run `udc sync`, which must succeed; returns its output."""
    done = subprocess.run([sys.executable, "-m", "udc_model.cli", "sync"], cwd=server.folder, env=environment(server),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_everything_arrived_once(server):
    assert not pending_journals(server.folder)
    client = mlflow.MlflowClient(server.uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    check_run(client, run)
    return run


def check_run(client, run):
    """A run has all that `WRITER` has logged, once."""
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {f"a.{i}": str(i) for i in range(150)}
    for k in range(KEYS):
        points = [(m.step, m.value) for m in client.get_metric_history(run_id, f"epoch/m{k}")]
        assert sorted(points) == [(epoch, epoch + k / 10) for epoch in range(EPOCHS)]
    fetched = Path(mlflow.artifacts.download_artifacts(run_id=run_id, tracking_uri=client.tracking_uri))
    assert (fetched / "model" / "weights.bin").read_bytes() == bytes(range(256)) * 4096
    assert (fetched / "notes" / "last.txt").read_text() == "last"
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert [(str(model.status), model.source_run_id) for model in models] == [("READY", run_id)]
    assert [output.model_id for output in run.outputs.model_outputs] == [models[0].model_id]
    files = {a.path for a in client.list_logged_model_artifacts(models[0].model_id)}
    assert {"MLmodel", "requirements.txt", "code", "data"} <= files


@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_server_is_killed_and_restarted_at_random_moments(server, seed):
    rng = random.Random(seed)
    kills = sorted(rng.sample(range(EPOCHS), rng.choice([1, 2])))
    server.start()
    server.wait()
    writer = start_writer(server)
    for epoch in range(EPOCHS):
        step(writer)
        if epoch in kills:
            threading.Event().wait(rng.uniform(0, 0.3))  # a random moment in the sender's work
            server.kill()
            server.start()
            if rng.random() < 0.5:
                server.wait()
    if rng.random() < 0.5:  # while artifacts are delivered
        threading.Event().wait(rng.uniform(0, 1.0))
        server.kill()
        server.start()
    _, stderr = writer.communicate()
    assert writer.returncode == 0, stderr
    server.wait()
    sync(server)
    check_everything_arrived_once(server)


def test_a_server_answers_500_and_then_is_unreachable_until_sync(server):
    stub = HTTPServer(("127.0.0.1", server.port), _Broken)
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    writer = start_writer(server)
    for _ in range(EPOCHS):
        step(writer)
    _, stderr = writer.communicate()
    assert writer.returncode == 0, stderr  # the stage does not fail
    assert wait_for_senders(server.folder)
    stub.shutdown()
    stub.server_close()
    (folder,) = pending_journals(server.folder)
    assert "cannot be used" in (folder / "sender.log").read_text()
    done = subprocess.run([sys.executable, "-m", "udc_model.cli", "sync"], cwd=server.folder, env=environment(server),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert "cannot be used" in done.stderr
    next_command = subprocess.run([sys.executable, "-m", "udc_model.cli", "summary"], cwd=server.folder,
                                  env=environment(server), capture_output=True, text=True)  # fmt: skip
    assert "1 journal(s) of earlier stages are not delivered to MLflow" in next_command.stderr
    server.start()
    server.wait()
    assert "1 journal(s) delivered" in sync(server)
    check_everything_arrived_once(server)


class _Broken(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(500)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_):
        pass
