"""How well unfamiliar images are recognised: the distance that is used beside others, and what it costs.

    python benchmarks/familiarity.py recognise FOLDER frozen --cells CELLS --weights WEIGHTS --seeds 0 1 2
    python benchmarks/familiarity.py recognise FOLDER scratch --cells CELLS --seeds 0 1 2
    python benchmarks/familiarity.py recognise FOLDER frozen --cells CELLS --weights WEIGHTS --without metal
    python benchmarks/familiarity.py time --rounds 20
    python benchmarks/familiarity.py summary

FOLDER has a folder of photographs per class, CELLS one of other images. `frozen` trains the head of EfficientNet-Lite0
(see photographs.py for the weights), `scratch` a small ResNet from random weights for 30 epochs. Own images are those
of the test split; intruders are digits, cells, crops of scikit-learn's photographs, one colour, noise, the test images
upside down, and with `--without` the images of a class that the network has not seen. For each score the table has the
area under the ROC curve (own test images against intruders, 0.5 is chance) and the share of images flagged at 1 %. Of
own images, that is the mean over 200 divisions of the images that the network was not trained on into calibration and
test.

`time` compares predictions with and without distances, in turn, in CPU seconds of the process; its rows are in
familiarity_time.csv.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from photographs import TIMM_NAME, params_of, prepared
from PIL import Image
from results_table import ResultsTable
from scipy.special import logsumexp
from scipy.stats import rankdata

from udc_model.config import ModelParams, Params, TimmParams
from udc_model.data.packed import PackedDataset
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.familiarity import Familiarity, evenly_spaced
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.feature_statistics import MOST_REFERENCES, FeatureStatistics, directions_of, shrunk_covariance
from udc_model.models import build_model
from udc_model.native.memory import keep_freed_memory
from udc_model.training.members import train_members, trained_model
from udc_model.training.setup import set_up

COLUMNS = ("network", "without", "seed", "score", "images", "number", "auroc", "flagged")
TIMES = ("network", "image_size", "batch", "round", "seconds", "seconds_with_distances")
SETTINGS = {
    "frozen": ["model.preset=", "model.model_type=timm", "model.timm.name=tf_efficientnet_lite0"],
    "scratch": ["data.image_size=64", "train.epochs=30", "train.learning_rate=0.003", "model.resnet.depths=[1,1,1]",
                "model.resnet.hidden_sizes=[32,64,128]", "model.resnet.embedding_size=32",
                "model.resnet.layer_type=basic"],
}  # fmt: skip
NEIGHBOURS = (10, 50)
DIVISIONS = 200
Floats = np.ndarray
Score = Callable[[Floats, Floats], Floats]  # logits (N, K) and features (N, D) to (N,), large for strange images


def intruders(preprocessing: Preprocessing, own: Floats, cells: Path) -> Iterator[tuple[str, Floats]]:
    """Name and prepared images of each set that is not of the data."""
    from sklearn.datasets import load_digits, load_sample_images

    rng = np.random.default_rng(0)

    def stored(images: Iterator[Image.Image]) -> Floats:
        return np.stack([preprocessing.to_stored(image.convert("RGB")) for image in images])

    yield "digits", stored(Image.fromarray((x * 15.9).astype(np.uint8)) for x in load_digits().images[:300])
    files = sorted(cells.glob("*/*.jpg"))
    yield "cells", stored(Image.open(files[i]) for i in rng.permutation(len(files))[:300])
    yield "photographs", stored(crop(photograph, rng) for photograph in load_sample_images().images for _ in range(100))
    yield (
        "one colour",
        stored(Image.new("RGB", (224, 224), tuple(map(int, rng.integers(0, 256, 3)))) for _ in range(100)),
    )
    yield "noise", stored(Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(100))
    yield "upside down", np.ascontiguousarray(own[:, ::-1])


def crop(photograph: Floats, rng: np.random.Generator) -> Image.Image:
    """A random square of a photograph."""
    side = rng.integers(120, 400)
    top, left = rng.integers(0, photograph.shape[0] - side), rng.integers(0, photograph.shape[1] - side)
    return Image.fromarray(photograph[top : top + side, left : left + side])


def scores_of(features: Floats, labels: Floats, k: int) -> dict[str, Score]:
    """Each score, fitted on features (n, D) of training images with these classes (n,)."""
    unit = lambda f: f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)  # noqa: E731
    lee = by_class(features, labels, k)
    alone = by_class(features, np.zeros(len(labels), int), 1)
    scores: dict[str, Score] = {
        "distance": one_gaussian(directions_of, features),
        "distance, a mean for each class": with_direction(by_class(directions_of(features), labels, k)),
        "distance of unit features": one_gaussian(unit, features),
        "Mahalanobis (Lee 2018)": lambda z, f: lee(f).min(axis=1),
        "relative Mahalanobis (Ren 2021)": lambda z, f: (lee(f) - alone(f)).min(axis=1),
        "maximum softmax": lambda z, f: -np.exp(z - logsumexp(z, axis=1, keepdims=True)).max(axis=1),
        "energy (Liu 2020)": lambda z, f: -logsumexp(z, axis=1),
    }
    bank = unit(features)
    for count in NEIGHBOURS:
        scores[f"{count} nearest (Sun 2022)"] = lambda z, f, count=count: np.sort(2 - 2 * unit(f) @ bank.T, axis=1)[
            :, count - 1
        ]
    return scores


def by_class(features: Floats, labels: Floats, k: int) -> Callable[[Floats], Floats]:
    """Squared Mahalanobis distances (N, k) to the means of the classes, with one covariance."""
    means = np.stack([features[labels == c].mean(axis=0) for c in range(k)])
    whitening = np.linalg.inv(np.linalg.cholesky(shrunk_covariance(features - means[labels]))).T
    centres = means @ whitening

    def distances(f: Floats) -> Floats:
        whitened = f @ whitening
        return np.stack([((whitened - centre) ** 2).sum(axis=1) for centre in centres], axis=1)

    return distances


def with_direction(distances: Callable[[Floats], Floats]) -> Score:
    """The least of the distances of directions."""
    return lambda z, f: distances(directions_of(f)).min(axis=1)


def one_gaussian(transform: Callable[[Floats], Floats], features: Floats) -> Score:
    """The distance of transformed features to their mean."""
    distances = by_class(transform(features), np.zeros(len(features), int), 1)
    return lambda z, f: distances(transform(f))[:, 0]


def auroc(own: Floats, others: Floats) -> float:
    """Area under the ROC curve: how often another image has a higher score than an own one."""
    ranks = rankdata(np.concatenate([own, others]))[len(own) :].sum()
    return float((ranks - len(others) * (len(others) + 1) / 2) / (len(own) * len(others)))


def flagged(calibration: Floats, values: Floats) -> float:
    """Share of flagged images."""
    familiarity = Familiarity("", 1, 1, np.sort(calibration).tolist())
    return float(familiarity.is_unfamiliar(familiarity.of(values)).mean())


def flagged_own(held_out: Floats, calibration: int, test: int) -> float:
    """Mean share of flagged own images over divisions of the images that the network was not trained on."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(DIVISIONS):
        order = rng.permutation(len(held_out))
        shares.append(flagged(held_out[order[:calibration]], held_out[order[calibration : calibration + test]]))
    return float(np.mean(shares))


