"""Whether saliency maps lie on the evidence, depend on the weights, and what they cost.

    python benchmarks/saliency.py mark --seeds 0 1 2
    python benchmarks/saliency.py time
    python benchmarks/saliency.py summary

`mark` trains networks on images of 96 px of coloured noise, half of them with a striped square of 24 px somewhere
(6.25 % of the image), until they recognise it. On 64 other marked images it measures which share of the map for the
class is on the square, how many maps have their largest value there, and the rank correlation with the map of the
trained weights: for the trained weights, with a random head, and with all weights random (Adebayo et al. 2018), the
latter two as means over five draws.

`time` measures what explanations add to the first evaluation of a ResNet-50 and a ConvNeXt-tiny of random weights at
224 px: maps of the 128 images for eight classes, and the features of these images and of 50 more references.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from results_table import ResultsTable
from scipy.stats import spearmanr

from udc_model.config import ModelParams, TimmParams
from udc_model.config.presets import find_preset
from udc_model.data.transforms import Preprocessing
from udc_model.evaluation.explanations import MOST_CLASSES, MOST_IMAGES
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.neighbours import MOST_ADDED
from udc_model.inference.saliency import saliency
from udc_model.models import build_model
from udc_model.native.memory import keep_freed_memory

COLUMNS = ("network", "seed", "weights", "area", "share", "pointing", "correlation")
TIMES = ("network", "step", "images", "seconds", "cpu_seconds")
SIDE, MARK, CLASSES = 96, 24, ["unmarked", "marked"]
DRAWS = 5  # of random weights
Images, Maps = NDArray[np.uint8], NDArray[np.float32]


def model_params(name: str) -> ModelParams:
    """The parameters of a network by the name of a preset, or of a network of timm."""
    if name.startswith("timm/"):
        return ModelParams(model_type="timm", timm=TimmParams(name=name.removeprefix("timm/")))
    preset = find_preset(name)
    return ModelParams.model_validate({"model_type": preset.model_type, preset.model_type: preset.settings})


def with_marks(rng: np.random.Generator, n: int) -> tuple[Images, NDArray[np.int64], NDArray[np.bool_]]:
    """Images (n, 96, 96, 3), whether each is marked, and which of its pixels are the mark."""
    coarse = rng.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    images = (0.5 * coarse + rng.integers(0, 128, (n, SIDE, SIDE, 3))).astype(np.uint8)
    labels, masks = (np.arange(n) % 2).astype(np.int64), np.zeros((n, SIDE, SIDE), bool)
    stripes = np.where(np.arange(MARK) // 3 % 2, 220, 30).astype(np.uint8)[:, None, None]
    for i in np.flatnonzero(labels):
        top, left = rng.integers(0, SIDE - MARK, 2)
        masks[i, top : top + MARK, left : left + MARK] = True
        images[i, top : top + MARK, left : left + MARK] = stripes
    return images, labels, masks


def train(classifier: TrainedClassifier, rng: np.random.Generator, epochs: int = 40) -> float:
    """Train until 99 % of other images are decided right, at most so many epochs; returns the share decided right."""
    images, labels, _ = with_marks(rng, 512)
    others, expected, _ = with_marks(rng, 128)
    network, targets = classifier.model, torch.from_numpy(labels)
    rate = 3e-3 if network.config.model_type == "convnext" else 1e-3
    optimizer, accuracy = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05), 0.0
    for _ in range(epochs):
        network.train()
        for rows in torch.from_numpy(rng.permutation(len(images))).split(32):
            optimizer.zero_grad()
            inputs = classifier.preprocessing.to_input(torch.from_numpy(images[rows.numpy()]))
            F.cross_entropy(network(inputs).logits, targets[rows]).backward()
            optimizer.step()
        network.eval()
        accuracy = float((classifier.logits_of_stored(others).argmax(axis=1) == expected).mean())
        if accuracy >= 0.99:
            break
    return accuracy


def measured(maps: Maps, trained: Maps, masks: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Share of the maps on the marks, share of maps whose largest value is there, correlation with other maps."""
    large = F.interpolate(torch.from_numpy(maps)[:, None], masks.shape[1:], mode="bilinear")[:, 0].numpy()
    share = (large * masks).sum(axis=(1, 2)) / np.maximum(large.sum(axis=(1, 2)), 1e-12)
    largest = large.reshape(len(large), -1).argmax(axis=1)
    pointing = masks.reshape(len(masks), -1)[np.arange(len(masks)), largest] & (large.max(axis=(1, 2)) > 0)
    correlations = [spearmanr(a.ravel(), b.ravel()).statistic if np.ptp(a) and np.ptp(b) else 0.0
                    for a, b in zip(maps, trained, strict=True)]  # fmt: skip
    return float(share.mean()), float(pointing.mean()), float(np.mean(correlations))


