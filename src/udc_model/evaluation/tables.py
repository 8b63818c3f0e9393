"""The tables that evaluate writes: predictions, and all that the pictures are drawn from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.config import EvaluateParams
from udc_model.data.packed import PackedSplit
from udc_model.decisions.calibration import Calibration
from udc_model.decisions.policy import Decisions, Policy
from udc_model.errors import UdcError
from udc_model.evaluation.curves import (
    cost_curve,
    costliest_class,
    mean_curves,
    precision_recall_curves,
    referral_curve,
    reliability,
    roc_curves,
)
from udc_model.evaluation.intervals import Intervals
from udc_model.evaluation.metrics import Metrics, Scored, baselines_table, cost_by_pair, per_class_table

_LOGIT = "logit_"


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table with full precision and the same bytes on every system."""
    table.to_csv(path, index=False, lineterminator="\n")


def predictions_table(
    split: PackedSplit,
    decisions: Decisions,
    logits: NDArray[np.floating],
    policy: Policy,
) -> pd.DataFrame:
    """One row an image: path, SHA-256 of its file, group, true and predicted class, expected cost of the decision, cost
    paid, weight (how often it counts, see ``costs.prior``), raw logits."""
    names, outcomes = np.array(policy.classes, dtype=object), np.array(policy.outcomes, dtype=object)
    targets = split.labels
    weights = policy.weights(targets)
    table = {
        "path": split.paths,
        "sha256": split.digests,
        "group": split.groups,
        "true": names[targets],
        "predicted": outcomes[decisions.decided],
        "expected_cost": decisions.expected_cost,
        "cost": policy.outcome_costs[targets, decisions.decided],
        "weight": np.ones(len(targets)) if weights is None else weights,
    }
    return pd.DataFrame(table | {f"{_LOGIT}{name}": logits[:, k] for k, name in enumerate(policy.classes)})


def read_predictions(path: Path) -> pd.DataFrame:
    """A table that :func:`predictions_table` made, as it was; :class:`UdcError` if missing or no such table."""
    text = dict.fromkeys(("path", "sha256", "group", "true", "predicted"), str)
    try:
        table = pd.read_csv(path, dtype=text, keep_default_na=False)
    except FileNotFoundError:
        raise UdcError(f"{path}: no such file; run evaluate first (dvc repro)") from None
    except (OSError, ValueError) as error:
        raise UdcError(f"{path}: cannot be read: {error}") from None
    if missing := [column for column in (*text, "cost", "weight") if column not in table]:
        raise UdcError(f"{path}: has no column {', '.join(missing)}; is it a predictions.csv that evaluate wrote?")
    return table


def logits_of(table: pd.DataFrame, classes: list[str]) -> NDArray[np.float32]:
    """The raw logits (N, K) of a predictions table."""
    return table[[f"{_LOGIT}{name}" for name in classes]].to_numpy(dtype=np.float32)


def metrics_table(metrics: Metrics, intervals: Intervals) -> pd.DataFrame:
    """``metric``, ``value``, ``low``, ``high``."""
    rows = [(name, value, *intervals.get(name, (None, None))) for name, value in metrics.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high"]).astype(
        dict.fromkeys(["value", "low", "high"], float)
    )


def confusion(scored: Scored) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Images and money (K, D) by true class and decision."""
    counts = np.zeros(scored.outcome_costs.shape, dtype=np.int64)
    np.add.at(counts, (scored.targets, scored.decided), 1)
    money = np.zeros(scored.outcome_costs.shape)
    np.add.at(money, (scored.targets, scored.decided), scored.counted * scored.cost_paid)
    return counts, money


def write_confusion(folder: Path, scored: Scored, policy: Policy) -> None:
    """``confusion_matrix.json`` with counts and money, ``confusion.csv`` for `dvc plots`, ``cost_by_pair.csv``."""
    counts, money = confusion(scored)
    about = {"rows": "true", "columns": "decided", "classes": policy.classes, "outcomes": policy.outcomes}
    text = json.dumps(about | {"counts": counts.tolist(), "money": money.tolist()}, indent=2, ensure_ascii=False)
    (folder / "confusion_matrix.json").write_text(text + "\n", encoding="utf-8")
    names, outcomes = np.array(policy.classes, dtype=object), np.array(policy.outcomes, dtype=object)
    write_csv(
        pd.DataFrame({"true": names[scored.targets], "decided": outcomes[scored.decided]}), folder / "confusion.csv"
    )
    write_csv(per_class_table(scored.targets, scored.decided, policy.classes), folder / "per_class.csv")
    write_csv(cost_by_pair(scored, policy.classes, policy.outcomes), folder / "cost_by_pair.csv")
    write_csv(baselines_table(scored, policy.outcomes, policy.decision), folder / "rules.csv")


def write_curves(
    folder: Path, scored: Scored, policy: Policy, logits: NDArray[np.floating], evaluate: EvaluateParams
) -> None:
    """All curves of a split: ROC, precision-recall, reliability, cost, referral."""
    write_csv(roc_curves(scored, policy.classes), folder / "roc_by_class.csv")
    write_csv(precision_recall_curves(scored, policy.classes), folder / "precision_recall_by_class.csv")
    resamples = max(100, evaluate.resamples // 10)  # a band needs fewer than the end of an interval
    roc, pr, areas = mean_curves(scored, policy.classes, resamples, evaluate.confidence)
    for table, name in ((roc, "roc"), (pr, "precision_recall"), (areas, "areas")):
        write_csv(table, folder / f"{name}.csv")
    before = Calibration().probabilities(logits)
    write_csv(reliability(scored, before, evaluate.ece_bins, evaluate.confidence), folder / "reliability.csv")
    write_csv(referral_curve(scored, policy.refer), folder / "referral.csv")
    curve = cost_curve(scored, policy)
    if curve is not None:
        write_csv(curve, folder / "cost_curve.csv")
        (folder / "costliest_class.txt").write_text(
            policy.classes[costliest_class(scored.outcome_costs)], encoding="utf-8"
        )


def costliest_mistakes(predictions: pd.DataFrame, scored: Scored) -> pd.DataFrame:
    """Wrong decisions that cost something, the dearest and most certain first; ``row`` is the image's place."""
    top = scored.probabilities[np.arange(len(scored.targets)), np.minimum(scored.decided, scored.num_classes - 1)]
    wrong = (scored.decided != scored.targets) & (scored.decided < scored.num_classes) & (scored.cost_paid > 0)
    table = pd.DataFrame({
        "path": predictions["path"],
        "true": predictions["true"],
        "decided": predictions["predicted"],
        "probability": top,
        "cost": scored.cost_paid,
        "row": np.arange(len(top)),
    })[wrong]  # fmt: skip
    return pd.DataFrame(table.sort_values(["cost", "probability", "path"], ascending=[False, False, True]))