@contextmanager
def data_folder(folder: Path, without: str) -> Iterator[Path]:
    """The folder, or one with links to its classes but one."""
    if not without:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        for path in folder.iterdir():
            if path.is_dir() and path.name != without:
                (Path(scratch) / path.name).symlink_to(path)
        yield Path(scratch)


def recognise(options: argparse.Namespace, table: ResultsTable) -> None:
    """Train with each split, and compare the scores; one row for each score and set of images."""
    for seed in options.seeds:
        if table.has(network=options.network, without=options.without, seed=seed):
            continue
        with data_folder(options.folder.resolve(), options.without) as folder:
            settings = [*SETTINGS[options.network], f"data.split_seed={seed}", f"seed={seed}"]
            if options.weights:
                settings.append(f"model.weights={options.weights.resolve()}")
            params = params_of(folder, "frozen-features" if options.network == "frozen" else "defaults", settings)
            with prepared(params) as dataset:
                measure(options, seed, params, dataset, table)


def measure(
    options: argparse.Namespace, seed: int, params: Params, dataset: PackedDataset, table: ResultsTable
) -> None:
    """Train, and compare the scores."""
    session = set_up(params, dataset)
    results = train_members(lambda _: session, 1)
    model = trained_model(session.model, results).eval()
    classifier = TrainedClassifier(model, session.preprocessing, session.hardware.device)

    def outputs(images: Floats) -> tuple[Floats, Floats]:
        return classifier.logits_of_stored(images), classifier.features_of_stored(images)[:, 0].astype(float)

    train = dataset.split("train")
    rows = evenly_spaced(len(train), MOST_REFERENCES)
    scores = scores_of(outputs(train.images[rows])[1], train.labels[rows], len(dataset.classes))
    splits = {name: dataset.split(name) for name in ("validation", "calibration", "test")}
    own = {name: outputs(split.images) for name, split in splits.items()}
    accuracy = float((own["test"][0].argmax(axis=1) == splits["test"].labels).mean())
    print(f"{options.network} {options.without} seed {seed}: accuracy {accuracy:.4f}")  # noqa: T201
    sets = dict(
        intruders(
            classifier.preprocessing, np.asarray(splits["test"].images[np.arange(len(splits["test"]))]), options.cells
        )
    )
    if options.without:
        unseen = sorted((options.folder / options.without).iterdir())
        sets[options.without] = np.stack(
            [classifier.preprocessing.to_stored(Image.open(x).convert("RGB")) for x in unseen]
        )
    strange = {name: outputs(images) for name, images in sets.items()}
    for name, score in scores.items():
        of_own = {split: score(*values) for split, values in own.items()}
        n, m = len(of_own["calibration"]), len(of_own["test"])
        share = flagged_own(np.concatenate(list(of_own.values())), n, m)
        table.append(options.network, options.without, seed, name, "own", m, 0.5, share)
        for intruder, values in strange.items():
            of_others = score(*values)
            area, share = auroc(of_own["test"], of_others), flagged(of_own["calibration"], of_others)
            table.append(options.network, options.without, seed, name, intruder, len(of_others), area, share)


