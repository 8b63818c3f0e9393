"""Compares speed and memory of the stage prepare with a single-process Pillow loop over the same files.

    python benchmarks/prepare.py --images 20000 --size 200 --image-size 64

Writes random JPEG files to a temporary folder and measures both programs alternately.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
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


def make_images(root: Path, n: int, size: int) -> None:
    """Write n smooth random JPEG files of size x size pixels to four class folders."""
    rng = np.random.default_rng(0)
    for i in range(n):
        folder = root / f"class{i % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.jpg", quality=90)


def measure(command: list[str], cwd: Path) -> tuple[float, float]:
    """Run a command; return its wall time in seconds and the peak of its processes' total resident memory in MB."""
    peak = 0
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stderr=subprocess.DEVNULL, env={"PYTHONPATH": str(ROOT / "src")})
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
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{command} failed with status {status}")
    return seconds, peak / 2**20


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=200, help="side of the images in the files, pixels")
    parser.add_argument("--image-size", type=int, default=64, help="side of the prepared images, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_images(root / "images", options.images, options.size)
        params = {
            "data": {"source": "folder", "path": "images", "image_size": options.image_size, "resize": "squash"},
        }
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        loop = [sys.executable, "-c", PILLOW_LOOP, "images", str(options.image_size), "pillow.bin"]
        stage = [sys.executable, "-m", "udc_model.stages.prepare"]
        results: dict[str, list[tuple[float, float]]] = {"Pillow loop": [], "prepare": []}
        for _ in range(options.rounds):
            results["Pillow loop"].append(measure(loop, root))
            results["prepare"].append(measure(stage, root))
    lines = [f"{options.images:,} JPEG files of {options.size} px to {options.image_size} px, {options.rounds} rounds"]
    for name, rounds in results.items():
        speed = sorted(options.images / seconds for seconds, _ in rounds)
        lines.append(f"{name:<12} {statistics.median(speed):8,.0f} images/s ({speed[0]:,.0f} to {speed[-1]:,.0f}), "
                     f"peak {max(memory for _, memory in rounds):,.0f} MB")  # fmt: skip
    ratios = sorted(a[0] / b[0] for a, b in zip(results["Pillow loop"], results["prepare"], strict=True))
    lines.append(f"ratio        {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
