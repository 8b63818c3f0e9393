"""Requests a second and latency of `udc serve`, of `mlflow models serve` and of LitServe, on loopback.

    python benchmarks/serving.py [--preset resnet-mini] [--side 32] [--clients 1 8 32 128] [--seconds 10]
    python benchmarks/serving.py --odd 10000          odd requests: statuses, and memory before and after

Each client sends the next request when it has the answer to the last one; all send one image as base64 text in the form
`dataframe_records`, which all servers take. The model has random weights. Clients share the processor with the server.
LitServe is left out if it is not installed.
Rows are appended to benchmarks/serving.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image
from results_table import ResultsTable

import udc_model
from udc_model.config import override_params
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import POLICY_FILE, Policy
from udc_model.files import Workspace
from udc_model.inference import serving
from udc_model.models import build_model
from udc_model.tracking.model import save_model

COLUMNS = ("server", "preset", "side", "clients", "requests_per_second", "p50_ms", "p95_ms", "p99_ms", "statuses")
CLASSES = [str(k) for k in range(10)]
JSON = {"Content-Type": "application/json"}


def make_model(folder: Path, preset: str, side: int) -> None:
    """A model folder with its policy, and the same as an MLflow model."""
    from mlflow.models import Model

    workspace = Workspace(folder)
    workspace.model.mkdir()
    workspace.evaluation.mkdir()
    build_model(override_params([f"model.preset={preset}"]).model, CLASSES, 0).save_pretrained(workspace.model)
    Preprocessing(side).save(workspace.model)
    policy = Policy(CLASSES, (1 - np.eye(len(CLASSES))).tolist(), precision="bf16")
    for path in (workspace.evaluation, folder):
        (path / POLICY_FILE).write_text(policy.to_json())
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "model").symlink_to(workspace.model)
    (bundle / POLICY_FILE).write_text(policy.to_json())
    save_model(folder / "mlflow", Model(), bundle, Path(udc_model.__file__).parent, [], serving.__name__)


@contextlib.contextmanager
def running(command: list[str], address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers at ``address``."""
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        asyncio.run(_wait_for(address, process))
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


async def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    async with aiohttp.ClientSession() as session:
        while process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(address) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
    sys.exit("the server has ended")


async def load(address: str, body: bytes, clients: int, seconds: float) -> tuple[list[float], Counter[int]]:
    """Latencies, and the number of answers by status, of clients that send one request after the other."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    end = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while (start := time.perf_counter()) < end:
            async with session.post(address, data=body, headers=JSON) as answer:
                await answer.read()
                statuses[answer.status] += 1
            latencies.append(time.perf_counter() - start)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return latencies, statuses


def request_body(side: int) -> bytes:
    """One image as base64 text."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if side < 100 else "JPEG")
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(file.getvalue()).decode()}]}).encode()


def free_port() -> int:
    """A port that is free at this moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def measure(folder: Path, options: argparse.Namespace, table: ResultsTable) -> None:
    """Rows of all servers for each number of clients."""
    body = request_body(options.side)
    peers = ["litserve"] if importlib.util.find_spec("litserve") else []
    for server in ("udc serve", "mlflow models serve", *peers):
        port = free_port()
        root = f"http://127.0.0.1:{port}"
        with running(command_of(server, folder, port), f"{root}/health"):
            for clients in options.clients:
                asyncio.run(load(f"{root}/invocations", body, clients, 1))
                latencies, statuses = asyncio.run(load(f"{root}/invocations", body, clients, options.seconds))
                p50, p95, p99 = (1000 * float(value) for value in np.percentile(latencies, (50, 95, 99)))
                rate = len(latencies) / options.seconds
                counts = " ".join(f"{status}:{count}" for status, count in sorted(statuses.items()))
                table.append(server, options.preset, options.side, clients, rate, p50, p95, p99, counts)
                print(f"{server}, {clients} clients: {rate:.0f} requests/s, p50 {p50:.1f}, p95 {p95:.1f}, p99 "  # noqa: T201
                      f"{p99:.1f} ms, {counts}")  # fmt: skip


def command_of(server: str, folder: Path, port: int) -> list[str]:
    """How a server is started."""
    if server == "udc serve":
        return ["udc", "serve", "--root", str(folder), "--port", str(port)]
    if server == "litserve":
        return [sys.executable, str(Path(__file__).with_name("litserve_server.py")), str(folder), str(port)]
    return ["mlflow", "models", "serve", "--env-manager", "local", "-m", str(folder / "mlflow"), "-p", str(port)]


async def odd(address: str, count: int, clients: int = 16) -> Counter[int]:
    """Statuses of requests that are damaged in all kinds of ways."""
    statuses: Counter[int] = Counter()
    rng = random.Random(0)
    good = request_body(32)

    def request() -> tuple[bytes, dict[str, str]]:
        kind = rng.randrange(8)
        if kind == 0:
            return rng.randbytes(rng.randrange(5000)), {"Content-Type": "image/png"}
        if kind == 1:
            return rng.randbytes(rng.randrange(5000)), JSON
        if kind == 2:
            return b"[" * rng.randrange(200_000), JSON
        if kind == 3:
            damaged = bytearray(good)
            for _ in range(rng.randrange(1, 20)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            return bytes(damaged), JSON
        if kind == 4:
            value = rng.choice([None, 7, "", [], {}, [[1, 2], [3]], [[0.5]], [[[[1]]]], "x" * 10_000, [[300]], True])
            return json.dumps({rng.choice(["image", "images", "inputs", "instances"]): value}).encode(), JSON
        if kind == 5:
            boundary = rng.choice(["b", ""])
            text = f"--b\r\nContent-Disposition: form-data; name=a; filename=f\r\n\r\n{rng.random()}\r\n--b--\r\n"
            return text.encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        if kind == 6:
            return json.dumps({"inputs": [[[1, 2, 3]] * 9] * rng.randrange(1000)}).encode(), JSON
        return good[: rng.randrange(len(good))], {"Content-Type": rng.choice(["text/plain", "", "application/json"])}

    async def client(session: aiohttp.ClientSession, requests: int) -> None:
        for _ in range(requests):
            data, headers = request()
            async with session.post(address, data=data, headers=headers) as answer:
                text = await answer.text()
                assert "Traceback" not in text
                statuses[answer.status] += 1

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, count // clients) for _ in range(clients)))
    return statuses


def measure_odd(folder: Path, count: int) -> None:
    """Print the statuses of odd requests, and the server's memory after a tenth of them and after all."""
    port = free_port()
    root = f"http://127.0.0.1:{port}"
    with running(command_of("udc serve", folder, port), f"{root}/health") as process:
        first = asyncio.run(odd(f"{root}/predict", count // 10))
        before = _memory(process.pid)
        statuses = first + asyncio.run(odd(f"{root}/predict", count - count // 10))
        print(f"{sum(statuses.values()):,} odd requests: {dict(sorted(statuses.items()))}; memory "  # noqa: T201
              f"{before:.0f} MiB after a tenth, {_memory(process.pid):.0f} MiB after all")  # fmt: skip
        assert not any(status >= 500 and status != 503 for status in statuses)


def _memory(pid: int) -> float:
    """Resident MiB of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    own = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    return own + sum(_memory(int(child)) for child in children)


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="resnet-mini")
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--odd", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make_model(Path(scratch), options.preset, options.side)
        if options.odd:
            measure_odd(Path(scratch), options.odd)
        else:
            measure(Path(scratch), options, ResultsTable(options.output, COLUMNS))


if __name__ == "__main__":
    main()
