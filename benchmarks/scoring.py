"""Measures ``udc score``: kills, memory and the rate beside the bare network's.

    python benchmarks/scoring.py kills --images 20000 --kills 20
    python benchmarks/scoring.py memory --images 2000 20000
    python benchmarks/scoring.py rate --images 2000 --size 500 400 --model resnet50 --rounds 3

Writes random JPEG files and a model of random weights to a temporary folder. ``kills`` ends the command with SIGKILL at
random moments and compares the output, byte by byte, with that of a command that was not disturbed. ``memory`` compares
the peak of all its processes. ``rate`` runs in turn the command, and the network alone on images in memory, and
compares images per second (of the command without its start) and the CPU time of the processes (with their start).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "tiny": {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"},
    "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet50": {},
}
MAKE_MODEL = """
import json, sys
import numpy as np
from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.files import Workspace
from udc_model.models import build_model
workspace, classes = Workspace(), [f"c{k}" for k in range(4)]
workspace.model.mkdir()
workspace.evaluation.mkdir()
model = build_model(ModelParams(resnet=ResNetParams(**json.loads(sys.argv[1]))), classes, 0)
model.save_pretrained(workspace.model)
Preprocessing(int(sys.argv[2]), crop_pct=0.875).save(workspace.model)
policy = Policy(classes, (1 - np.eye(4)).tolist(), refer=0.5, precision="bf16")
(workspace.evaluation / "policy.json").write_text(policy.to_json())
"""
BARE_NETWORK = """
import sys, time
from pathlib import Path
import numpy as np
from udc_model.files import Workspace
from udc_model.inference.stored_model import open_stored
from udc_model.native.memory import keep_freed_memory
keep_freed_memory()
stored = open_stored(Workspace())
classifier, n, size = stored.load(), int(sys.argv[1]), stored.preprocessing.stored_size
images = np.random.default_rng(0).integers(0, 256, (64, size, size, stored.preprocessing.channels), dtype=np.uint8)
classifier.logits_of_stored(images)
started = time.perf_counter()
for start in range(0, n, 64):
    classifier.logits_of_stored(images[: min(64, n - start)])
print(n / (time.perf_counter() - started))
"""


def make_images(folder: Path, first: int, last: int, size: tuple[int, int]) -> None:
    """Write smooth random JPEG files of this width and height, with the numbers from ``first`` to ``last`` - 1."""
    rng = np.random.default_rng(first)
    for k in range(first, last):
        path = folder / f"{k // 1000:03d}" / f"{k:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


class Command:
    """``udc score`` in a folder, and the peak of the memory of its processes if it is watched."""

    def __init__(self, root: Path, images: str, out: str, *, is_watched: bool = False) -> None:
        command = [sys.executable, "-m", "udc_model.cli", "score", images, "--out", out]
        env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True)
        self.peaks: dict[int, int] = {}  # most bytes of each process, without what it shares with others
        self._is_done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        if is_watched:
            self._watcher.start()

    def _watch(self) -> None:
        parent = psutil.Process(self.process.pid)
        while not self._is_done.wait(0.25):
            try:
                for member in (parent, *parent.children(recursive=True)):
                    used = member.memory_full_info().uss
                    self.peaks[member.pid] = max(used, self.peaks.get(member.pid, 0))
            except psutil.Error:
                continue

    def wait(self) -> str:
        """Wait until the command ends; returns its last line."""
        output, _ = self.process.communicate()
        self._is_done.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        if self.process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"udc score ended with status {self.process.returncode}")
        return output.strip()

    @property
    def peak(self) -> float:
        """Sum of the peaks of all processes, MB."""
        return sum(self.peaks.values()) / 2**20


def contents(folder: Path) -> dict[str, bytes]:
    """The files of an output."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def kills(root: Path, options: argparse.Namespace) -> None:
    """Kill the command at random moments, and compare the output.

    The command runs in a forked process that has PyTorch already, so that the kills hit its work rather than its start.
    """
    (n,) = options.images
    make_images(root / "images", 0, n, options.size)
    started = time.perf_counter()
    status = os.waitpid(forked(root, "undisturbed"), 0)[1]
    seconds = time.perf_counter() - started
    report(f"undisturbed: status {status}, {seconds:.1f} s")
    moments = random.Random(0)
    for k in range(options.kills):
        pid = forked(root, "killed")
        moment = moments.uniform(0, seconds / 5)
        time.sleep(moment)  # the event that is studied, not a synchronisation
        os.kill(pid, signal.SIGKILL)
        was_complete = os.waitpid(pid, 0)[1] == 0
        n_parts = len(list((root / "killed").glob("part-*.parquet")))
        report(f"kill {k + 1} after {moment:.1f} s: {n_parts} parts" + (", was complete" if was_complete else ""))
    report(f"after the kills: {Command(root, 'images', 'killed').wait()}")
    before, after = contents(root / "undisturbed"), contents(root / "killed")
    report(f"{len(before)} files of {sum(map(len, before.values())):,} bytes: "
           + ("every file has the same bytes" if before == after else "THE OUTPUTS DIFFER"))  # fmt: skip
    report(f"processes that remain: {sum(map(_is_of, psutil.process_iter(['cwd'])))}")


