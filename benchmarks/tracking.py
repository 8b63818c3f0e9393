"""What recording costs: a training with MLflow's server at hand, away for the whole run, and with nothing recorded.

    python benchmarks/tracking.py --epochs 150

Whole processes of the stage on digits, in turn. "nothing recorded" has a run that takes everything and keeps nothing.
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
NOTHING = """
import sys
from contextlib import contextmanager
from unittest.mock import MagicMock
from udc_model.stages import train
train.stage_run = contextmanager(lambda *arguments: iter([MagicMock()]))
train.main()
"""


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
    parser.add_argument("--epochs", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["train"]["epochs"] = options.epochs
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        (folder / ".dvc").mkdir()
        (folder / "data/raw").mkdir(parents=True)
        env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        udc = [sys.executable, "-m", "udc_model.stages.train"]
        subprocess.run([sys.executable, "-m", "udc_model.stages.prepare"], cwd=folder, env=env, check=True)
        server, address = start_server(folder)
        try:
            ways = {
                "nothing recorded": ([sys.executable, "-c", NOTHING], {}),
                "server at hand": (udc, {"MLFLOW_TRACKING_URI": address}),
                "server away": (udc, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}),
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, (command, settings) in ways.items():
                    started = time.perf_counter()
                    subprocess.run(command, cwd=folder, env=env | settings, check=True, stderr=subprocess.DEVNULL)
                    seconds[name].append(time.perf_counter() - started)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    for name, taken in seconds.items():
        ratios = [own / other for own, other in zip(taken, seconds["server at hand"], strict=True)]
        sys.stdout.write(f"{name:20}{statistics.median(taken):8.2f} s, over that with the server at hand "
                         f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})\n")  # fmt: skip


if __name__ == "__main__":
    main()
