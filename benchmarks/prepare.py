"""Measures speed and memory of the stage prepare against a Pillow loop or another revision of this project.

    python benchmarks/prepare.py --images 20000 --size 200 --image-size 64
    python benchmarks/prepare.py --images 5000 --rounds 20 --against HEAD~3
    python benchmarks/prepare.py --images 10000 100000 --size 48 --image-size 32 --rounds 1    # memory

Writes random JPEG files to a temporary folder and measures both programs alternately, by wall time and by CPU time, of
which the second is hardly disturbed by other programs. With several numbers of images, each is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

PILLOW_LOOP = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
size = int(sys.argv[2])
out = open(sys.argv[3], "wb")
for path in sorted(Path(sys.argv[1]).rglob("*.jpg")):
    with Image.open(path) as image:
        out.write(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)).tobytes())
"""


def make_images(root: Path, n: int, size: int, start: int = 0, classes: int = 4) -> None:
    """Write smooth random JPEG files of size x size pixels, numbered from ``start`` to n - 1, to folders of classes."""
    rng = np.random.default_rng(start)
    for i in range(start, n):
        folder = root / f"class{i % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.jpg", quality=90)


@dataclass(frozen=True)
class Measurement:
    """Wall time and CPU time in seconds, and peak of the processes' total resident memory in MB."""

    seconds: float
    cpu_seconds: float
    memory: float


def measure(command: list[str], cwd: Path, source: Path) -> Measurement:
    """Run a command with the package in the folder ``source``."""
    peak = 0
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stderr=subprocess.DEVNULL, env={"PYTHONPATH": str(source)})
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        parent = psutil.Process(process.pid)
        while not done.wait(0.02):
            total = 0
            try:
                for member in (parent, *parent.children(recursive=True)):
                    total += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    seconds, after = time.perf_counter() - started, os.times()
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{command} failed with status {status}")
    cpu_seconds = after.children_user - before.children_user + after.children_system - before.children_system
    return Measurement(seconds, cpu_seconds, peak / 2**20)


@contextmanager
def revision_source(revision: str) -> Iterator[Path]:
    """Check a revision out to a temporary folder; yields the folder of its package."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "revision"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", folder, revision], cwd=ROOT, check=True)
        try:
            yield folder / "src"
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=ROOT, check=True)


def compare(n: int, options: argparse.Namespace, source_of_revision: Path | None) -> list[str]:
    """Measure prepare and its counterpart alternately on n images; returns the lines of the result."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_images(root / "images", n, options.size)
        params = {
            "data": {"source": "folder", "path": "images", "image_size": options.image_size, "resize": "squash"},
        }
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        stage = [sys.executable, "-m", "udc_model.stages.prepare"]
        if source_of_revision is None:
            other, command = (
                "Pillow loop",
                [sys.executable, "-c", PILLOW_LOOP, "images", str(options.image_size), "out"],
            )
        else:
            other, command = options.against, stage
        results: dict[str, list[Measurement]] = {other: [], "prepare": []}
        for _ in range(options.rounds):
            results[other].append(measure(command, root, source_of_revision or ROOT / "src"))
            results["prepare"].append(measure(stage, root, ROOT / "src"))
    lines = [f"{n:,} JPEG files of {options.size} px to {options.image_size} px, {options.rounds} round(s)"]
    for name, rounds in results.items():
        speed = sorted(n / each.seconds for each in rounds)
        cpu = statistics.median(each.cpu_seconds for each in rounds)
        lines.append(f"{name:<12} {statistics.median(speed):8,.0f} images/s ({speed[0]:,.0f} to {speed[-1]:,.0f}), "
                     f"{cpu:,.1f} CPU s, peak {max(each.memory for each in rounds):,.0f} MB")  # fmt: skip
    for title, attribute in (("wall time", "seconds"), ("CPU time", "cpu_seconds")):
        ratios = sorted(getattr(b, attribute) / getattr(a, attribute)
                        for a, b in zip(results[other], results["prepare"], strict=True))  # fmt: skip
        lines.append(
            f"{title} of prepare / {other}: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )
    return lines


def main() -> None:
    """Run the comparisons and print a table for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000])
    parser.add_argument("--size", type=int, default=200, help="side of the images in the files, pixels")
    parser.add_argument("--image-size", type=int, default=64, help="side of the prepared images, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", metavar="REVISION", help="a revision of this project instead of the Pillow loop")
    options = parser.parse_args()
    for n in options.images:
        if options.against is None:
            lines = compare(n, options, None)
        else:
            with revision_source(options.against) as source:
                lines = compare(n, options, source)
        sys.stdout.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main()