def forked(root: Path, out: str) -> int:
    """Start ``udc score`` in a process that shares the imported libraries; returns its id."""
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401

    from udc_model.cli import main as udc

    if pid := os.fork():
        return pid
    os.chdir(root)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(udc(["score", "images", "--out", out]))


def _is_of(process: psutil.Process) -> bool:
    return str(process.info["cwd"]).startswith(str(Path(tempfile.gettempdir()) / "udc-scoring"))


def memory(root: Path, options: argparse.Namespace) -> None:
    """Compare the peaks of the memory at several numbers of images."""
    for n in options.images:
        make_images(root / f"images{n}", 0, n, options.size)
        command = Command(root, f"images{n}", f"out{n}", is_watched=True)
        line = command.wait()
        report(f"{line}: peak {command.peak:,.0f} MB, of which the largest process "
               f"{max(command.peaks.values()) / 2**20:,.0f} MB")  # fmt: skip


def rate(root: Path, options: argparse.Namespace) -> None:
    """Compare the rates of the command and of the network alone."""
    (n,) = options.images
    make_images(root / "images", 0, n, options.size)
    ratios, cpu_ratios = [], []
    for k in range(options.rounds):
        used = [cpu_seconds()]
        bare = subprocess.run([sys.executable, "-c", BARE_NETWORK, str(n)], cwd=root, check=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, stdout=subprocess.PIPE)  # fmt: skip
        used.append(cpu_seconds())
        line = Command(root, "images", f"out{k}").wait()
        used.append(cpu_seconds())
        scored = float(line.rpartition(", ")[2].split()[0].replace(",", ""))
        ratios.append(scored / float(bare.stdout))
        of_bare, of_score = used[1] - used[0], used[2] - used[1]
        cpu_ratios.append(of_bare / of_score)
        report(f"bare network {float(bare.stdout):.1f} images/s, {of_bare:.1f} CPU s; udc score {scored:.1f} images/s, "
               f"{of_score:.1f} CPU s")  # fmt: skip
    for title, values in (("rate", ratios), ("CPU time, inverse", cpu_ratios)):
        report(f"{title}: ratio {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")


def cpu_seconds() -> float:
    """CPU time of the processes that have ended, with their own."""
    times = os.times()
    return times.children_user + times.children_system


def report(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure, in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "memory", "rate"))
    parser.add_argument("--images", type=int, nargs="+", default=None)
    parser.add_argument("--size", type=int, nargs=2, default=None, help="width and height of the files, pixels")
    parser.add_argument("--model", choices=MODELS, default=None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    is_rate = options.what == "rate"
    options.images = options.images or {"kills": [20_000], "memory": [2000, 20_000], "rate": [2000]}[options.what]
    options.size = tuple(options.size or ((500, 400) if is_rate else (16, 16)))
    model = options.model or ("resnet50" if is_rate else "tiny")
    with tempfile.TemporaryDirectory(prefix="udc-scoring") as scratch:
        root = Path(scratch)
        size = "8" if model == "tiny" else "224"
        subprocess.run([sys.executable, "-c", MAKE_MODEL, json.dumps(MODELS[model]), size], cwd=root, check=True,
                       env=os.environ | {"PYTHONPATH": str(ROOT / "src")})  # fmt: skip
        {"kills": kills, "memory": memory, "rate": rate}[options.what](root, options)


if __name__ == "__main__":
    main()
