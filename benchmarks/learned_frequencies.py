"""Measures what it is worth to undo the class frequencies that ``train.sampling_power`` teaches the model.

    python benchmarks/learned_frequencies.py FOLDER [--seeds 30]

The images of a folder with one folder per class are reduced to 6 x 6 grey values. For each seed, a logistic regression
and a network with one hidden layer are trained on images that are drawn with class frequencies n ** power. Their
decisions have the default policy, with and without the correction. The table has the mean costs on the test images,
and the paired difference with its 95% interval over the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from udc_model.config import CostParams, EvaluateParams
from udc_model.data.decode import decode
from udc_model.data.formats import SUFFIXES
from udc_model.data.transforms import Decoding
from udc_model.decisions.decision import mean_cost
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.policy import fit_policy

MODELS: dict[str, Callable[[int], Any]] = {
    "logistic regression": lambda seed: LogisticRegression(C=3, max_iter=300),
    "network": lambda seed: MLPClassifier((32,), max_iter=80, random_state=seed),
}
POWERS = (0.5, 0.0)
SHARES = (0.47, 0.2)  # of training and calibration; the others are the test images


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with a folder of images per class")
    parser.add_argument("--seeds", type=int, default=30)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of networks that have not converged
    logging.disable(logging.INFO)
    classes, images, labels = read(options.folder)
    rows: list[dict[str, Any]] = []
    for seed, power, model in itertools.product(range(options.seeds), POWERS, MODELS):
        rows += measure(classes, images, labels, model, power, seed)
    table = pd.DataFrame(rows).groupby(["model", "power", "costs"], sort=False).apply(summary)
    sys.stdout.write(table.round(4).to_string() + "\n")


def read(folder: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.intp]]:
    """Classes, images (N, 36) from -0.5 to 0.5, and labels (N,)."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(path, k) for k, name in enumerate(classes) for path in sorted((folder / name).iterdir())
             if path.suffix.lower() in SUFFIXES]  # fmt: skip
    images = [np.asarray(decode(path, Decoding(channels=1)).resize((6, 6), Image.Resampling.BOX)) for path, _ in files]
    return classes, np.stack(images).reshape(len(images), -1) / 255 - 0.5, np.array([k for _, k in files])


def measure(
    classes: list[str], images: NDArray[np.float64], labels: NDArray[np.intp], model: str, power: float, seed: int
) -> list[dict[str, Any]]:
    """Mean costs of one model, of mistakes that cost the same, and of two that are more costly for rare or common
    classes."""
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(np.array(SHARES) * len(labels)).astype(int)
    train, calibration, test = np.split(rng.permutation(len(labels)), bounds)
    counts = np.bincount(labels[train], minlength=len(classes))
    learned = counts**power / (counts**power).sum()
    weights = (learned / counts)[labels[train]]
    drawn = rng.choice(train, 2 * len(train), p=weights / weights.sum())
    fitted = MODELS[model](seed).fit(images[drawn], labels[drawn])
    logits = {name: np.log(np.maximum(fitted.predict_proba(images[rows]), 1e-12))
              for name, rows in (("calibration", calibration), ("test", test))}  # fmt: skip
    results = []
    for name, of_class in (("equal", counts**0.0), ("rare", counts.max() / counts), ("common", counts / counts.min())):
        costs = of_class[:, None] * (1 - np.eye(len(classes)))
        row = {"model": model, "power": power, "costs": name}
        for column, frequencies in (("without", TrainingFrequencies(counts.tolist())),
                                    ("with", TrainingFrequencies(counts.tolist(), learned.tolist()))):  # fmt: skip
            policy = fit_policy(EvaluateParams(), CostParams(matrix=costs.tolist()), classes, frequencies,
                                logits["calibration"], labels[calibration])  # fmt: skip
            row[column] = mean_cost(labels[test], policy.apply(logits["test"]).decided, costs)
        results.append(row)
    return results


def summary(rows: pd.DataFrame) -> pd.Series[float]:
    """Mean costs without and with the correction, and their difference with its interval."""
    difference = rows["with"] - rows["without"]
    half = t.ppf(0.975, len(rows) - 1) * difference.std() / len(rows) ** 0.5
    mean = difference.mean()
    return pd.Series({"without": rows["without"].mean(), "with": rows["with"].mean(), "difference": mean,
                      "low": mean - half, "high": mean + half})  # fmt: skip


if __name__ == "__main__":
    main()
