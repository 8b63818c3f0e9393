"""Compare one network with ensembles by mean cost and log loss on the test split.

    python benchmarks/ensembles.py digits [--seeds 12]
    python benchmarks/ensembles.py FOLDER --group '^(.+)_[^_]*$' --costs costs.yaml --degrade 6

For each seed, the data is split and the members are trained as `train.members: 5` does. One network is the first
member. Folds: the images outside test are divided into as many folds as there are members, each member leaves out
another fold, which chooses its epoch and fits its temperature, and the calibration is fitted on the predictions of all
folds. The decision is the calibrated one of least expected cost. Each seed is a few rows of benchmarks/ensembles.csv as
soon as it is measured; rows that exist are not measured again. Printed intervals are 95% intervals of Student's t over
seeds, of differences to one network, then to the ensemble on one split.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
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
from udc_model.decisions.matrix import cost_matrix
from udc_model.decisions.policy import fit_policy
from udc_model.files import Workspace
from udc_model.inference.classifier import TrainedClassifier
from udc_model.models import build_model
from udc_model.stages.prepare import prepare
from udc_model.training.hardware import keep_freed_memory, pick_hardware
from udc_model.training.loop import TrainingResult
from udc_model.training.members import member_params, train_members, trained_model
from udc_model.training.session import TrainingSession
from udc_model.training.setup import set_up

COLUMNS = ("data", "seed", "members", "split", "cost", "log_loss", "accuracy", "constant_cost")
Logits = NDArray[np.floating]


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
            if table.has(data=name, seed=seed, members=options.members, split="folds"):
                continue
            measure(table, name, _params(options, source, seed), Workspace(Path(scratch) / str(seed)))
    for baseline in (1, options.members):
        print(summary(pd.read_csv(options.output), baseline).to_string(index=False))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="digits, or a folder with a folder of images per class")
    parser.add_argument("--group", help="pattern of the file name; its first group (…) is the image's group")
    parser.add_argument("--costs", type=Path, help="YAML file with the section costs; default: each mistake costs 1")
    parser.add_argument("--degrade", type=int, metavar="N", help="reduce the images to N x N grey pixels before")
    parser.add_argument("--members", type=int, default=5)
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


def measure(table: ResultsTable, name: str, params: Params, workspace: Workspace) -> None:
    """Train and measure the members on one split, then on folds; append the rows."""
    prepare(params, workspace)
    dataset, members = PackedDataset.open(workspace.prepared), params.train.members
    constant = float(cost_matrix(params.costs, dataset.classes)[dataset.split("test").labels].mean(axis=0).min())

    measured = []  # appended at the end, so that a seed is complete or absent

    def append(count: int, split: str, calibration: PackedSplit, logits: Logits, test_logits: Logits) -> None:
        scores = score(params, dataset, calibration, logits, test_logits)
        measured.append((name, params.seed, count, split, *scores, constant))

    shared = train_members(lambda k: set_up(member_params(params, k), dataset), members)
    plain = [replace(result, temperature=1.0) for result in shared]
    calibration, test = dataset.split("calibration"), dataset.split("test")
    rows = [("one", shared[:count]) for count in dict.fromkeys((1, 3, members))]
    for split, results in [*rows, ("one, members not calibrated", plain)]:
        classifier = _classifier(params, dataset, results)
        append(len(results), split, calibration, classifier.logits_of_stored(calibration.images),
               classifier.logits_of_stored(test.images))  # fmt: skip

    pool = _joined([dataset.split(each) for each in ("train", "validation", "calibration")])
    folds = _folds(pool, members)
    results = train_members(lambda k: _leaving_out(params, dataset, pool, folds[k], k), members)
    outside = np.empty((len(pool), len(dataset.classes)))
    for fold, result in zip(folds, results, strict=True):
        logits = _classifier(params, dataset, [result]).logits_of_stored(_part(pool, fold).images)
        outside[fold] = log_softmax(logits.astype(np.float64) / result.temperature, axis=1)
    test_logits = _classifier(params, dataset, results).logits_of_stored(test.images)
    append(members, "folds", pool, outside, test_logits)
    for row in measured:
        table.append(*row)


def score(
    params: Params, dataset: PackedDataset, calibration: PackedSplit, logits: Logits, test_logits: Logits
) -> tuple[float, float, float]:
    """Mean cost, log loss and accuracy of the decisions on test, with the policy fitted on ``calibration``."""
    policy = fit_policy(params.evaluate, params.costs, dataset.classes, dataset.training_counts, logits,
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


def _leaving_out(
    params: Params, dataset: PackedDataset, pool: PackedSplit, fold: NDArray[np.intp], number: int
) -> TrainingSession:
    rest = np.setdiff1d(np.arange(len(pool)), fold)
    session = set_up(member_params(params, number), dataset)
    return replace(session, train_split=_part(pool, rest), validation_split=_part(pool, fold))


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
