"""Compare one network with ensembles by mean cost and log loss on the test split.

    python benchmarks/ensembles.py digits [--seeds 12]
    python benchmarks/ensembles.py FOLDER --group '^(.+)_[^_]*$' --costs costs.yaml --degrade 6

For each seed, the data is split and the members are trained as `train.members: 5` does; one network is the first
member. Folds: the images outside test are divided into as many folds as there are members, each member leaves out
another fold, which chooses its epoch and fits its temperature, and the calibration is fitted on the predictions of all
folds, or on a calibration split that is no part of the folds. The decision is the calibrated one of least expected
cost. The rows of a seed are in benchmarks/ensembles.csv as soon as they are measured; those that exist are not measured
again. Printed are the means over seeds, and differences to one network, then to the ensemble on one split, with 95%
intervals of Student's t over seeds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from results_table import ResultsTable
from scipy.special import log_softmax
from scipy.stats import t
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from decisions import degraded
from udc_model.config import Params, load_params, validate_params
from udc_model.data.packed import PackedDataset, PackedSplit, group_indices
from udc_model.decisions.decision import mean_cost
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.matrix import cost_matrix
from udc_model.decisions.policy import fit_policy
from udc_model.files import Workspace
from udc_model.inference.classifier import TrainedClassifier
from udc_model.models import build_model
from udc_model.native.memory import keep_freed_memory
from udc_model.stages.prepare import prepare
from udc_model.training.hardware import pick_hardware
from udc_model.training.loop import TrainingResult
from udc_model.training.members import member_params, train_members, trained_model
from udc_model.training.session import TrainingSession
from udc_model.training.setup import set_up

COLUMNS = ("data", "seed", "members", "split", "cost", "log_loss", "accuracy", "constant_cost")
Logits = NDArray[np.floating]
Scores = tuple[float, float, float]  # mean cost, log loss, accuracy
Row = tuple[int, str, Scores]  # members, how they split the images, scores


def main() -> None:
    """Measure what the table lacks, and print a summary."""
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    keep_freed_memory()
    table = ResultsTable(options.output, COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        source, name = None, "digits"
        if options.data != "digits":
            source = Path(options.data).resolve()
            name = source.name + (f" {options.degrade} px grey" if options.degrade else "")
            if options.degrade:
                source = degraded(source, Path(scratch) / source.name, options.degrade)
        for seed in tqdm(range(options.first_seed, options.first_seed + options.seeds), desc="seeds", disable=None):
            missing = [way for way in options.ways if not table.has(data=name, seed=seed, split=way)]
            if not missing:
                continue
            params, workspace = _params(options, source, seed), Workspace(Path(scratch) / str(seed))
            prepare(params, workspace)
            dataset = PackedDataset.open(workspace.prepared)
            targets = dataset.split("test").labels
            constant = float(cost_matrix(params.costs, dataset.classes)[targets].mean(axis=0).min())
            for way in missing:
                for members, split, scores in list(WAYS[way](params, dataset)):
                    table.append(name, seed, members, split, *scores, constant)
    for baseline in (1, options.members):
        print(summary(pd.read_csv(options.output), baseline).to_string(index=False))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="digits, or a folder with a folder of images per class")
    parser.add_argument("--group", help="pattern of the file name; its first group (…) is the image's group")
    parser.add_argument("--costs", type=Path, help="YAML file with the section costs; default: each mistake costs 1")
    parser.add_argument("--degrade", type=int, metavar="N", help="reduce the images to N x N grey pixels before")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="how the members split the images")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="values of the section train")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    return parser.parse_args()


def _params(options: argparse.Namespace, source: Path | None, seed: int) -> Params:
    raw: dict[str, Any] = load_params().model_dump()
    raw["seed"] = seed
    raw["train"] |= {"members": options.members}
    raw["train"] |= {name: yaml.safe_load(value) for name, value in (text.split("=") for text in options.set)}
    if source is not None:
        raw["data"] |= {"source": "folder", "path": str(source), "group": options.group}
        raw["costs"] |= {"preset": "uniform"}
    if options.costs:
        raw["costs"] |= yaml.safe_load(options.costs.read_text(encoding="utf-8"))
    return validate_params(raw, "benchmark")


def one_split(params: Params, dataset: PackedDataset) -> Iterator[Row]:
    """All members train on the split of the data, as the product does; the first one is the single network."""
    shared = train_members(lambda k: set_up(member_params(params, k), dataset), params.train.members)
    rows = [("one", shared[:count]) for count in sorted({1, min(3, params.train.members), params.train.members})]
    rows += [("one, members not calibrated", [replace(result, temperature=1.0) for result in shared])]
    calibration, test = dataset.split("calibration"), dataset.split("test")
    for name, results in rows:
        model = _classifier(params, dataset, results)
        logits, test_logits = (model.logits_of_stored(split.images) for split in (calibration, test))
        yield len(results), name, score(params, dataset, calibration, logits, test_logits)


def folds(params: Params, dataset: PackedDataset) -> Iterator[Row]:
    """Each member leaves out a fold of all images outside test; the calibration is fitted on their predictions."""
    pool = _joined([dataset.split(name) for name in ("train", "validation", "calibration")])
    indices, results = _train_on_folds(params, dataset, pool)
    outside = np.empty((len(pool), len(dataset.classes)))
    for fold, result in zip(indices, results, strict=True):
        logits = _classifier(params, dataset, [result]).logits_of_stored(_part(pool, fold).images)
        outside[fold] = log_softmax(logits.astype(np.float64) / result.temperature, axis=1)
    test_logits = _classifier(params, dataset, results).logits_of_stored(dataset.split("test").images)
    yield len(results), "folds", score(params, dataset, pool, outside, test_logits)


def folds_without_calibration(params: Params, dataset: PackedDataset) -> Iterator[Row]:
    """Each member leaves out a fold of the images of train and validation; the calibration split remains."""
    pool, calibration = _joined([dataset.split(name) for name in ("train", "validation")]), dataset.split("calibration")
    _, results = _train_on_folds(params, dataset, pool)
    model = _classifier(params, dataset, results)
    logits, test_logits = (model.logits_of_stored(split.images) for split in (calibration, dataset.split("test")))
    yield len(results), "folds, calibration kept", score(params, dataset, calibration, logits, test_logits)


WAYS = {"one": one_split, "folds": folds, "folds, calibration kept": folds_without_calibration}


def _train_on_folds(
    params: Params, dataset: PackedDataset, pool: PackedSplit
) -> tuple[list[NDArray[np.intp]], list[TrainingResult]]:
    indices = _folds(pool, params.train.members)

    def session_of(number: int) -> TrainingSession:
        rest = np.setdiff1d(np.arange(len(pool)), indices[number])
        session = set_up(member_params(params, number), dataset)
        return replace(session, train_split=_part(pool, rest), validation_split=_part(pool, indices[number]))

    return indices, train_members(session_of, params.train.members)


def score(
    params: Params, dataset: PackedDataset, calibration: PackedSplit, logits: Logits, test_logits: Logits
) -> Scores:
    """Mean cost, log loss and accuracy of the decisions on test, with the policy fitted on ``calibration``."""
    policy = fit_policy(params.evaluate, params.costs, dataset.classes,
                        TrainingFrequencies(dataset.training_counts), logits,
                        calibration.labels, group_indices(calibration.groups))  # fmt: skip
    labels, decisions = dataset.split("test").labels, policy.apply(test_logits)
    cost = mean_cost(labels, decisions.decided, cost_matrix(params.costs, dataset.classes))
    log_loss = -np.log(decisions.probabilities[np.arange(len(labels)), labels]).mean()
    return float(cost), float(log_loss), float((decisions.decided == labels).mean())


def _classifier(params: Params, dataset: PackedDataset, results: list[TrainingResult]) -> TrainedClassifier:
    device = pick_hardware(params.train).device
    model = trained_model(build_model(params.model, dataset.classes, 0), results)
    return TrainedClassifier(model.eval().to(device), dataset.preprocessing, device)


def _folds(pool: PackedSplit, n: int) -> list[NDArray[np.intp]]:
    """Indices of each fold; groups are not divided."""
    groups = np.array([group or f"/{i}" for i, group in enumerate(pool.groups)])
    splitter = StratifiedGroupKFold(n, shuffle=True, random_state=0)
    return [fold for _, fold in splitter.split(np.zeros(len(pool)), pool.labels, groups)]


def _joined(splits: list[PackedSplit]) -> PackedSplit:
    arrays = [np.concatenate([getattr(split, name)[:] for split in splits]) for name in ("images", "labels")]
    lists = [[each for split in splits for each in getattr(split, name)] for name in ("paths", "groups", "digests")]
    return PackedSplit(*arrays, *lists)


def _part(split: PackedSplit, indices: NDArray[np.intp]) -> PackedSplit:
    lists = ([values[i] for i in indices] for values in (split.paths, split.groups, split.digests))
    return PackedSplit(split.images[indices], split.labels[indices], *lists)


def summary(table: pd.DataFrame, baseline: int) -> pd.DataFrame:
    """Means over seeds beside those of the ensemble of ``baseline`` members on one split, with the same seeds."""
    rows = []
    for (data, members, split), measured in table.groupby(["data", "members", "split"], sort=False):
        is_reference = (table["data"] == data) & (table["members"] == baseline) & (table["split"] == "one")
        reference = table[is_reference].set_index("seed")
        row = {"data": data, "members": members, "split": split, "splits": len(measured)}
        for name in ("cost", "log_loss"):
            values = measured.set_index("seed")[name]
            expected = reference[name].loc[values.index]
            row |= {name: f"{values.mean():.4f}", f"{name} ratio": f"{values.mean() / expected.mean():.3f}",
                    f"{name} difference": _interval(values - expected)}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def _interval(values: pd.Series) -> str:
    half = t.ppf(0.975, max(1, len(values) - 1)) * values.std() / np.sqrt(len(values))
    return f"{values.mean():+.4f} ({values.mean() - half:+.4f} to {values.mean() + half:+.4f})"


if __name__ == "__main__":
    main()
