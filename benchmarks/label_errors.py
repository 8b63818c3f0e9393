"""Wrong labels found by one training run, beside cleanlab on five-fold probabilities.

    python benchmarks/label_errors.py digits
    python benchmarks/label_errors.py cells FOLDER
    python benchmarks/label_errors.py clothes FOLDER                 # 300 images per class of Fashion-MNIST
    python benchmarks/label_errors.py trashnet FOLDER --weights efficientnet_lite0.safetensors
    python benchmarks/label_errors.py summary
    python benchmarks/label_errors.py cost

FOLDER has a folder of images per class; photographs.py tells where the weights come from. 5 % of the labels of the
training, validation and calibration split are flipped: `uniform` to any other class, `similar` to the class that a
model of the clean labels confuses most. `none` flips nothing. The precision at k, the number of flipped labels, and the
average precision are those of the training images; `held-out` is of validation and calibration. `flagged` is the share
of images that label_quality.csv calls suspicious, `flagged_right` the share of them that were flipped. Cleanlab (extra
[bench]) ranks by self-confidence, its default, on the probabilities of five networks that were trained on four fifths
of the training images each. Each result is a row of benchmarks/label_errors.csv; one that exists is not measured again.

`cost` measures what recording margins costs in an epoch: paired rounds with and without, CPU seconds, median of the
ratio with its 95 % interval (order statistics of 20 rounds).
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from results_table import ResultsTable

from udc_model.config import Params, override_params
from udc_model.data.packed import PackedDataset, PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.calibration import fit_calibration
from udc_model.evaluation.label_quality import LabelEvidence, label_quality
from udc_model.files import Workspace
from udc_model.models import build_model
from udc_model.models.pretrained import resolve_weights
from udc_model.project.recipe import find_recipe
from udc_model.stages.prepare import prepare
from udc_model.training.hardware import pick_hardware
from udc_model.training.loop import score_images, train_epoch
from udc_model.training.margins import MarginRecorder
from udc_model.training.members import train_members
from udc_model.training.session import TrainingSession
from udc_model.training.setup import set_up
from udc_model.training.training_loss import TrainingLoss

COLUMNS = ("data", "flips", "seed", "method", "images", "flipped", "precision_at_k", "average_precision", "flagged",
           "flagged_right", "cpu_seconds")  # fmt: skip
SHARE, FOLDS = 0.05, 5
HELD_OUT = ("validation", "calibration")
SMALL = ["model.resnet.embedding_size=16", "model.resnet.hidden_sizes=[16,32,64]", "model.resnet.depths=[1,1,1]",
         "model.resnet.layer_type=basic", "model.resnet.downsample_in_first_stage=true",
         "train.precision=fp32"]  # fmt: skip
SETTINGS = {"digits": [*SMALL, "data.image_size=16"], "cells": [*SMALL, "data.image_size=24"], "trashnet": [],
            "clothes": [*SMALL, "data.image_size=28"]}  # fmt: skip
# A platelet that the published data calls a white blood cell. Without this correction it is among the first of the
# ranking, and counts against it.
CORRECTED = {"WBC/BloodImage_00113_12.jpg": "Platelets"}

Splits = Mapping[str, PackedSplit]


def params_of(options: argparse.Namespace) -> Params:
    """The parameters of a data set: those of a small network, or of recipe frozen-features for photographs."""
    settings = list(SETTINGS[options.data])
    if options.data != "digits":
        settings += ["data.source=folder", f"data.path={options.folder}", "data.split_seed=0", "costs.preset=uniform"]
    if options.data == "trashnet":
        recipe = find_recipe("frozen-features").values | {"model.preset": None, "model.model_type": "timm",
                  "model.timm.name": "tf_efficientnet_lite0", "model.weights": str(options.weights)}  # fmt: skip
        settings = [f"{name}={'' if value is None else value}" for name, value in recipe.items()] + settings
    params = override_params(settings)
    if params.model.weights is None:
        return params
    return params.model_copy(update={"model": resolve_weights(params.model)})


@dataclass(frozen=True)
class Relabelled:
    """A data set whose splits have other labels."""

    dataset: PackedDataset
    splits: Splits

    def __getattr__(self, name: str) -> object:
        return getattr(self.dataset, name)

    @property
    def training_counts(self) -> list[int]:
        """Training images of each class."""
        counts = np.bincount(self.splits["train"].labels, minlength=len(self.dataset.classes))
        return [int(count) for count in counts]

    def split(self, name: str) -> PackedSplit:
        """A split with its labels."""
        return self.splits[name]


def flipped(split: PackedSplit, kind: str, similar: NDArray[np.intp], rng: np.random.Generator) -> PackedSplit:
    """A split of which `SHARE` of the labels are wrong."""
    labels = split.labels.copy()
    rows = rng.choice(len(labels), round(SHARE * len(labels)), replace=False)
    others = (labels[rows] + rng.integers(1, len(similar), len(rows))) % len(similar)
    labels[rows] = similar[labels[rows]] if kind == "similar" else others
    return replace(split, labels=labels)


def part(split: PackedSplit, rows: NDArray[np.intp]) -> PackedSplit:
    """Some images of a split."""
    chosen = [[values[row] for row in rows] for values in (split.paths, split.groups, split.digests)]
    return PackedSplit(np.array(split.images[rows]), split.labels[rows], *chosen)


class FeaturesOfImages:
    """Features of a frozen network by path: the images of all folds pass the network once."""

    def __init__(self) -> None:
        from udc_model.training.features import FrozenNetwork

        self._compute, self._known, self._network = FrozenNetwork.features, {}, None
        FrozenNetwork.features = lambda network, name, split, cache: self.of(split, network)  # type: ignore[method-assign]

    def of(self, split: PackedSplit, network: object = None) -> torch.Tensor:
        """The features (N, D) of the images of a split; the first network computes all."""
        self._network = self._network or network
        if missing := np.array(
            [row for row, path in enumerate(split.paths) if path not in self._known], np.intp
        ).tolist():
            images = part(split, np.array(missing))
            self._known |= dict(zip(images.paths, self._compute(self._network, "all", images, None), strict=True))
        return torch.stack([self._known[path] for path in split.paths])


def trained(params: Params, dataset: Relabelled) -> tuple[TrainingSession, LabelEvidence]:
    """A trained session with its best weights, and the evidence of its margins."""
    session = set_up(params, dataset)  # type: ignore[arg-type]
    (result,) = train_members(lambda _: session, 1)
    session.load_best()
    assert result.margins is not None
    return session, LabelEvidence.of_training(result.margins)


def predicted(session: TrainingSession, split: PackedSplit, features: FeaturesOfImages) -> NDArray[np.float32]:
    """Logits (N, K) of a split."""
    return score_images(session, features.of(split) if session.features else split.images)


def five_fold_logits(params: Params, dataset: Relabelled, features: FeaturesOfImages) -> NDArray[np.float32]:
    """Logits (N, K) of the training images, each of a network that was not trained on it."""
    split, rng = dataset.split("train"), np.random.default_rng(0)
    order = rng.permutation(len(split))
    fold = np.empty(len(split), np.intp)
    fold[order[np.argsort(split.labels[order], kind="stable")]] = np.arange(len(split)) % FOLDS
    logits = np.zeros((len(split), len(dataset.dataset.classes)), np.float32)
    for number in range(FOLDS):
        outside, inside = (part(split, np.flatnonzero(mask)) for mask in (fold != number, fold == number))
        session, _ = trained(params, replace(dataset, splits={**dataset.splits, "train": outside}))
        logits[fold == number] = predicted(session, inside, features)
    return logits


def ranking(scores: NDArray[np.float64], is_wrong: NDArray[np.bool_]) -> tuple[float, float]:
    """Precision among the lowest k scores of k wrong labels, and average precision."""
    from sklearn.metrics import average_precision_score

    if not is_wrong.any():
        return float("nan"), float("nan")
    first = np.argsort(scores, kind="stable")[: is_wrong.sum()]
    return float(is_wrong[first].mean()), float(average_precision_score(is_wrong, -scores))


def self_confidence(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cleanlab's label quality score."""
    from cleanlab.rank import get_label_quality_scores

    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(get_label_quality_scores(labels, shifted / shifted.sum(axis=1, keepdims=True)))


