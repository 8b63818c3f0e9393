"""Time and size of an evaluation without the network: synthetic images and logits of any number of classes.

    python benchmarks/evaluation.py                                  # 300 classes, 30,000 test images
    python benchmarks/evaluation.py --classes 10 --images 600 --margin 8 --refer 0.3 --keep /tmp/ten

Prints the seconds of each part and the size of the report. ``--margin`` is the distance of the true class's logit from
the others, in standard deviations: 0 is chance, 12 makes no mistake. ``--keep`` leaves the folder, to look at it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.config import Params, validate_params
from udc_model.data.margins import Margins
from udc_model.data.packed import write_packed
from udc_model.data.scratch import PixelScratch
from udc_model.data.transforms import Preprocessing
from udc_model.evaluation import figures, tables
from udc_model.evaluation.explanations import (
    MOST_CLASSES,
    MOST_IMAGES,
    Explanations,
    explained_classes,
    explained_rows,
)
from udc_model.files import Workspace
from udc_model.inference.feature_statistics import FeatureStatistics
from udc_model.inference.stored_logits import familiarity_arrays
from udc_model.stages import evaluate as stage
from udc_model.stages.train import training_params

SHARES = {"train": 1.0, "validation": 0.5, "calibration": 0.5, "test": 1.0}  # of --images
SIDE = 16  # pixels
EPOCHS = 20
FEATURES = 512
PARTS = {
    stage: ("evaluate", "fit_policy", "lint_costs", "write_predictions", "write_split", "write_curves",
            "find_label_errors", "with_test_corrections", "write_label_quality", "log_scores",
            "log_model", "write_report", "log_evaluation"),
    tables: ("write_predictions", "split_metrics", "metric_intervals", "write_confusion", "mean_curves", "class_curves",
             "threshold_reliability"),
    figures.FigureProcess: ("finish",),
}  # fmt: skip


def main() -> None:
    """Build the workspace, evaluate it, and print where the time went."""
    options = _options()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root = (options.keep or Path(scratch)).resolve()
        params, workspace = synthetic_workspace(root, options)
        os.chdir(root)  # MLflow's store and the caches are in the current folder
        with _timed() as seconds:
            stage.evaluate(params, workspace)
        print(f"{'':<28}{'seconds':>9}{'CPU':>9}")  # noqa: T201
        for name, took in seconds.items():
            print(f"{name:<28}{took[0]:9.2f}{took[1]:9.2f}")  # noqa: T201
        size = (workspace.evaluation / "report.html").stat().st_size
        print(f"report.html {size / 1e6:.2f} MB")  # noqa: T201


@contextmanager
def _timed() -> Iterator[dict[str, NDArray[np.float64]]]:
    """Measure the functions in `PARTS`, in seconds and CPU seconds of this process; some of them contain others."""
    seconds: dict[str, NDArray[np.float64]] = {}

    def clocks() -> NDArray[np.float64]:
        return np.array([time.perf_counter(), time.process_time()])

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = clocks()
            try:
                return function(*arguments, **options)
            finally:
                seconds[name] = seconds.get(name, np.zeros(2)) + clocks() - started

        return call

    with ExitStack() as stack:
        for owner, names in PARTS.items():
            for name in names:
                replacement = wrapped(f"{owner.__name__.split('.')[-1]}.{name}", getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, replacement))
        yield seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and size of an evaluation without the network.")
    parser.add_argument("--classes", type=int, default=300)
    parser.add_argument("--images", type=int, default=30_000, help="of the test split")
    parser.add_argument("--margin", type=float, default=5.0)
    parser.add_argument("--refer", type=float, default=None, help="cost of referral")
    parser.add_argument("--groups", action="store_true", help="three images in each group")
    parser.add_argument("--name", default="class", help="begin of each class name")
    parser.add_argument("--keep", type=Path, default=None, help="folder to write to and to keep")
    return parser.parse_args()


def synthetic_workspace(root: Path, options: argparse.Namespace) -> tuple[Params, Workspace]:
    """Write what ``prepare`` and ``train`` write, with random images; the model's logits are random too."""
    workspace, rng = Workspace(root), np.random.default_rng(0)
    names = [f"{options.name} {k:03d}" for k in range(options.classes)]
    entries = [{"true": names[-1], "predicted": names[0], "cost": 40.0}]
    params = validate_params({
        "data": {"source": "folder", "path": "data/raw/synthetic", "image_size": SIDE},
        "costs": {"preset": "uniform", "entries": entries, "refer": options.refer},
    }, "benchmarks/evaluation.py")  # fmt: skip
    info = _prepare(workspace, names, options, rng)
    workspace.model.mkdir(parents=True, exist_ok=True)
    (workspace.model / "model.safetensors").write_bytes(b"synthetic")
    (workspace.model / "config.json").write_text('{"model_type": "resnet"}', encoding="utf-8")
    workspace.training.mkdir(parents=True, exist_ok=True)
    record = {"params": training_params(params), "data": {"name": "synthetic", "digest": info["digest"],
              "source": {"source": "folder", "path": "data/raw/synthetic"}}, "hardware": {"device": "cpu"},
              "best_epoch": 2, "final_metrics": {"best_epoch": 2, "epochs": EPOCHS}}  # fmt: skip
    (workspace.training / "record.json").write_text(json.dumps(record), encoding="utf-8")
    of_train = rng.normal(3, 2, (EPOCHS, sum(info["counts"]["train"].values())))
    epochs = np.arange(EPOCHS, dtype=np.int32)
    Margins(of_train.astype(np.float16), np.zeros(of_train.shape, np.uint16), epochs).save(workspace.training)
    targets = {name: np.repeat(np.arange(options.classes), max(1, int(options.images * share) // options.classes))
               for name, share in SHARES.items()}  # fmt: skip
    logits = {name: (rng.normal(size=(len(t), options.classes)) + options.margin * np.eye(options.classes)[t])
              .astype(np.float32) for name, t in targets.items()}  # fmt: skip
    statistics = FeatureStatistics(np.eye(FEATURES, dtype=np.float32)[None], np.zeros((1, FEATURES), np.float32))
    distances = {name: rng.chisquare(FEATURES, len(t)).astype(np.float32) / FEATURES for name, t in targets.items()}
    logits |= familiarity_arrays(statistics, distances)
    stage.run_model = lambda *_: logits  # type: ignore[assignment]
    stage.ExplanationStore.explanations = (  # type: ignore[method-assign]
        lambda _, of_test, strangeness: synthetic_explanations(of_test, targets["test"], strangeness, rng)
    )
    return params, workspace


def synthetic_explanations(
    logits: NDArray[np.float32], targets: NDArray[np.int64], distances: NDArray[np.float32], rng: np.random.Generator
) -> Explanations:
    """Random maps of the test images that an evaluation explains."""
    rows = explained_rows(logits, targets, distances, MOST_IMAGES)
    classes = explained_classes(logits[rows], targets[rows, None], MOST_CLASSES)
    maps = rng.integers(0, 256, (*classes.shape, 7, 7), dtype=np.uint8)
    return Explanations(rows, classes, maps, rng.integers(0, len(targets), classes.shape), SIDE)


def _prepare(workspace: Workspace, names: list[str], options: argparse.Namespace, rng: np.random.Generator) -> dict:
    rows = []
    for split, share in SHARES.items():
        per_class = max(1, int(options.images * share) // len(names))
        rows += [{"split": split, "path": f"{name}/{split}{i:05d}.png", "label": name, "width": 300, "height": 200,
                  "group": f"{name} {split} {i // 3}" if options.groups else "", "sha256": f"{len(rows) + i:064x}"}
                 for name in names for i in range(per_class)]  # fmt: skip
    rows = [{**row, "scratch_row": k} for k, row in enumerate(rows)]
    workspace.prepared.mkdir(parents=True, exist_ok=True)
    scratch = workspace.root / "scratch.bin"
    scratch.write_bytes(rng.integers(0, 255, len(rows) * SIDE * SIDE * 3, dtype=np.uint8).tobytes())
    info = write_packed(workspace.prepared, PixelScratch(scratch), rows, Preprocessing(SIDE), {"classes": names})
    scratch.unlink()
    curves = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [2.0, 0.5, 0.1], "validation_log_loss": [1.5, 0.4, 0.5],
                           "validation_accuracy": [0.5, 0.9, 0.88], "validation_balanced_accuracy": [0.5, 0.9, 0.88],
                           "validation_macro_f1": [0.5, 0.9, 0.88]})  # fmt: skip
    workspace.training.mkdir(parents=True, exist_ok=True)
    curves.to_csv(workspace.training / "curves.csv", index=False)
    return info


if __name__ == "__main__":
    main()
