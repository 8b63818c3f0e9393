"""The tables that evaluate writes: predictions, metrics, confusion, costs, and what the figures are drawn from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.config import EvaluateParams
from udc_model.csv_files import LineFeeds, csv_writer
from udc_model.data.background import computed_ahead, run_now
from udc_model.data.packed import PackedSplit, group_indices
from udc_model.decisions.calibration import Calibration
from udc_model.decisions.decision import expected_costs
from udc_model.decisions.familiarity import FAMILIARITY
from udc_model.decisions.policy import Decisions, Policy
from udc_model.errors import UdcError
from udc_model.evaluation.confusion_sums import ConfusionSums, agreement_metrics, cost_metrics
from udc_model.evaluation.curves import (
    class_curves,
    cost_curve,
    mean_curves,
    referral_curve,
    reliability,
)
from udc_model.evaluation.evidence import warnings_of
from udc_model.evaluation.intervals import Intervals, metric_intervals, share_interval
from udc_model.evaluation.metrics import Indices, Metrics, Scored, Terms, split_metrics
from udc_model.evaluation.subgroups import SUBGROUPS, subgroup_table
from udc_model.evaluation.thresholds import threshold_reliability
from udc_model.files import json_text

_LOGIT = "logit_"
_ROWS = 4096  # of predictions.csv that are formatted at a time
REFERRED, _MOST_REFERRED = "referred.csv", 12  # images whose decision is no class
WARNINGS = "warnings.json"  # sentences on why the metrics of a split say little


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table with full precision and the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        rows = cast("TextIO", LineFeeds(handle.write))  # of a stream, pandas calls `write` only
        table.to_csv(rows, index=False, lineterminator=LineFeeds.END)


def decision_columns(targets: Indices, decisions: Decisions, policy: Policy) -> dict[str, NDArray[Any]]:
    """The columns of `predictions_table` that depend on costs and policy; ``targets`` (N,) are class indices."""
    weights = policy.weights(targets)
    return {
        "predicted": np.array(policy.outcomes, dtype=object)[decisions.decided],
        "expected_cost": decisions.expected_cost,
        "cost_paid": policy.outcome_costs[targets, decisions.decided],
        "weight": np.ones(len(targets)) if weights is None else weights,
    }


def predictions_table(
    split: PackedSplit, decisions: Decisions, policy: Policy, familiarity: NDArray[np.float64] | None = None
) -> pd.DataFrame:
    """One row per image: path, SHA-256 of its file, group, true class, decision, expected cost of the decision, cost
    paid, weight (see ``costs.prior``), and the familiarity (N,) if there is one."""
    image_columns = {
        "path": split.paths,
        "sha256": split.digests,
        "group": split.groups,
        "true": np.array(policy.classes, dtype=object)[split.labels],
    }
    columns = image_columns | decision_columns(split.labels, decisions, policy)
    return pd.DataFrame(columns | ({} if familiarity is None else {FAMILIARITY: familiarity}))


def familiarity_in(table: pd.DataFrame) -> NDArray[np.float64] | None:
    """The familiarity (N,) of the images of a predictions table; None if an earlier version wrote it."""
    return table[FAMILIARITY].to_numpy(dtype=np.float64) if FAMILIARITY in table else None


def write_predictions(
    folder: Path,
    split: PackedSplit,
    logits: NDArray[np.float32],
    policy: Policy,
    distances: NDArray[np.float32] | None = None,
    run: Callable[..., None] = run_now,
) -> Decisions:
    """Decide the images of a split and write ``predictions.csv`` into ``folder``, which is created.

    The file has the columns of `predictions_table` and one raw logit per class.

    Parameters
    ----------
    run : runs the function that writes the file; see `udc_model.data.background`.
    """
    folder.mkdir()
    familiarity = policy.familiarity_of(distances)
    decisions = policy.apply(logits, familiarity)
    table = predictions_table(split, decisions, policy, familiarity)
    run(_write_predictions, folder / "predictions.csv", table, logits, policy.classes)
    return decisions


def _write_predictions(path: Path, table: pd.DataFrame, logits: NDArray[np.float32], classes: Sequence[str]) -> None:
    names = [f"{_LOGIT}{name}" for name in classes]
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv_writer(handle.write).writerow([*table.columns, *names])
        starts = range(0, len(table), _ROWS)
        chunks = [logits[start : start + _ROWS] for start in starts]
        for start, of_logits in zip(starts, computed_ahead(map(_logit_lines, chunks), 1), strict=True):
            rows = _csv_lines(table[start : start + _ROWS])
            handle.writelines(map("{},{}\n".format, rows, of_logits))


def _csv_lines(table: pd.DataFrame) -> list[str]:
    """The rows of a table as CSV, without ends of lines. A quoted value may contain some."""
    rows: list[str] = []
    csv_writer(rows.append).writerows(zip(*(table[name].tolist() for name in table), strict=True))
    return [row.removesuffix("\n") for row in rows]


def _logit_lines(logits: NDArray[np.float32]) -> list[str]:
    """The rows of logits (N, K) as CSV. Arrow writes the shortest digits that are read back exactly, as pandas does in
    three times the time."""
    import pyarrow
    from pyarrow.csv import WriteOptions, write_csv

    sink = pyarrow.BufferOutputStream()
    columns = [pyarrow.array(np.ascontiguousarray(column, dtype=np.float32)) for column in logits.T]
    table = pyarrow.table(columns, names=[str(k) for k in range(len(columns))])
    write_csv(table, sink, WriteOptions(include_header=False))
    return str(sink.getvalue().to_pybytes(), "ascii").splitlines()


def write_split(
    folder: Path,
    split: PackedSplit,
    logits: NDArray[np.float32],
    policy: Policy,
    evaluate: EvaluateParams,
    order: Sequence[int] | None = None,
    subgroups: Mapping[str, Sequence[str]] | None = None,
    distances: NDArray[np.float32] | None = None,
    run: Callable[..., None] = run_now,
) -> tuple[Scored, Metrics, Intervals]:
    """Decide and score the images of a split, and write its tables into ``folder``, which is created.

    Those of curves are `write_curves`'s.

    Parameters
    ----------
    order : indices of the classes in the order of tables and plots by class; None is the order of the policy.
    subgroups : of each image, by division, for `subgroup_table`.
    distances : (N,) to the training images; None for a policy without familiarity.
    run : as in `write_predictions`.
    """
    decisions = write_predictions(folder, split, logits, policy, distances, run)
    recall_of = [(policy.classes.index(name), name) for name in evaluate.recall_of]
    scored = Scored(split.labels, decisions.decided, decisions.probabilities, policy.outcome_costs,
                    policy.weights(split.labels), group_indices(split.groups), policy.action_names)  # fmt: skip
    metrics = split_metrics(scored, evaluate.ece_bins, recall_of)
    intervals = metric_intervals(scored, metrics, evaluate.ece_bins, recall_of, evaluate.resamples, evaluate.confidence)
    write_csv(metrics_table(metrics, intervals), folder / "metrics.csv")
    write_confusion(folder, scored, policy, evaluate.confidence, order)
    write_csv(costliest_mistakes(split.paths, scored, policy), folder / "costliest_mistakes.csv")
    if policy.action_names:
        write_csv(referred_images(split.paths, scored, policy), folder / REFERRED)
    if subgroups and any(map(any, subgroups.values())):
        table = subgroup_table(scored, subgroups, recall_of, policy.classes, evaluate.confidence)
        write_csv(table, folder / SUBGROUPS)
    warnings = warnings_of(scored, policy.outcomes, evaluate.confidence)
    (folder / WARNINGS).write_text(json.dumps(warnings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return scored, metrics, intervals


def read_warnings(folder: Path) -> list[str]:
    """The sentences on why the metrics of a split say little; none if an earlier version wrote the folder."""
    path = folder / WARNINGS
    return [str(text) for text in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def read_predictions(path: Path, *, with_logits: bool = True) -> pd.DataFrame:
    """Read a table that `predictions_table` made; version 0.1.0 called the column ``cost_paid`` ``cost``.

    Raises
    ------
    UdcError
        The file is missing, unreadable, damaged or another table.
    """
    text = dict.fromkeys(("path", "sha256", "group", "true", "predicted"), str)
    try:
        columns = None if with_logits else lambda name: not name.startswith(_LOGIT)
        table = pd.read_csv(path, dtype=text, keep_default_na=False, usecols=columns)
    except FileNotFoundError:
        raise UdcError(f"{path}: no such file; run evaluate first (dvc repro)") from None
    except (OSError, ValueError) as error:
        raise UdcError(f"{path}: cannot be read: {error}") from None
    if "cost_paid" not in table:
        table = table.rename(columns={"cost": "cost_paid"})
    if missing := [column for column in (*text, "cost_paid", "weight") if column not in table]:
        raise UdcError(f"{path}: has no column {', '.join(missing)}; is it a predictions.csv that evaluate wrote?")
    _check_numbers(path, table.drop(columns=list(text)))
    return table


def _check_numbers(path: Path, table: pd.DataFrame) -> None:
    """Check that all cells are finite numbers; :class:`UdcError` with the first row that has another value."""
    for column in table:
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float)
        if len(rows := np.flatnonzero(~np.isfinite(numbers))):
            raise UdcError(f"{path}: row {rows[0] + 1}: {column} is {table[column].iloc[rows[0]]!r}, not a number; "
                           "restore the file (dvc checkout evaluation), or run evaluate again")  # fmt: skip


def logits_of(table: pd.DataFrame, classes: list[str]) -> NDArray[np.float32]:
    """The raw logits (N, K) of a predictions table; :class:`UdcError` if it does not have them."""
    columns = [f"{_LOGIT}{name}" for name in classes]
    if missing := [column for column in columns if column not in table]:
        raise UdcError(f"predictions.csv: has no column {', '.join(missing[:3])} for classes of policy.json; run "
                       "`dvc repro` again")  # fmt: skip
    return table[columns].to_numpy(dtype=np.float32)


def targets_of(table: pd.DataFrame, classes: list[str]) -> NDArray[np.intp]:
    """The true class indices (N,) of a predictions table; :class:`UdcError` if a class is not among ``classes``."""
    index = {name: k for k, name in enumerate(classes)}
    names = table["true"].tolist()
    if unknown := sorted(set(names) - set(index)):
        raise UdcError(f"predictions.csv: policy.json has no class {unknown[0]!r}; run `dvc repro` again")
    return np.array([index[name] for name in names], dtype=np.intp)


def metrics_table(metrics: Metrics, intervals: Intervals) -> pd.DataFrame:
    """Columns ``metric``, ``value``, ``low``, ``high``."""
    rows = [(name, value, *intervals.get(name, (None, None))) for name, value in metrics.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high"]).astype(
        dict.fromkeys(["value", "low", "high"], float)
    )


def read_metrics(path: Path) -> dict[str, float | None]:
    """The values in a ``metrics.csv``, to the bit; None for a metric without a value.

    Raises
    ------
    UdcError
        The file is missing or another table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            return {row["metric"]: float(row["value"]) if row["value"] else None for row in csv.DictReader(handle)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UdcError(f"{path}: cannot be read as a table of metrics: {error!r}") from None


def per_class_table(targets: Indices, decided: Indices, classes: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each class; an image decided as no class counts against recall."""
    k = len(classes)
    hits = np.bincount(targets[targets == decided], minlength=k)
    support, decisions = np.bincount(targets, minlength=k), np.bincount(decided, minlength=k)[:k]
    return pd.DataFrame({
        "class": classes,
        "precision": hits / np.maximum(decisions, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + decisions, 1),
        "support": support,
    })  # fmt: skip


def recall_intervals(scored: Scored, confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high end, (K,) each, of the interval of each class's recall; see `share_interval`."""
    ends = []
    for k in range(scored.num_classes):
        is_class = scored.targets == k
        groups = None if scored.groups is None else scored.groups[is_class]
        ends.append(share_interval(scored.decided[is_class] == k, groups, confidence))
    low, high = np.array(ends).T
    return low, high


def cost_by_pair(scored: Scored, classes: list[str], outcomes: list[str]) -> pd.DataFrame:
    """Images, cost and share of the total cost of each (true, decided) with a cost, the costliest first."""
    names, decided = np.array(classes, dtype=object), np.array(outcomes, dtype=object)
    rows = pd.DataFrame({
        "true": names[scored.targets],
        "decided": decided[scored.decided],
        "images": 1,
        "cost": scored.image_weights * scored.cost_paid,
    })  # fmt: skip
    table = rows.groupby(["true", "decided"], as_index=False).sum()
    table = table[table["cost"] != 0].sort_values(["cost", "true", "decided"], ascending=[False, True, True])
    total = float(table["cost"].sum())
    return table.assign(share=table["cost"] / total if total else 0.0)


def baselines_table(scored: Scored, outcomes: list[str], decision: str) -> pd.DataFrame:
    """Mean cost, normalised cost and accuracy of the policy, of argmax and of the best constant decision.

    Parameters
    ----------
    outcomes : names of the columns of ``scored.outcome_costs``.
    decision : name of the policy's decision.
    """
    n, (k, d) = len(scored.targets), scored.outcome_costs.shape
    constant = int(np.average(scored.outcome_costs[scored.targets], axis=0, weights=scored.weights).argmin())
    decisions = {
        decision: scored.decided,
        "argmax": scored.probabilities.argmax(axis=1),
        f"always {outcomes[constant]}": np.full(n, constant),
    }
    rows = []
    for name, decided in decisions.items():
        terms = Terms(np.arange(n), scored.targets * d + decided, scored.image_weights, k * d)
        sums = ConfusionSums.of_cells(terms.total().reshape(k, d, 1), scored.outcome_costs)
        metrics = cost_metrics(sums) | agreement_metrics(sums)
        columns = ("mean_cost", "normalised_cost", "accuracy")
        rows.append({"decision": name} | {column: float(metrics[column][0]) for column in columns})
    return pd.DataFrame(rows)


def confusion(scored: Scored) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Images and weighted cost, (K, D) each, by true class and decision."""
    counts = np.zeros(scored.outcome_costs.shape, dtype=np.int64)
    np.add.at(counts, (scored.targets, scored.decided), 1)
    costs = np.zeros(scored.outcome_costs.shape)
    np.add.at(costs, (scored.targets, scored.decided), scored.image_weights * scored.cost_paid)
    return counts, costs


def write_confusion(
    folder: Path, scored: Scored, policy: Policy, confidence: float, order: Sequence[int] | None = None
) -> None:
    """Write ``confusion_matrix.json`` (counts and costs), ``confusion.csv`` for `dvc plots`, ``per_class.csv``,
    ``cost_by_pair.csv`` and ``baselines.csv``.

    Parameters
    ----------
    order : as in `write_split`.
    """
    rows = list(range(len(policy.classes))) if order is None else list(order)
    columns = [*rows, *range(len(rows), len(policy.outcomes))]
    counts, costs = (matrix[np.ix_(rows, columns)].tolist() for matrix in confusion(scored))
    names, outcomes = np.array(policy.classes, dtype=object), np.array(policy.outcomes, dtype=object)
    ordered, ordered_outcomes = names[rows].tolist(), outcomes[columns].tolist()
    axes = {"rows": "true", "columns": "decided", "classes": ordered, "outcomes": ordered_outcomes,
            "is_ordinal": order is not None}  # fmt: skip
    text = json_text(axes | {"counts": counts, "costs": costs})
    (folder / "confusion_matrix.json").write_text(text + "\n", encoding="utf-8")
    write_csv(
        pd.DataFrame({"true": names[scored.targets], "decided": outcomes[scored.decided]}), folder / "confusion.csv"
    )
    per_class = per_class_table(scored.targets, scored.decided, policy.classes)
    low, high = recall_intervals(scored, confidence)
    write_csv(per_class.assign(recall_low=low, recall_high=high).iloc[rows], folder / "per_class.csv")
    pairs = cost_by_pair(scored, policy.classes, policy.outcomes)
    if order is not None:  # pairs of equal cost
        places = {name: place for place, name in enumerate(ordered_outcomes)}
        by_place = pairs.assign(a=pairs["true"].map(places), b=pairs["decided"].map(places))
        pairs = by_place.sort_values(["cost", "a", "b"], ascending=[False, True, True]).drop(columns=["a", "b"])
    write_csv(pairs, folder / "cost_by_pair.csv")
    write_csv(baselines_table(scored, policy.outcomes, policy.decision), folder / "baselines.csv")


def write_curves(
    folder: Path, scored: Scored, policy: Policy, logits: NDArray[np.floating], evaluate: EvaluateParams,
    distances: NDArray[np.float32] | None = None,
) -> None:  # fmt: skip
    """Write the tables of all curves: ROC, precision-recall, reliability (also near thresholds), cost, referral.

    Parameters
    ----------
    distances : as in `write_split`.
    """
    for table, name in zip(class_curves(scored, policy.classes), ("roc", "precision_recall"), strict=True):
        write_csv(table, folder / f"{name}_by_class.csv")
    resamples = max(100, evaluate.resamples // 10)  # a pointwise band needs fewer than a published interval
    roc, pr, areas = mean_curves(scored, policy.classes, resamples, evaluate.confidence)
    for table, name in ((roc, "roc"), (pr, "precision_recall"), (areas, "areas")):
        write_csv(table, folder / f"{name}.csv")
    before = Calibration().probabilities(logits)
    write_csv(reliability(scored, before, evaluate.ece_bins, evaluate.confidence), folder / "reliability.csv")
    near = threshold_reliability(scored, policy.classes, policy.decision_costs, evaluate.confidence)
    write_csv(near, folder / "threshold_reliability.csv")
    write_csv(referral_curve(scored), folder / "referral.csv")
    curve = cost_curve(scored, policy, policy.familiarity_of(distances))
    if curve is not None:
        write_csv(curve, folder / "cost_curve.csv")


def costliest_mistakes(paths: Sequence[str], scored: Scored, policy: Policy) -> pd.DataFrame:
    """Wrong decisions with a cost, sorted by cost, then by probability; ``row`` is the image's index in the split."""
    names = np.array(policy.outcomes, dtype=object)
    top = scored.probabilities[np.arange(len(scored.targets)), np.minimum(scored.decided, scored.num_classes - 1)]
    is_wrong = (scored.decided != scored.targets) & (scored.decided < scored.num_classes) & (scored.cost_paid > 0)
    table = pd.DataFrame({
        "path": paths,
        "true": names[scored.targets],
        "decided": names[scored.decided],
        "probability": top,
        "cost": scored.cost_paid,
        "row": np.arange(len(top)),
    })[is_wrong]  # fmt: skip
    return pd.DataFrame(table.sort_values(["cost", "probability", "path"], ascending=[False, False, True]))


def referred_images(paths: Sequence[str], scored: Scored, policy: Policy) -> pd.DataFrame:
    """The images whose decision is no class, at most `_MOST_REFERRED`, those whose best class costs most first.

    ``expected_cost`` is that of the class of least expected cost, which a decision for a class would have cost;
    ``row`` is the image's index in the split.
    """
    rows = np.flatnonzero(scored.decided >= scored.num_classes)
    p = scored.probabilities[rows]
    cost = expected_costs(p, np.array(policy.class_costs)).min(axis=1)
    order = np.lexsort((rows, -cost))[:_MOST_REFERRED]
    rows, classes = rows[order], np.array(policy.classes, dtype=object)
    return pd.DataFrame({
        "path": [paths[int(row)] for row in rows],
        "true": classes[scored.targets[rows]],
        "decided": np.array(policy.outcomes, dtype=object)[scored.decided[rows]],
        "most_probable": classes[p[order].argmax(axis=1)],
        "expected_cost": cost[order],
        "row": rows,
    })  # fmt: skip
