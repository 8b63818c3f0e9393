"""What recording costs: a training with MLflow's server at hand, away for the whole run, and with nothing recorded.

    python benchmarks/tracking.py --epochs 60

Whole processes of the stage on digits, in turn, and within them the training itself, from its first step to the end of
its last epoch, with the share of it that the training waits for what it logs. "nothing recorded" has a run that takes
everything and keeps nothing.
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

ROOT = Path(__file__).resolve().parents[1]
TIMED = """
import sys, time
from contextlib import contextmanager
from unittest.mock import MagicMock
from udc_model.stages import train
if sys.argv.pop() == "nothing recorded":
    train.stage_run = contextmanager(lambda *arguments: iter([MagicMock()]))
def timed(function, told):
    def call(*arguments):
        started = time.perf_counter()
        result = function(*arguments)
        told.append(time.perf_counter() - started)
        return result
    return call
loops, logs = [], []
train.run_loop, train._log_epoch = timed(train.run_loop, loops), timed(train._log_epoch, logs)
train.main()
print(sum(loops), sum(logs))
"""
WAYS = ("server at hand", "server away", "nothing recorded")


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """An MLflow server on loopback that answers, and its address."""
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
    raise SystemExit("the MLflow server does not come up")


def main() -> None:
    """Measure and print medians and ratios."""
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
        subprocess.run([sys.executable, "-m", "udc_model.stages.prepare"], cwd=folder, env=env, check=True)
        server, address = start_server(folder)
        whole: dict[str, list[float]] = {name: [] for name in WAYS}
        training: dict[str, list[float]] = {name: [] for name in WAYS}
        shares: dict[str, list[float]] = {name: [] for name in WAYS}
        try:
            for _ in range(options.rounds):
                for name in WAYS:
                    uri = "http://127.0.0.1:9" if name == "server away" else address
                    started = time.perf_counter()
                    done = subprocess.run([sys.executable, "-c", TIMED, name], cwd=folder, check=True, text=True,
                                          env=env | {"MLFLOW_TRACKING_URI": uri}, stdout=subprocess.PIPE,
                                          stderr=subprocess.DEVNULL)  # fmt: skip
                    whole[name].append(time.perf_counter() - started)
                    seconds, logging = map(float, done.stdout.split())
                    training[name].append(seconds)
                    shares[name].append(logging / seconds)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    for title, measured in (("training", training), ("whole process", whole)):
        for name, taken in measured.items():
            ratios = [own / other for own, other in zip(taken, measured["server at hand"], strict=True)]
            sys.stdout.write(f"{title:15}{name:18}{statistics.median(taken):8.2f} s, over that with the server at hand "
                             f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})\n")  # fmt: skip
    for name, share in shares.items():
        sys.stdout.write(f"waits for logs {name:18}{statistics.median(share):8.3%} of the training\n")


if __name__ == "__main__":
    main()