def mark(names: list[str], seeds: list[int], table: ResultsTable) -> None:
    """Measure maps of trained and of random weights."""
    for name, seed in ((name, seed) for name in names for seed in seeds):
        if table.has(network=name, seed=seed):
            continue
        rng = np.random.default_rng(seed)
        params = model_params(name)
        classifier = TrainedClassifier(
            build_model(params, CLASSES, seed).eval(), Preprocessing(SIDE), torch.device("cpu")
        )
        accuracy = train(classifier, rng)
        sys.stdout.write(f"{name}, seed {seed}: {accuracy:.3f} decided right\n")
        images, labels, masks = with_marks(rng, 128)
        images, masks = images[labels == 1], masks[labels == 1]
        ones = np.ones(len(images), np.int64)
        trained = saliency(classifier, images, ones)
        rows = {"trained": [measured(trained, trained, masks)], "random head": [], "random": []}
        for draw in range(DRAWS):
            other = build_model(params, CLASSES, 1000 + draw).eval()
            beheaded = copy.deepcopy(classifier)
            beheaded.model.classifier = other.classifier
            random = TrainedClassifier(other, classifier.preprocessing, classifier.device)
            for key, each in (("random head", beheaded), ("random", random)):
                rows[key].append(measured(saliency(each, images, ones), trained, masks))
        for key, values in rows.items():
            table.append(name, seed, key, float(masks.mean()), *map(float, np.mean(values, axis=0)))


def measure_time(names: list[str], table: ResultsTable) -> None:
    """Measure the steps of explanations for networks of random weights at 224 px."""
    keep_freed_memory()
    classes = [f"c{k}" for k in range(10)]
    images = np.random.default_rng(0).integers(0, 256, (MOST_IMAGES, 224, 224, 3), dtype=np.uint8)
    for name in names:
        exact, fast = (TrainedClassifier(build_model(model_params(name), classes, 0).eval(), Preprocessing(224),
                                         torch.device("cpu"), precision=precision)
                       for precision in ("fp32", "fp32_fused"))  # fmt: skip
        of_each = np.tile(np.arange(MOST_CLASSES), (len(images), 1))
        steps: dict[str, tuple[int, Callable[[], object]]] = {
            "maps": (len(images), lambda exact=exact, of_each=of_each: saliency(exact, images, of_each)),
            "features": (MOST_IMAGES, lambda fast=fast: fast.features_of_stored(images)),
            "more references": (MOST_ADDED, lambda fast=fast: fast.features_of_stored(images[:MOST_ADDED])),
        }
        for step, (count, run) in steps.items():
            if not table.has(network=name, step=step):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                table.append(name, step, count, time.perf_counter() - wall, time.process_time() - cpu)


def summary(marks: ResultsTable, times: ResultsTable) -> None:
    """Print means over the seeds, and the seconds that explanations add."""
    for name in dict.fromkeys(row["network"] for row in marks.rows):
        for weights in ("trained", "random head", "random"):
            rows = [row for row in marks.rows if (row["network"], row["weights"]) == (name, weights)]
            share, pointing, correlation = (
                np.mean([float(row[key]) for row in rows]) for key in ("share", "pointing", "correlation")
            )
            text = f"share {share:.3f}, pointing {pointing:.2f}, correlation {correlation:.2f}"
            sys.stdout.write(f"{name:20} {weights:12} {text}\n")
    for name in dict.fromkeys(row["network"] for row in times.rows):
        seconds, cpu = (
            sum(float(row[key]) for row in times.rows if row["network"] == name) for key in ("seconds", "cpu_seconds")
        )
        sys.stdout.write(f"{name:20} {seconds:.1f} s more, {cpu:.1f} s of the processor\n")


def main() -> None:
    """Run one of the measurements, or print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mark", "time", "summary"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", help="presets, or timm/NAME")
    options = parser.parse_args()
    folder = Path(__file__).parent
    marks, times = ResultsTable(folder / "saliency.csv", COLUMNS), ResultsTable(folder / "saliency_time.csv", TIMES)
    if options.what == "mark":
        mark(options.networks or ["resnet-small", "convnext-mini", "timm/resnet10t"], options.seeds, marks)
    elif options.what == "time":
        measure_time(options.networks or ["resnet-50", "convnext-tiny"], times)
    else:
        summary(marks, times)


if __name__ == "__main__":
    main()