def measure(options: argparse.Namespace, table: ResultsTable) -> None:
    """All rows of a data set that are missing."""
    base, features = params_of(options), FeaturesOfImages()
    with prepared(base) as (dataset, clean):
        similar: NDArray[np.intp] | None = None
        for seed in options.seeds:
            params = base.model_copy(update={"seed": seed})
            for kind in ("none", "uniform", "similar"):
                if similar is not None and table.has(data=options.data, flips=kind, seed=seed):
                    continue
                rng = np.random.default_rng([seed, kind == "similar"])
                splits = dict(clean)
                if kind != "none":
                    assert similar is not None
                    splits |= {name: flipped(clean[name], kind, similar, rng) for name in ("train", *HELD_OUT)}
                session = measure_run(options.data, kind, params, Relabelled(dataset, splits), clean, features, table)
                if similar is None:
                    similar = most_similar(
                        predicted(session, clean["validation"], features), clean["validation"].labels
                    )


@contextmanager
def prepared(params: Params) -> Iterator[tuple[PackedDataset, dict[str, PackedSplit]]]:
    """The prepared images, with `CORRECTED` labels."""
    with tempfile.TemporaryDirectory() as scratch:
        prepare(params, Workspace(Path(scratch)))
        dataset = PackedDataset.open(Workspace(Path(scratch)).prepared)
        splits = {name: dataset.split(name) for name in ("train", *HELD_OUT, "test")}
        for split in splits.values():
            for row, path in enumerate(split.paths):
                if path in CORRECTED:
                    split.labels[row] = dataset.classes.index(CORRECTED[path])
        yield dataset, splits


