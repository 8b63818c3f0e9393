"""Compare losses and policies by mean cost on the test split.

    python benchmarks/decisions.py                                  # digits, cost = distance
    python benchmarks/decisions.py FOLDER --group '^(.+)_[^_]*$' --costs costs.yaml --degrade 6

For each seed, all losses train once with the same split, initial weights and budget. Each policy then selects the epoch
of least validation cost (with --choose log_loss, of least validation log loss), and is calibrated on the calibration
split if it uses probabilities. The table has the mean test cost over seeds with its 95% interval, and the paired
difference to the default (cross entropy, temperature, least expected cost), both from Student's t over seeds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import t
from tqdm import tqdm

from udc_model.config import Params, load_params, validate_params
from udc_model.data.decode import decode
from udc_model.data.formats import SUFFIXES
from udc_model.data.packed import PackedDataset, PackedSplit
from udc_model.data.transforms import Decoding
from udc_model.decisions.calibration import negative_log_likelihood
from udc_model.decisions.decision import mean_cost
from udc_model.decisions.matrix import cost_matrix
from udc_model.decisions.policy import fit_policy
from udc_model.files import Workspace
from udc_model.models import build_model
from udc_model.native.memory import keep_freed_memory
from udc_model.stages.prepare import prepare
from udc_model.training.hardware import pick_hardware
from udc_model.training.loop import train_model
from udc_model.training.session import CostMonitor, TrainingSession
from udc_model.training.training_loss import TrainingLoss, training_frequencies

LOSSES = ("cross_entropy", "cross_entropy balanced", "focal", "class_balanced", "ldam", "logit_adjusted", "seesaw",
          "expected_cost", "cost_regularized", "cost_weighted")  # fmt: skip
POLICIES = {
    "argmax": {"calibration": "none", "decision": "argmax"},
    "least expected cost": {"calibration": "none", "decision": "min_expected_cost"},
    "calibrated, least expected cost": {"calibration": "temperature", "decision": "min_expected_cost"},
}
DEFAULT = ("cross_entropy", "calibrated, least expected cost")
Logits = dict[str, NDArray[np.float32]]


def main() -> None:
    """Measure and print the table; write it as CSV with --output."""
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    keep_freed_memory()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        source = None
        if options.folder is not None:
            source = options.folder.resolve()
            if options.degrade:
                source = degraded(source, Path(scratch) / "degraded", options.degrade)
        for seed in tqdm(range(options.first_seed, options.first_seed + options.seeds), desc="seeds", disable=None):
            params = _params(options, source, seed)
            workspace = Workspace(Path(scratch) / str(seed))
            prepare(params, workspace)
            dataset = PackedDataset.open(workspace.prepared)
            rows += _constant(params, dataset, seed)
            for loss in options.losses:
                rows += _measure(params, dataset, loss, seed, options.choose)
                table = pd.DataFrame(rows)
                if options.output:
                    table.to_csv(options.output, index=False)
    print(summarise(pd.DataFrame(rows)).to_string(index=False))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", help="folder with a folder of images per class; default: digits"
    )
    parser.add_argument("--group", help="pattern of the file name; its first group (…) is the image's group")
    parser.add_argument("--costs", type=Path, help="YAML file with the section costs; default: the one of params.yaml")
    parser.add_argument(
        "--degrade", type=int, metavar="N", help="first reduce the images to N x N grey pixels and enlarge them again"
    )
    parser.add_argument("--choose", choices=("cost", "log_loss"), default="cost",
                        help="select the epoch by validation cost of the policy or by validation log loss")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--losses", nargs="+", default=LOSSES, choices=LOSSES)
    parser.add_argument("--output", type=Path, help="CSV of every seed, loss and policy")
    return parser.parse_args()


def _params(options: argparse.Namespace, source: Path | None, seed: int) -> Params:
    raw: dict[str, Any] = load_params().model_dump()
    raw["seed"] = seed
    if source is not None:
        raw["data"] |= {"source": "folder", "path": str(source), "group": options.group}
        raw["costs"] |= {"preset": "uniform"}
    if options.costs:
        raw["costs"] |= yaml.safe_load(options.costs.read_text(encoding="utf-8"))
    if options.epochs:
        raw["train"]["epochs"] = options.epochs
    return validate_params(raw, "benchmark")


def degraded(source: Path, target: Path, pixels: int) -> Path:
    """A copy of a folder of images, each reduced to ``pixels`` x ``pixels`` grey values and enlarged to 32 x 32."""
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES):
        copy = (target / path.relative_to(source)).with_suffix(".png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        small = decode(path, Decoding(channels=1)).resize((pixels, pixels), Image.Resampling.BOX)
        small.resize((32, 32), Image.Resampling.BICUBIC).save(copy)
    return target


def _constant(params: Params, dataset: PackedDataset, seed: int) -> list[dict[str, Any]]:
    costs, targets = cost_matrix(params.costs, dataset.classes), dataset.split("test").labels
    best = float(costs[targets].mean(axis=0).min())
    return [
        {"seed": seed, "loss": "-", "policy": "best constant decision", "cost": best, "accuracy": np.nan, "epoch": 0}
    ]


def _measure(params: Params, dataset: PackedDataset, loss: str, seed: int, choose: str) -> list[dict[str, Any]]:
    params = _with_loss(params, loss)
    epochs = train_and_record(params, dataset)
    costs = cost_matrix(params.costs, dataset.classes)
    frequencies = training_frequencies(params, dataset.training_counts)
    labels = {name: dataset.split(name).labels for name in ("validation", "calibration", "test")}
    rows = []
    for policy_name, settings in POLICIES.items():
        evaluate = params.evaluate.model_copy(update=settings)
        candidates = []
        for number, logits in enumerate(epochs, 1):
            policy = fit_policy(evaluate, params.costs, dataset.classes, frequencies, logits["calibration"],
                            labels["calibration"])  # fmt: skip
            decided = {name: policy.apply(logits[name]).decided for name in ("validation", "test")}
            paid = {name: mean_cost(labels[name], decided[name], costs) for name in decided}
            accuracy = float((decided["test"] == labels["test"]).mean())
            log_loss = negative_log_likelihood(logits["validation"], labels["validation"])
            candidates.append((paid["validation"] if choose == "cost" else log_loss, number, paid["test"], accuracy))
        _, epoch, cost, accuracy = min(candidates)
        row = {"seed": seed, "loss": loss, "policy": policy_name, "cost": cost, "accuracy": accuracy, "epoch": epoch}
        rows.append(row)
    return rows


def _with_loss(params: Params, loss: str) -> Params:
    name, _, weighting = loss.partition(" ")
    loss_params = params.loss.model_dump() | {"name": name, "class_weights": weighting or None}
    return validate_params(params.model_dump() | {"loss": loss_params}, "benchmark")


def train_and_record(params: Params, dataset: PackedDataset) -> list[Logits]:
    """Train once; returns the logits of the other three splits after each epoch."""
    hardware, preprocessing = pick_hardware(params.train), dataset.preprocessing
    model = build_model(params.model, dataset.classes, params.seed)
    costs = torch.from_numpy(cost_matrix(params.costs, dataset.classes))
    splits = {name: dataset.split(name) for name in ("train", "validation", "calibration", "test")}
    epochs: list[Logits] = []
    n = len(splits["calibration"])

    def record(calibration_and_test: NDArray[np.float32], validation: NDArray[np.float32]) -> float:
        calibration, test = calibration_and_test[:n], calibration_and_test[n:]
        epochs.append({"calibration": calibration, "validation": validation, "test": test})
        return 0.0

    loss = TrainingLoss(params.loss, costs, dataset.training_counts)
    monitor = CostMonitor(_concatenated(splits["calibration"], splits["test"]), record)
    train_model(
        TrainingSession(
            model, loss, splits["train"], splits["validation"], preprocessing, params, hardware, cost_monitor=monitor
        )
    )
    return epochs


def _concatenated(a: PackedSplit, b: PackedSplit) -> PackedSplit:
    return PackedSplit(np.concatenate([a.images, b.images]), np.concatenate([a.labels, b.labels]),
                       a.paths + b.paths, a.groups + b.groups, a.digests + b.digests)  # fmt: skip


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean cost, interval over seeds, and the paired difference to the default, one row per loss and policy."""
    default = table[(table["loss"] == DEFAULT[0]) & (table["policy"] == DEFAULT[1])].set_index("seed")["cost"]
    rows = []
    for (loss, policy), measured in table.groupby(["loss", "policy"], sort=False):
        cost = measured.set_index("seed")["cost"]
        difference = cost - default
        rows.append({
            "loss": loss, "policy": policy, "mean cost": f"{cost.mean():.3f}", "95% interval": _interval(cost),
            "minus default": f"{difference.mean():+.3f}", "paired interval": _interval(difference),
            "accuracy": f"{measured['accuracy'].mean():.3f}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _interval(values: pd.Series) -> str:
    n = len(values)
    if n < 2:
        return "-"
    half = t.ppf(0.975, n - 1) * values.std() / np.sqrt(n)
    return f"{values.mean() - half:.3f} to {values.mean() + half:.3f}"


if __name__ == "__main__":
    main()
