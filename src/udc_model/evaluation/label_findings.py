"""What an evaluation reports about labels: suspicious ones with their images, and corrected ones of the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.data.applied_corrections import AppliedCorrection, read_applied
from udc_model.data.margins import Margins
from udc_model.data.packed import PackedDataset, PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.evaluation.label_quality import LabelEvidence, label_quality
from udc_model.evaluation.metrics import Scored
from udc_model.evaluation.report_images import thumbnail_uri
from udc_model.evaluation.verdict import cost_text

_SHOWN = 12  # images in the report
_RANKED = ("calibration", "validation", "test")  # splits with predictions


@dataclass(frozen=True)
class LabelFindings:
    """Suspicious labels, and what corrections changed in the result.

    Attributes
    ----------
    table : of `label_quality`.
    num_ranked : images whose label was ranked.
    suspicious : rows of the suspicious labels with the largest expected cost, each with its ``image`` as a data URI.
    num_suspicious : number of all suspicious labels.
    source : what the margins of training images were computed from; None if an earlier version trained.
    sentences : about corrected labels, without full stops.
    """

    table: pd.DataFrame
    num_ranked: int
    num_suspicious: int
    suspicious: list[dict[str, Any]] = field(default_factory=list)
    source: str | None = None
    sentences: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """How many labels are suspicious, as a sentence."""
        if not self.num_suspicious:
            return f"Nothing suspicious among {self.num_ranked:,} labels."
        verb = "is" if self.num_suspicious == 1 else "are"
        return f"{self.num_suspicious:,} of {self.num_ranked:,} labels {verb} suspicious."


def find_label_errors(
    dataset: PackedDataset,
    splits: Mapping[str, PackedSplit],
    logits: Mapping[str, NDArray[np.float32]],
    training: Path,
    record: Mapping[str, Any],
    policy: Policy,
) -> LabelFindings:
    """Rank the labels of all splits.

    Parameters
    ----------
    splits, logits : of validation, calibration and test.
    training : folder with the margins of the training images.
    record : ``training/record.json``.

    Raises
    ------
    UdcError
        The margins or the applied corrections are damaged.
    """
    ranked = {name: splits[name] for name in _RANKED if len(splits[name])}
    evidence = {name: LabelEvidence.of_predictions(logits[name], split.labels, policy.calibration, policy.logit_offset)
                for name, split in ranked.items()}  # fmt: skip
    counts = dataset.training_counts
    margins = Margins.load(training, sum(counts), len(counts))
    if margins is not None:
        ranked["train"] = dataset.split("train")
        evidence["train"] = LabelEvidence.of_training(margins)
    applied = read_applied(dataset.folder)
    reviewed = {each.path for each in applied if each.action != "group"}
    table = label_quality(ranked, evidence, policy.classes, np.array(policy.class_costs), reviewed)
    suspicious = table[table["is_suspicious"]]
    first = suspicious.sort_values("expected_cost", ascending=False, kind="stable")[:_SHOWN].to_dict("records")
    rows = [{str(name): value for name, value in row.items()}
            | {"image": thumbnail_uri(np.array(ranked[row["split"]].images[row["row"]]))} for row in first]  # fmt: skip
    return LabelFindings(table.drop(columns="row"), sum(map(len, ranked.values())), len(suspicious), rows,
                         record.get("margins") if margins is not None else None,
                         _review_sentences(applied))  # fmt: skip


def _review_sentences(applied: Sequence[AppliedCorrection]) -> list[str]:
    kept = sum(each.action == "keep" for each in applied)
    return [f"{kept:,} label(s) were confirmed (keep in data/corrections.csv)"] if kept else []


def with_test_corrections(findings: LabelFindings, dataset: PackedDataset, split: PackedSplit, scored: Scored,
                          policy: Policy) -> LabelFindings:  # fmt: skip
    """Add what corrections changed in the result on the test split, if any did."""
    applied = [each for each in read_applied(dataset.folder) if each.split == "test"]
    before = {each.path: each.before for each in applied if each.action == "relabel" and each.before in policy.classes}
    dropped = sum(each.action == "drop" for each in applied)
    sentences = list(findings.sentences)
    if before:
        labels = np.array([policy.classes.index(before[path]) if path in before else label
                           for path, label in zip(split.paths, split.labels, strict=True)], dtype=np.intp)  # fmt: skip
        old, new = (_cost_and_accuracy(targets, scored, policy) for targets in (labels, scored.targets))
        sentences.append(f"{len(before):,} test label(s) were corrected: mean cost {cost_text(old[0])} before and "
                         f"{cost_text(new[0])} after, accuracy {old[1]:.4f} before and {new[1]:.4f} after")  # fmt: skip
    if dropped:
        sentences.append(f"{dropped:,} image(s) were dropped from the test split; they are in no result")
    return replace(findings, sentences=sentences)


def _cost_and_accuracy(labels: NDArray[np.integer[Any]], scored: Scored, policy: Policy) -> tuple[float, float]:
    """Mean cost, and accuracy of the images for which a class was decided, of the same decisions under other labels."""
    weights = policy.weights(labels)
    weights = np.ones(len(labels)) if weights is None else weights
    is_class = scored.decided < scored.num_classes
    right = weights * (scored.decided == labels)
    return (float(np.average(scored.outcome_costs[labels, scored.decided], weights=weights)),
            float(right[is_class].sum() / weights[is_class].sum()) if is_class.any() else float("nan"))  # fmt: skip
