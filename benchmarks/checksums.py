"""Measure what checksums cost: the start-up of ``udc predict``, and the first epoch of a training run.

    python benchmarks/checksums.py predict --preset resnet-50
    python benchmarks/checksums.py epoch

The same command runs with and without ``checksums.json`` (data and models of earlier versions have none) in interleaved
rounds. CPU seconds decide, because the machine may be shared. The result is the median of the paired ratios with its
95% interval from order statistics.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import binom

from udc_model.checksums import CHECKSUMS, write_checksums
from udc_model.config import ModelParams, Params
from udc_model.config.presets import find_preset
from udc_model.data.packed import PackedDataset
from udc_model.data.stored_images import IMAGE_CHECKSUMS
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.files import Workspace
from udc_model.model_files.folder import CONFIG, PREPROCESSOR, WEIGHTS
from udc_model.stages.prepare import prepare


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("predict", "epoch"))
    parser.add_argument("--preset", default="resnet-50", help="model of predict (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = predict_runs(folder, options.preset) if options.what == "predict" else epoch_runs(folder)
        seconds = interleaved(run, options.rounds)
    with_checksums, without = seconds.T
    ratios = np.sort(with_checksums / without)
    k = int(binom.ppf(0.025, len(ratios), 0.5))
    low, high = ratios[max(0, k - 1)], ratios[min(len(ratios) - 1, len(ratios) - k)]
    sys.stdout.write(f"{options.what}: {np.median(with_checksums):.3f} CPU s with checksums, {np.median(without):.3f} "
                     f"without; ratio {np.median(ratios):.4f}, 95% interval {low:.4f} to {high:.4f}, "
                     f"{options.rounds} rounds\n")  # fmt: skip


def interleaved(run: Callable[[bool], float], rounds: int) -> np.ndarray:
    """CPU seconds (rounds, 2) with and without checksums; the order changes from round to round."""
    for has_checksums in (True, False):  # fills the caches of the system
        run(has_checksums)
    result = np.empty((rounds, 2))
    for number in range(rounds):
        for column in ((0, 1), (1, 0))[number % 2]:
            result[number, column] = run(column == 0)
    return result


def predict_runs(folder: Path, preset: str) -> Callable[[bool], float]:
    """A function that runs ``udc predict`` in a process and returns its CPU seconds."""
    from udc_model.models import build_model

    found, classes = find_preset(preset), [f"class {i}" for i in range(10)]
    params = ModelParams.model_validate({"model_type": found.model_type, "preset": preset})
    roots = {}
    for has_checksums in (True, False):
        workspace = Workspace(folder / str(has_checksums))
        workspace.model.mkdir(parents=True)
        workspace.evaluation.mkdir()
        build_model(params, classes, 0).save_pretrained(workspace.model)
        Preprocessing(found.image_size).save(workspace.model)
        policy = Policy(classes, (1 - np.eye(len(classes))).tolist())
        (workspace.evaluation / "policy.json").write_text(policy.to_json())
        if has_checksums:
            write_checksums(workspace.model, [CONFIG, PREPROCESSOR, WEIGHTS])
        roots[has_checksums] = workspace.root
    image = folder / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(image)

    def run(has_checksums: bool) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "udc_model.cli", "predict", "--root", str(roots[has_checksums]), str(image)]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def epoch_runs(folder: Path) -> Callable[[bool], float]:
    """A function that trains the first epoch on the digits and returns its CPU seconds."""
    from udc_model.training.loop import train_model
    from udc_model.training.setup import set_up

    params = Params.model_validate({"model": {"preset": "resnet-mini"}, "train": {"epochs": 1}})
    prepare(params, Workspace(folder))
    plain = shutil.copytree(Workspace(folder).prepared, folder / "plain")
    for name in (CHECKSUMS, IMAGE_CHECKSUMS):
        (plain / name).unlink()

    def run(has_checksums: bool) -> float:
        dataset = PackedDataset.open(Workspace(folder).prepared if has_checksums else plain)
        session = set_up(params, dataset)
        start = time.process_time()
        train_model(session)
        return time.process_time() - start

    return run


if __name__ == "__main__":
    main()
