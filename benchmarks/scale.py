"""Measures how time and memory of each stage grow with images, classes and processes.

    python benchmarks/scale.py                                   # 10,000 and 100,000 images, 10 to 1,000 classes
    python benchmarks/scale.py --images 1000000 --classes 10     # hours, and 10 GB

Writes random JPEG files of 64 px to a temporary folder, which is deleted afterwards, and runs prepare, one epoch of
train, evaluate and ``udc score`` on them, each as a process. Rows that `scale.csv` has are not measured again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from prepare import ROOT, make_images, measure
from results_table import ResultsTable

COLUMNS = ("images", "classes", "processes", "stage", "seconds", "CPU seconds", "peak MB of all processes")
SIDE = 64  # pixels
NETWORK = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}  # hardly takes time
STAGES = {
    name: [sys.executable, "-m", f"udc_model.stages.{name}"] for name in ("prepare", "resolve", "train", "evaluate")
} | {"score": [sys.executable, "-m", "udc_model.cli", "score", "images", "--out", "scores"]}  # fmt: skip


def cases(images: list[int], classes: list[int], processes: list[int]) -> Iterator[tuple[int, int, int]]:
    """One growth at a time: each number of images, then each of classes, then each of processes."""
    yield from ((n, classes[0], processes[0]) for n in images)
    yield from ((images[0], k, processes[0]) for k in classes[1:])
    yield from ((images[0], classes[0], p) for p in processes[1:])


def run(n: int, k: int, processes: int, table: ResultsTable) -> None:
    """Measure the stages that the table lacks, after those that they need."""
    if all(table.has(images=n, classes=k, processes=processes, stage=stage) for stage in STAGES):
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_images(root / "images", n, SIDE, classes=k)
        params = {
            "data": {"source": "folder", "path": "images", "image_size": SIDE},
            "model": {"model_type": "resnet", "resnet": NETWORK},
            "train": {"epochs": 1, "processes": processes, "batch_size": 64},
        }
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        for stage, command in STAGES.items():
            result = measure(command, root, ROOT / "src")
            if not table.has(images=n, classes=k, processes=processes, stage=stage):
                table.append(n, k, processes, stage, result.seconds, result.cpu_seconds, result.memory)
            sys.stdout.write(f"{n:,} images, {k} classes, {processes} processes, {stage}: {result.seconds:.1f} s\n")
            sys.stdout.flush()


def main() -> None:
    """Run the benchmark for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 300, 1000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    table = ResultsTable(Path(__file__).with_suffix(".csv"), COLUMNS)
    for case in cases(options.images, options.classes, options.processes):
        run(*case, table)


if __name__ == "__main__":
    main()
