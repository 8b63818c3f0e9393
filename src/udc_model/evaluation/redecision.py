"""Decide stored predictions again under other costs or another policy, without the model: ``udc decide``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from udc_model.config import LARGEST_COST, CostEntry, CostParams, EvaluateParams
from udc_model.data.packed import group_indices
from udc_model.decisions.actions import REFER, action_costs
from udc_model.decisions.calibration import Calibration
from udc_model.decisions.checks import group_counts
from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.matrix import list_classes, no_class
from udc_model.decisions.policy import POLICY_FILE, Policy, fit_guarantee, fit_policy
from udc_model.errors import UdcError
from udc_model.evaluation.evidence import warnings_of
from udc_model.evaluation.intervals import metric_intervals
from udc_model.evaluation.metrics import (
    ACTION_RATE,
    Scored,
    decision_metrics,
    miss_rate_metric,
    rate_metric,
    recall_metric,
    split_metrics,
)
from udc_model.evaluation.tables import (
    baselines_table,
    confusion,
    decision_columns,
    familiarity_in,
    logits_of,
    targets_of,
    write_csv,
)
from udc_model.files import atomic_folder, make_folder

_SWEEP_METRICS = (
    "mean_cost", "normalised_cost", "constant_mean_cost", "argmax_mean_cost", "accuracy", "referral_rate",
)  # fmt: skip
_MAX_VALUES = 10_000  # of a sweep
_LONGEST_STEM = 200  # bytes of a file name without its suffix
# Swept values whose file names need no digest to differ.
_SIMPLE = re.compile(r"[\w.-]+( [\w.-]+)*|true=[\w.-]+( [\w.-]+)*,predicted=[\w.-]+( [\w.-]+)*")


@dataclass(frozen=True)
class StoredDecisions:
    """A predictions table and its policy; None for a table alone, which has no policy."""

    predictions: pd.DataFrame
    policy: Policy | None


@dataclass(frozen=True)
class StoredEvaluation:
    """The policy of a result, and its predictions tables of the calibration split and another split."""

    policy: Policy
    calibration: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def calibration_counts(self) -> dict[str, int]:
        """Images of each class in the calibration split."""
        return {str(name): int(count) for name, count in self.calibration["true"].value_counts().items()}

    @property
    def calibration_groups(self) -> list[dict[str, int]] | None:
        """Images of each class in each group of the calibration split; None if no image has a group."""
        return group_counts(list(self.calibration["true"]), list(self.calibration["group"]))

    def decide(
        self, evaluate: EvaluateParams, costs: CostParams, calibration: Calibration | None = None
    ) -> tuple[Policy, Scored]:
        """Fit a policy on the stored calibration split and decide the other split.

        Parameters
        ----------
        calibration : a calibration fitted before; None fits ``evaluate.calibration``.

        Raises
        ------
        UdcError
            The costs do not fit the classes, or the calibration split is too small for the policy.
        """
        classes = self.policy.classes
        prior = self.policy.training_prior
        if prior is None:
            raise UdcError(f"{POLICY_FILE}: training_prior is missing; run evaluate (dvc repro)")
        policy = fit_policy(
            evaluate, costs, classes, TrainingFrequencies(prior, self.policy.learned_prior),
            logits_of(self.calibration, classes),
            targets_of(self.calibration, classes), group_indices(list(self.calibration["group"])), calibration,
        )  # fmt: skip
        stored = self.policy  # the logits are computed, whatever ``evaluate`` says of them
        policy = replace(policy, model_sha256=stored.model_sha256, flip_averaging=stored.flip_averaging,
                         precision=stored.precision,
                         familiarity=self._familiarity(costs.unfamiliar))  # fmt: skip
        decisions = policy.apply(logits_of(self.predictions, classes), familiarity_in(self.predictions))
        targets = targets_of(self.predictions, classes)
        groups = group_indices(list(self.predictions["group"]))
        weights = policy.weights(targets)
        return policy, Scored(
            targets, decisions.decided, decisions.probabilities, policy.outcome_costs, weights, groups,
            policy.action_names,
        )  # fmt: skip

    def _familiarity(self, unfamiliar: str) -> Familiarity | None:
        """The stored familiarity, and what ``costs.unfamiliar`` makes of it."""
        stored = self.policy.familiarity
        if stored is None and unfamiliar == "refer":
            raise UdcError(f"costs.unfamiliar: refer needs the familiarity of the images, which {POLICY_FILE} of an "
                           "earlier version does not have; run evaluate (dvc repro), or use warn")  # fmt: skip
        return None if stored is None else replace(stored, unfamiliar=unfamiliar)


def decided_by(policy: Policy, predictions: pd.DataFrame) -> pd.DataFrame:
    """A predictions table with the decisions of another policy; :class:`UdcError` if it lacks the logits."""
    decisions = policy.apply(logits_of(predictions, policy.classes), familiarity_in(predictions))
    return predictions.assign(**decision_columns(targets_of(predictions, policy.classes), decisions, policy))


def under_costs_of(costs: Policy, policy: Policy, calibration: pd.DataFrame | None) -> Policy:
    """A policy with its own calibration, decision and familiarity, and the costs, actions and frequencies of another.

    Parameters
    ----------
    calibration : predictions of the calibration split, on which a guarantee is fitted again; None without one.

    Raises
    ------
    UdcError
        The policies have other classes.
    """
    if costs.classes != policy.classes:
        raise UdcError(f"the results have other classes: {', '.join(costs.classes)}; {', '.join(policy.classes)}")
    unfamiliar = "refer" if costs.refers_unfamiliar else "warn"
    familiarity = None if policy.familiarity is None else replace(policy.familiarity, unfamiliar=unfamiliar)
    new = replace(policy, class_costs=costs.class_costs, refer=costs.refer, actions=costs.actions,
                  deployment_prior=costs.deployment_prior, familiarity=familiarity)  # fmt: skip
    return with_guarantee(new, calibration)


def with_guarantee(policy: Policy, calibration: pd.DataFrame | None) -> Policy:
    """A policy whose guarantee, if it has one, is fitted to predictions of the calibration split; None fits nothing."""
    if calibration is None:
        return policy
    logits, targets = logits_of(calibration, policy.classes), targets_of(calibration, policy.classes)
    return fit_guarantee(policy, logits, targets, group_indices(list(calibration["group"])))


@dataclass(frozen=True)
class Sweep:
    """Values of one cell of the cost matrix."""

    true: str
    predicted: str
    values: list[float]

    @classmethod
    def parse(cls, text: str) -> Sweep:
        """Parse ``true=A,predicted=B,values=0:20:0.5`` (first, last, step); :class:`UdcError` if it is malformed."""
        parts = re.split(r",(?=(?:true|predicted|values)=)", text)  # a class name may have a comma
        fields = dict(part.partition("=")[::2] for part in parts)
        try:
            first, last, step = map(float, fields.pop("values").split(":"))
            true, predicted = fields.pop("true"), fields.pop("predicted")
            if fields or step <= 0 or last < first:
                raise ValueError
        except (KeyError, ValueError):
            raise UdcError(f"--sweep {text}: must be like true=A,predicted=B,values=0:20:0.5 (first, last, step; "
                           "step above 0)") from None  # fmt: skip
        if not -LARGEST_COST <= first <= last <= LARGEST_COST:
            raise UdcError(f"--sweep {text}: costs must be from {-LARGEST_COST:g} to {LARGEST_COST:g}")
        count = np.floor((last - first) / step + 1e-9) + 1
        if not 1 <= count <= _MAX_VALUES:
            raise UdcError(f"--sweep {text}: has {count:,.0f} values, at most {_MAX_VALUES:,} are possible")
        n = int(count)
        return cls(true, predicted, [round(first + i * step, 12) for i in range(n)])

    def run(
        self, stored: StoredEvaluation, evaluate: EvaluateParams, costs: CostParams
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Decide at each cost of the cell.

        Returns
        -------
        One row per value (``cost`` of the cell, mean costs, accuracy, rate of each action, recall and miss rate of each
        class, ``images`` in the cell), and the confusion matrix at each (``cost``, ``true``, ``decided``, ``images``).
        """
        classes = stored.policy.classes
        if self.predicted == REFER and REFER not in classes:
            raise UdcError(f"--sweep predicted={REFER}: referral has one cost for all classes; decide at each of its "
                           "costs with `udc decide -S costs.refer=0.5`")  # fmt: skip
        for key, name in (("true", self.true), ("predicted", self.predicted)):
            if name not in classes and (key == "true" or name not in (costs.actions or {})):
                raise UdcError(
                    f"--sweep {key}={name}: {no_class(name, classes)}; its classes are {list_classes(classes)}"
                )
        rows, cells = [], []
        calibration = stored.decide(evaluate, costs)[0].calibration  # the costs do not change it
        for cost in self.values:
            policy, scored = stored.decide(evaluate, self._with_cost(costs, classes, cost), calibration)
            metrics = decision_metrics(scored, list(enumerate(policy.classes)))
            counts, _ = confusion(scored)
            columns = [
                *_SWEEP_METRICS,
                *(name for name in metrics if name.startswith((ACTION_RATE, "recall/", "miss_rate/"))),
            ]
            images = int(counts[policy.classes.index(self.true), policy.outcomes.index(self.predicted)])
            rows.append({"cost": cost} | {name: metrics[name] for name in columns} | {"images": images})
            for i, j in zip(*np.nonzero(counts), strict=True):
                cells.append((cost, policy.classes[i], policy.outcomes[j], int(counts[i, j])))
        return pd.DataFrame(rows), pd.DataFrame(cells, columns=["cost", "true", "decided", "images"])

    def _with_cost(self, costs: CostParams, classes: list[str], cost: float) -> CostParams:
        """The costs with another one in the cell."""
        if self.predicted in classes:
            entry = CostEntry(true=self.true, predicted=self.predicted, cost=cost)
            return costs.model_copy(update={"entries": [*costs.entries, entry]})
        by_class = dict(zip(classes, action_costs(costs, classes)[self.predicted], strict=True)) | {self.true: cost}
        return costs.model_copy(update={"actions": {**(costs.actions or {}), self.predicted: by_class}})