def measure_time(rounds: int, table: ResultsTable) -> None:
    """CPU seconds of predictions with and without distances, in turn."""
    from udc_model.config import ResNetParams

    networks = {
        TIMM_NAME: (ModelParams(model_type="timm", timm=TimmParams(name=TIMM_NAME)), 224, 64),
        "resnet-50": (ModelParams(preset="resnet-50"), 224, 32),
        "small": (ModelParams(resnet=ResNetParams(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1],
                                                  layer_type="basic")), 64, 256),
    }  # fmt: skip
    for name, (params, size, batch) in networks.items():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        both = []
        for _ in range(2):
            model = build_model(params, ["a", "b"], 0).eval()
            both.append(TrainedClassifier(model, Preprocessing(size), torch.device("cpu"), precision="fp32_fused"))
        without, with_distances = both
        with_distances.use_statistics(FeatureStatistics.fit(without.features_of_stored(images)))
        for each in both:
            each.outputs_of_stored(images)
        for number in range(rounds):
            if table.has(network=name, round=number):
                continue
            order = (without, with_distances) if number % 2 else (with_distances, without)
            seconds = {id(each): cpu_seconds(each, images) for each in order}
            table.append(name, size, batch, number, seconds[id(without)], seconds[id(with_distances)])


def cpu_seconds(classifier: TrainedClassifier, images: Floats) -> float:
    """CPU seconds of this process for one batch."""
    started = time.process_time()
    classifier.outputs_of_stored(images)
    return time.process_time() - started


def summary(table: ResultsTable, times: ResultsTable) -> None:
    """Print the mean over the seeds of each score and set, and the median of the time ratios."""
    groups: dict[tuple[str, str], dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for row in table.rows:
        sets = groups.setdefault((row["network"], row["without"]), {}).setdefault(row["score"], {})
        sets.setdefault(row["images"], []).append((float(row["auroc"]), float(row["flagged"])))
    for (network, without), scores in groups.items():
        names = list(next(iter(scores.values())))
        print(f"\n{network} {without and f'without {without}'}: AUROC (flagged)\n| score | {' | '.join(names)} |")  # noqa: T201
        for score, sets in scores.items():
            cells = [np.mean(sets[name], axis=0) for name in names]
            print(f"| {score} | " + " | ".join(f"{area:.3f} ({share:.1%})" for area, share in cells) + " |")  # noqa: T201
    for network in dict.fromkeys(row["network"] for row in times.rows):
        ratios = sorted(float(row["seconds_with_distances"]) / float(row["seconds"])
                        for row in times.rows if row["network"] == network)  # fmt: skip
        n = len(ratios)
        low, high = ratios[max(0, int(n / 2 - 0.98 * n**0.5))], ratios[min(n - 1, int(n / 2 + 0.98 * n**0.5))]
        print(f"{network}: {median(ratios):.4f} times the CPU time, 95% interval {low:.4f} to {high:.4f}, {n} rounds")  # noqa: T201


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("recognise")
    part.add_argument("folder", type=Path)
    part.add_argument("network", choices=tuple(SETTINGS))
    part.add_argument("--cells", type=Path, required=True)
    part.add_argument("--weights", type=Path)
    part.add_argument("--without", default="")
    part.add_argument("--seeds", type=int, nargs="+", default=[0])
    part = parts.add_parser("time")
    part.add_argument("--rounds", type=int, default=20)
    parts.add_parser("summary")
    options = parser.parse_args()
    keep_freed_memory()
    table = ResultsTable(options.output, COLUMNS)
    times = ResultsTable(options.output.with_name(f"{options.output.stem}_time.csv"), TIMES)
    match options.part:
        case "recognise":
            recognise(options, table)
        case "time":
            measure_time(options.rounds, times)
        case "summary":
            summary(table, times)


if __name__ == "__main__":
    main()
