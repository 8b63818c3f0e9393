"""Measures the stage prepare with data.packed: shards: time beside decoding alone, memory, kills, growth by 1 %.

    python benchmarks/shards.py --images 10000 100000

Writes random JPEG files of 64 px to a temporary folder, which is deleted afterwards. Decoding alone is Pillow in as
many processes as the stage has. The stage is killed at random moments and started again; the result is compared with
that of an undisturbed one. Then 1 % of files are added: which files are opened is seen by an audit hook in all
processes, and each opening counts as a reading of the complete file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from prepare import ROOT, Measurement, make_images, measure
from results_table import ResultsTable

COLUMNS = ("images", "measure", "value")
SIDE = 64  # pixels

DECODING = """
import multiprocessing, os
from pathlib import Path
from PIL import Image
def decode(path):
    with Image.open(path) as image:
        return image.convert("RGB").size
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for _ in pool.imap(decode, sorted(map(str, Path("images").rglob("*.jpg"))), 64):
            pass
"""
HOOK = """
import os, sys
log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND)
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".jpg"):
        os.write(log, (str(arguments[0]) + "\\n").encode())
sys.addaudithook(hook)
"""
STAGE = [sys.executable, "-m", "udc_model.stages.prepare"]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def prepared(root: Path, packed: str) -> Measurement:
    """Run the stage once."""
    params = {"data": {"source": "folder", "path": "images", "image_size": SIDE, "packed": packed}}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return measure(STAGE, root, ROOT / "src")


def forget(root: Path) -> None:
    """Delete the outputs and the state of the stage."""
    for name in ("data", ".udc"):
        shutil.rmtree(root / name, ignore_errors=True)


def kill_and_restart(root: Path, kills: int, seconds: float) -> int:
    """Kill the stage ``kills`` times at random moments of the ``seconds`` it takes; returns how often it was killed."""
    draw, killed = random.Random(0), 0
    for _ in range(kills):
        process = subprocess.Popen(STAGE, cwd=root, stderr=subprocess.DEVNULL, start_new_session=True,
                                   env={"PYTHONPATH": str(ROOT / "src")})  # fmt: skip
        try:
            process.wait(draw.uniform(0.3, 1.0) * seconds / kills)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    return killed


def growth(root: Path, n: int) -> tuple[float, float]:
    """Add 1 % of files; the bytes that are read as a share of all, and the share of shards that stay the same."""
    before = hashes(root / "data/prepared/shards")
    make_images(root / "images", n + n // 100, SIDE, n)
    (root / "hook").mkdir()
    (root / "hook/sitecustomize.py").write_text(HOOK)
    opened = root / "opened.txt"
    opened.touch()
    paths = f"{root / 'hook'}:{ROOT / 'src'}"
    shutil.rmtree(root / "data")  # as DVC does
    subprocess.run(STAGE, cwd=root, check=True, stderr=subprocess.DEVNULL, env={"PYTHONPATH": paths,
                                                                               "OPENED": str(opened)})  # fmt: skip
    total = sum(path.stat().st_size for path in (root / "images").rglob("*.jpg"))
    read = sum((root / line).stat().st_size for line in opened.read_text().splitlines())
    after = hashes(root / "data/prepared/shards")
    return read / total, len(before.items() & after.items()) / len(before)


def run(n: int, kills: int, table: ResultsTable) -> None:
    """Measure n images; each number is a row of the table."""

    def note(name: str, value: object) -> None:
        table.append(n, name, value)
        sys.stdout.write(f"{n:,} images, {name}: {table.rows[-1]['value']}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_images(root / "images", n, SIDE)
        (root / "decoding.py").write_text(DECODING)
        decoding = [measure([sys.executable, "decoding.py"], root, ROOT / "src")]
        raw = prepared(root, "raw")
        note("MiB of raw arrays", sum(path.stat().st_size for path in root.glob("data/prepared/*.npy")) / 2**20)
        forget(root)
        shards = prepared(root, "shards")
        decoding.append(measure([sys.executable, "decoding.py"], root, ROOT / "src"))
        note("MiB of shards", sum(path.stat().st_size for path in root.glob("data/prepared/shards/*")) / 2**20)
        note("shards", len(list(root.glob("data/prepared/shards/*"))))
        note("MiB of .udc/prepare without the shards",
             sum(path.stat().st_size for path in root.glob(".udc/prepare/*.bin")) / 2**20)  # fmt: skip
        seconds = sum(each.seconds for each in decoding) / 2
        cpu_seconds = sum(each.cpu_seconds for each in decoding) / 2
        for name, result in (("raw", raw), ("shards", shards)):
            note(f"{name}, time / decoding alone", result.seconds / seconds)
            note(f"{name}, CPU time / decoding alone", result.cpu_seconds / cpu_seconds)
            note(f"{name}, images/s", n / result.seconds)
            note(f"{name}, peak MB of all processes", result.memory)
        expected = hashes(root / "data/prepared")
        forget(root)
        note("kills", kill_and_restart(root, kills, shards.seconds))
        prepared(root, "shards")
        note("same bytes after the kills", hashes(root / "data/prepared") == expected)
        read, same = growth(root, n)
        note("bytes read after growth by 1 %, share", read)
        note("shards that growth by 1 % leaves the same, share", same)
        grown = hashes(root / "data/prepared")
        forget(root)
        prepared(root, "shards")
        note("same bytes as without growth", hashes(root / "data/prepared") == grown)


def main() -> None:
    """Run the benchmark for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000])
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    for n in options.images:
        run(n, options.kills, ResultsTable(Path(__file__).with_suffix(".csv"), COLUMNS))


if __name__ == "__main__":
    main()