def decision_report(
    stored: StoredEvaluation,
    policy: Policy,
    scored: Scored,
    evaluate: EvaluateParams,
    order: Sequence[int] | None = None,
) -> str:
    """Text: number of decisions that differ from the stored ones, costs beside the baselines, recall of each class.

    Parameters
    ----------
    order : indices of the classes in the order of the text; None is the order of the policy.
    """
    named = list(enumerate(policy.classes))
    metrics = split_metrics(scored, evaluate.ece_bins, named)
    intervals = metric_intervals(scored, metrics, evaluate.ece_bins, named, evaluate.resamples, evaluate.confidence)
    changed = int((np.array(policy.outcomes, dtype=object)[scored.decided] != stored.predictions["predicted"]).sum())
    low, high = intervals["mean_cost"]

    def with_interval(name: str) -> str:
        low, high = intervals[name]
        return f"{metrics[name]:.4f} ({low:.4f} to {high:.4f})"

    lines = [
        f"{changed} of {len(scored.targets)} decisions change, mean cost {metrics['mean_cost']:.4f}, "
        f"{evaluate.confidence:.0%} interval {low:.4f} to {high:.4f}",
        "",
        baselines_table(scored, policy.outcomes, policy.decision).round(4).to_string(index=False, na_rep="-"),
        "",
        *(f"{'referral' if name == REFER else name} rate {metrics[rate_metric(name)]:.4f}"
          for name in dict.fromkeys((REFER, *policy.action_names))),
        *(f"{name}: recall {with_interval(recall_metric(name))}, miss rate {with_interval(miss_rate_metric(name))}"
          for name in (policy.classes if order is None else [policy.classes[k] for k in order])),
        *(f"note: {warning}" for warning in warnings_of(scored, policy.outcomes, evaluate.confidence)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def write_decisions(folder: Path, stored: StoredEvaluation, policy: Policy) -> None:
    """Write ``policy.json`` and ``predictions.csv``, which ``udc compare`` reads.

    Raises
    ------
    UdcError
        The folder has other files, as that of an evaluation has, whose policy this would replace.
    """
    own = {POLICY_FILE, "predictions.csv"}
    others = sorted({path.name for path in folder.iterdir()} - own) if folder.is_dir() else []
    if others:
        raise UdcError(f"{folder}: has other files, as {others[0]}; --out takes a new folder, or an earlier one")
    with atomic_folder(folder) as scratch:
        (scratch / POLICY_FILE).write_text(policy.to_json(), encoding="utf-8")
        write_csv(decided_by(policy, stored.predictions), scratch / "predictions.csv")


def write_sweep(
    sweep: Sweep, stored: StoredEvaluation, evaluate: EvaluateParams, costs: CostParams, folder: Path
) -> tuple[str, list[Path]]:
    """Run a sweep and write its table, plot and confusion matrices; returns the table as text and the files."""
    table, cells = sweep.run(stored, evaluate, costs)
    shown_classes = dict.fromkeys(name for name in (sweep.true, sweep.predicted) if name in stored.policy.classes)
    recalls = [recall_metric(name) for name in shown_classes]
    name = f"{sweep.true} as {sweep.predicted}"
    panels = [
        ("Cost", ["mean_cost", "argmax_mean_cost", "constant_mean_cost"]),
        ("Recall", recalls),
        (f"Images: {name}", ["images"]),
    ]
    swept = f"cost of {name}"
    files = write_sweep_files(folder, swept, table.rename(columns={"cost": swept}), panels)
    files.append(folder / f"{files[0].stem}_confusion.csv")
    write_csv(cells, files[-1])
    shown = table[["cost", "mean_cost", "normalised_cost", "argmax_mean_cost", *recalls, "images"]]
    return shown.round(4).to_string(index=False, na_rep="-"), files


def write_sweep_files(
    folder: Path, swept: str, table: pd.DataFrame, panels: Sequence[tuple[str, Sequence[str]]]
) -> list[Path]:
    """Write the table of a sweep as CSV and its plot as PNG, named after the swept value; returns both paths."""
    from udc_model.evaluation.plots import plot_sweep

    make_folder(folder)
    stem = re.sub(r"[^\w.-]+", "_", swept)
    if not _SIMPLE.fullmatch(swept) or len(stem.encode()) > _LONGEST_STEM:
        stem = f"{stem[:40]}-{hashlib.sha256(swept.encode()).hexdigest()[:8]}"
    files = [folder / f"{stem}.csv", folder / f"{stem}.png"]
    write_csv(table, files[0])
    plot_sweep(files[1], table, swept, panels)
    return files