def most_similar(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """(K,) for each class the other one with the largest mean probability."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    means = np.array([p[labels == k].mean(axis=0) for k in range(p.shape[1])])
    np.fill_diagonal(means, -1)
    return means.argmax(axis=1)


def measure_run(
    data: str, kind: str, params: Params, dataset: Relabelled, clean: Splits, features: FeaturesOfImages,
    table: ResultsTable,
) -> TrainingSession:  # fmt: skip
    """Train once, and with five folds, and add the rows; returns the trained session."""
    started = time.process_time()
    session, evidence = trained(params, dataset)
    seconds = time.process_time() - started
    names = {"one training run": ("train",), "held-out": HELD_OUT}
    of_split = {"train": evidence}
    logits = {name: predicted(session, dataset.split(name), features) for name in HELD_OUT}
    labels = {name: dataset.split(name).labels for name in HELD_OUT}
    fitted = fit_calibration("temperature", logits["calibration"].astype(np.float64), labels["calibration"])
    of_split |= {name: LabelEvidence.of_predictions(logits[name], labels[name], fitted) for name in HELD_OUT}
    classes = dataset.dataset.classes
    found = label_quality(dataset.splits, of_split, classes, 1 - np.eye(len(classes)))
    if table.has(data=data, flips=kind, seed=params.seed):
        return session
    rows = []
    for method, splits in names.items():
        is_wrong = np.concatenate([dataset.split(name).labels != clean[name].labels for name in splits])
        scores = np.concatenate([of_split[name].support for name in splits])
        flagged = found[found["split"].isin(splits) & found["is_suspicious"]]
        right = [bool(dataset.split(name).labels[row] != clean[name].labels[row])
                 for name, row in zip(flagged["split"], flagged["row"], strict=True)]  # fmt: skip
        rows.append((method, len(is_wrong), int(is_wrong.sum()), *ranking(scores, is_wrong),
                     len(right) / len(is_wrong), sum(right) / len(right) if right else float("nan"),
                     seconds))  # fmt: skip
    if kind != "none":
        started = time.process_time()
        scores = self_confidence(five_fold_logits(params, dataset, features), dataset.split("train").labels)
        is_wrong = dataset.split("train").labels != clean["train"].labels
        rows.append(("cleanlab, five folds", len(is_wrong), int(is_wrong.sum()), *ranking(scores, is_wrong),
                     float("nan"), float("nan"), time.process_time() - started))  # fmt: skip
    for row in rows:
        table.append(data, kind, params.seed, *row)
        print(data, kind, params.seed, *row)  # noqa: T201
    return session


def summary(table: ResultsTable) -> None:
    """Print the means over seeds."""
    keys = dict.fromkeys((row["data"], row["flips"], row["method"]) for row in table.rows)
    print(f"{'data':<10}{'flips':<9}{'method':<22}{'seeds':>6}" + "".join(f"{name:>19}" for name in COLUMNS[6:]))  # noqa: T201
    for key in keys:
        rows = [row for row in table.rows if (row["data"], row["flips"], row["method"]) == key]
        values = [mean(float(row[name]) for row in rows) for name in COLUMNS[6:]]
        text = "".join(f"{value:>19.3f}" for value in values)
        print(f"{key[0]:<10}{key[1]:<9}{key[2]:<22}{len(rows):>6}{text}")  # noqa: T201


def cost(rounds: int = 20) -> None:
    """Print the ratio of CPU seconds with and without margins: a small network on images, and a head on features."""
    for name, images, labels, settings in (
        ("demo's network, images of 32 px", 1024, 10, [*SMALL, "data.image_size=32"]),
        ("head on features, 20,000 images", 20_000, 10, ["train.num_frozen_stages=all", "data.image_size=8"]),
        ("the same, 300 classes", 20_000, 300, ["train.num_frozen_stages=all", "data.image_size=8"]),
    ):
        session = synthetic_session(images, labels, override_params([*settings, "train.precision=fp32"]))
        ratios, seconds = [], []
        record, nothing = MarginRecorder.add, lambda *_: None
        for number in range(rounds + 1):
            taken = {}
            for is_recorded in (True, False) if number % 2 else (False, True):
                MarginRecorder.add = record if is_recorded else nothing  # type: ignore[method-assign]
                session.progress.step, started = 0, time.process_time()
                train_epoch(session)
                session.margins.end_epoch()
                taken[is_recorded] = time.process_time() - started
            if number:  # the first round warms up
                ratios.append(taken[True] / taken[False])
                seconds.append(taken[False])
        MarginRecorder.add = record  # type: ignore[method-assign]
        low, high = sorted(ratios)[5], sorted(ratios)[-6]
        print(f"{name}: {mean(seconds):.2f} CPU-s an epoch, ratio {np.median(ratios):.4f} ({low:.4f} to {high:.4f})")  # noqa: T201


def synthetic_session(images: int, labels: int, params: Params) -> TrainingSession:
    """A started session on random images."""
    rng, size = np.random.default_rng(0), params.data.image_size
    pixels = rng.integers(0, 255, (images, size, size, 3), dtype=np.uint8)
    texts = [""] * images
    split = PackedSplit(pixels, np.arange(images) % labels, texts, texts, texts)
    names = [f"{k:03d}" for k in range(labels)]
    loss = TrainingLoss(params.loss, torch.ones(labels, labels), [images // labels] * labels)
    session = TrainingSession(build_model(params.model, names, 1), loss, split, part(split, np.arange(100)),
                              Preprocessing(size), params, pick_hardware(params.train))  # fmt: skip
    session.start()
    return session


def main() -> None:
    """Measure a data set, or print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=(*SETTINGS, "summary", "cost"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    if options.data == "cost":
        cost()
        return
    table = ResultsTable(Path(__file__).with_suffix(".csv"), COLUMNS)
    if options.data == "summary":
        summary(table)
        return
    measure(options, table)


if __name__ == "__main__":
    main()
