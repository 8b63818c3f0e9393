"""Measures the time that logging takes: a training run with a reachable MLflow server, an unreachable one, and none.

    python benchmarks/tracking.py --epochs 60

The three variants run in turn, each as a process of the stage on digits. Reported are the time of the process, the
time of the training loop from its first step to the end of its last epoch, and the share of the loop spent in logging.
"no logging" replaces the run by a mock object.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import yaml

from udc_model.tracking.journal import wait_for_senders

ROOT = Path(__file__).resolve().parents[1]
TIMED = """
import sys, time
from contextlib import contextmanager
from unittest.mock import MagicMock
from udc_model.stages import train
if sys.argv.pop() == "no logging":
    train.stage_run = contextmanager(lambda *arguments: iter([MagicMock()]))
def timed(function, seconds):
    def call(*arguments):
        started = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - started)
        return result
    return call
loops, logs = [], []
train.run_loop, train._log_epoch = timed(train.run_loop, loops), timed(train._log_epoch, logs)
train.main()
print(sum(loops), sum(logs))
"""
VARIANTS = ("reachable", "unreachable", "no logging")


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start an MLflow server on loopback; returns its process and address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--backend-store-uri",
               f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "stored")]  # fmt: skip
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    for _ in range(600):
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return process, f"http://127.0.0.1:{port}"
        time.sleep(0.2)  # between two polls
    raise SystemExit("the MLflow server does not start")


def main() -> None:
    """Measure; print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["train"]["epochs"] = options.epochs
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        (folder / ".dvc").mkdir()
        (folder / "data/raw").mkdir(parents=True)
        env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        for stage in ("prepare", "resolve"):
            subprocess.run([sys.executable, "-m", f"udc_model.stages.{stage}"], cwd=folder, env=env, check=True)
        server, address = start_server(folder)
        processes: dict[str, list[float]] = {name: [] for name in VARIANTS}
        training: dict[str, list[float]] = {name: [] for name in VARIANTS}
        shares: dict[str, list[float]] = {name: [] for name in VARIANTS}
        try:
            for _ in range(options.rounds):
                for name in VARIANTS:
                    uri = "http://127.0.0.1:9" if name == "unreachable" else address
                    started = time.perf_counter()
                    done = subprocess.run([sys.executable, "-c", TIMED, name], cwd=folder, check=True, text=True,
                                          env=env | {"MLFLOW_TRACKING_URI": uri}, stdout=subprocess.PIPE,
                                          stderr=subprocess.DEVNULL)  # fmt: skip
                    processes[name].append(time.perf_counter() - started)
                    wait_for_senders(folder, timeout=300)  # they would slow down the next process
                    in_loop, in_logging = map(float, done.stdout.split())
                    training[name].append(in_loop)
                    shares[name].append(in_logging / in_loop)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    for title, measured in (("training loop", training), ("process", processes)):
        for name, taken in measured.items():
            ratios = [seconds / base for seconds, base in zip(taken, measured["reachable"], strict=True)]
            sys.stdout.write(f"{title:15}{name:18}{statistics.median(taken):8.2f} s, ratio to a reachable server "
                             f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})\n")  # fmt: skip
    for name, share in shares.items():
        sys.stdout.write(f"logging        {name:18}{statistics.median(share):8.3%} of the training loop\n")


if __name__ == "__main__":
    main()
