"""Runs all stages on a million images, with kills, and measures the memory that is their own.

    python benchmarks/million.py --images 1000000          # 20 GB of disk; hours on two cores

Writes random JPEG files of 64 px to a temporary folder, which is deleted afterwards. ``prepare`` is killed with SIGKILL
three times at random moments and ``udc score`` twice; both results are compared, byte by byte, with those of commands
that were not disturbed. Own memory is what the system cannot drop: without mapped files, shared memory counted once.
Decoding alone is a loop over a part of the images in as many processes as prepare has, which does nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import yaml
from prepare import ROOT, make_images
from results_table import ResultsTable
from scale import NETWORK, SIDE

COLUMNS = ("images", "cores", "stage", "seconds", "CPU seconds", "peak MB of own memory", "kills", "same bytes")
STAGE = [sys.executable, "-m"]
SCORE = [*STAGE, "udc_model.cli", "score", "images", "--out"]
DECODE = """
import sys
from PIL import Image
for line in sys.stdin:
    with Image.open(line.rstrip()) as image:
        image.convert("RGB").tobytes()
"""
DECODED = 100_000  # images at most that the loop decodes; the time is extrapolated


def own_memory(processes: list[psutil.Process]) -> int:
    """Bytes of processes without mapped files; memory that they share is counted once."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) * 1024
    return total


class Watched:
    """A command in a folder, and the peak of the own memory of its processes."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self.started, before = time.perf_counter(), os.times()
        self._cpu_before = before.children_user + before.children_system
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path[1:]])}
        self.process = subprocess.Popen(command, cwd=cwd, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
        self.peak, self._is_done = 0, threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        parent = psutil.Process(self.process.pid)
        while not self._is_done.wait(0.5):
            try:
                members = [parent, *parent.children(recursive=True)]
            except psutil.Error:
                continue
            self.peak = max(self.peak, own_memory(members))

    def wait(self, kill_after: float | None = None) -> bool:
        """Wait for the end, or kill all processes after so many seconds; returns whether the command ended itself."""
        try:
            self.process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._is_done.set()
        self._watcher.join()
        self.seconds, after = time.perf_counter() - self.started, os.times()
        self.cpu_seconds = after.children_user + after.children_system - self._cpu_before
        if self.process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"{self.process.args} ended with status {self.process.returncode}")
        return self.process.returncode == 0


def digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files below a folder, except who is writing it."""
    total = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and ".udc" not in each.parts):
        total.update(f"{path.relative_to(folder)}\0".encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


class Benchmark:
    """The images, the projects and the table of results."""

    def __init__(self, root: Path, n: int, table: ResultsTable) -> None:
        self.root, self.n, self.table, self.cores = root, n, table, len(os.sched_getaffinity(0))
        self.random = random.Random(0)

    def make_images(self) -> None:
        """Write the files with one process on each core."""
        bounds = [self.n * part // (8 * self.cores) for part in range(8 * self.cores + 1)]
        with ProcessPoolExecutor(self.cores) as pool:
            jobs = [
                pool.submit(make_images, self.root / "images", last, SIDE, first, 10)
                for first, last in pairwise(bounds)
            ]
            for job in jobs:
                job.result()

    def project(self, name: str) -> Path:
        """A folder with parameters and a link to the images."""
        folder = self.root / name
        folder.mkdir()
        (folder / "images").symlink_to(self.root / "images")
        splits = {"train": 0.3, "validation": 0.1, "calibration": 0.1, "test": 0.5}
        params = {
            "data": {"source": "folder", "path": "images", "image_size": SIDE, "packed": "shards", "splits": splits},
            "model": {"model_type": "resnet", "resnet": NETWORK},
            "train": {"epochs": 1, "batch_size": 256},
        }
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        return folder

    def run(self, stage: str, command: list[str], cwd: Path, kills: int = 0, seconds: float = 0.0) -> None:
        """Run a command, and kill it so often within the seconds that it takes; adds a row to the table."""
        peak = spent = cpu = 0.0
        times = sorted(self.random.uniform(0.1, 0.9) * seconds / max(1, kills) for _ in range(kills))
        for kill_after in [*times, None]:
            watched = Watched(command, cwd)
            is_done = watched.wait(kill_after)
            peak, spent, cpu = max(peak, watched.peak), spent + watched.seconds, cpu + watched.cpu_seconds
            if is_done:
                break
        self.add(stage, spent, cpu, peak / 2**20, kills)

    def add(self, stage: str, seconds: float, cpu: float, peak: float, kills: int = 0, same: str = "") -> None:
        """Add a row to the table and print it."""
        self.table.append(self.n, self.cores, stage, seconds, cpu, peak, kills, same)
        sys.stdout.write(f"{stage}: {seconds:.1f} s, {cpu:.1f} CPU s, peak {peak:,.0f} MB, {kills} kills {same}\n")
        sys.stdout.flush()

    def decode_alone(self) -> None:
        """Decode a part of the images in one process on each core, which does nothing else."""
        paths = [str(path) for path, _ in zip(self._paths(), range(min(self.n, DECODED)), strict=False)]
        started, before = time.perf_counter(), os.times()
        processes = [
            subprocess.Popen([sys.executable, "-c", DECODE], stdin=subprocess.PIPE, text=True, env=dict(os.environ))
            for _ in range(self.cores)
        ]
        for part, process in enumerate(processes):
            threading.Thread(target=process.communicate, args=("\n".join(paths[part :: self.cores]),)).start()
        for process in processes:
            process.wait()
        factor, after = self.n / len(paths), os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        self.add("decoding alone", factor * (time.perf_counter() - started), factor * cpu, 0.0)

    def _paths(self) -> Iterator[Path]:
        for folder in sorted((self.root / "images").iterdir()):
            yield from folder.iterdir()


@contextmanager
def folder_for(path: Path | None) -> Iterator[Path]:
    """A temporary folder, or below the path."""
    with tempfile.TemporaryDirectory(dir=path) as scratch:
        yield Path(scratch)


def main() -> None:
    """Run all stages; rows that were measured before stay in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    with folder_for(options.folder) as root:
        bench = Benchmark(root, options.images, ResultsTable(options.out, COLUMNS))
        bench.make_images()
        bench.decode_alone()
        first, second = bench.project("first"), bench.project("second")
        bench.run("prepare", [*STAGE, "udc_model.stages.prepare"], first)
        seconds = float(bench.table.rows[-1]["seconds"])
        for stage in ("resolve", "train", "evaluate"):
            bench.run(stage, [*STAGE, f"udc_model.stages.{stage}"], first)
        bench.run("score", [*SCORE, "scores"], first)
        score_seconds = float(bench.table.rows[-1]["seconds"])
        bench.run("score, killed", [*SCORE, "again"], first, 2, score_seconds)
        same = "yes" if digest(first / "scores") == digest(first / "again") else "NO"
        bench.add("score, compared", 0.0, 0.0, 0.0, 2, same)
        bench.run("prepare, killed", [*STAGE, "udc_model.stages.prepare"], second, 3, seconds)
        same = "yes" if digest(first / "data" / "prepared") == digest(second / "data" / "prepared") else "NO"
        bench.add("prepare, compared", 0.0, 0.0, 0.0, 3, same)


if __name__ == "__main__":
    main()
