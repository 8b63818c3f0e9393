"""``report.html``: one self-contained page about an evaluation; its only link is that to the report on the data.

A policy in the page forbids the browser to load or send anything, whatever the page contains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from numpy.typing import NDArray

from udc_model.data.stored_images import StoredImages
from udc_model.decisions.actions import REFER
from udc_model.decisions.policy import Policy
from udc_model.evaluation.explanations import Explanations
from udc_model.evaluation.label_findings import LabelFindings
from udc_model.evaluation.report_explanations import Section, explained_sections
from udc_model.evaluation.report_images import png_uri, sheet_uri, thumbnail_uri
from udc_model.evaluation.subgroups import SUBGROUPS, read_sentences, read_subgroup_table
from udc_model.evaluation.tables import read_warnings
from udc_model.evaluation.unfamiliar import LEAST_FAMILIAR, read_unfamiliar
from udc_model.evaluation.verdict import Verdict, cost_text, verdict
from udc_model.evaluation.what_if import WhatIf

Metric = tuple[float, float, float]  # value, low and high end of its interval; NaN where undefined

_LARGEST_MATRIX = 10  # classes; larger cost matrices are shown as a list of their costliest cells
_LONGEST_TABLE = 24  # rows
_MISTAKES = 12  # images
_PAIRS = 5  # rows of the table beside the confusion matrix
_FIGURES = {  # of the test split, by section: name, caption
    "cost": (("confusion_cost", "Total cost by true class and decision; of many classes, the costliest pairs. Colours "
              "compare costs within this result: between reports, compare numbers."),
             ("confusion_matrix", "Images by true class and decision; of many classes, the most frequent mistakes. "
              "Colours of a matrix are shares of the true class.")),
    "classes": (("recall_by_class", "Recall of each class with its interval, lowest first, or in the order of "
                 "costs.order if it is set; in brackets the number of test images."),),
    "probabilities": (
        ("reliability", "Accuracy minus confidence in bins of equally many images, before and after calibration."),
        ("threshold_reliability", "Classes with the most cost at stake: mean probability and observed share among the "
         "images near the threshold from which the class changes the decision."),
        ("cost_curve", "Cost if the costliest class were rarer or more frequent than in the test split."),
        ("referral", "Cost if the images of largest expected cost are referred to a person, by share referred."),
        ("roc", "ROC curves, one class against the rest: the classes of least area."),
        ("precision_recall", "Precision-recall curves, one class against the rest: the classes of least area."),
    ),
}  # fmt: skip


def render_report(
    evaluation: Path,
    training: Path,
    images: StoredImages | NDArray[np.uint8],
    record: Mapping[str, Any],
    data_report: str | None = None,
    explanations: Explanations | None = None,
    training_images: StoredImages | NDArray[np.uint8] | None = None,
    what_if: WhatIf | None = None,
    **facts: Any,
) -> str:
    """Render the report as HTML.

    Parameters
    ----------
    evaluation : complete folder with tables and figures.
    training : folder with the training curves and examples of augmented images.
    images : (N, S, S, C) prepared images of the test split.
    data_report : path of ``data_report.html`` from the folder of the page; None if there is none.
    explanations : of test images; None leaves them out.
    training_images : prepared images of the training split, of which explanations show some.
    what_if : what the page needs to decide under other costs; None leaves this part out.
    record, facts : the arguments of `report_contents`.
    """
    folder, contents = evaluation / "test", report_contents(evaluation, record, **facts)
    sections: list[Section] = []
    if explanations is not None and training_images is not None:
        sections = explained_sections(folder, contents["policy"].classes, explanations, images, training_images)
    return _template().render(
        contents,
        sections=sections,
        method=None if explanations is None else explanations.method,
        what_if=what_if and what_if.to_html(contents["test"], contents["per_class"], facts["confidence"]),
        mistakes=_mistakes(folder, images),
        least_familiar=_least_familiar(folder, images),
        figures={section: _figures(folder, figures) for section, figures in _FIGURES.items()},
        training=_training_figures(training),
        top_pairs=_PAIRS,
        data_report=data_report,
    )


def report_contents(
    evaluation: Path,
    record: Mapping[str, Any],
    *,
    counts: Mapping[str, Mapping[str, int]],
    findings: Sequence[str],
    confidence: float,
    provenance: Mapping[str, str],
    data_notes: Sequence[str] = (),
    labels: LabelFindings | None = None,
) -> dict[str, Any]:
    """What the report and the model card say about an evaluation, by the names in their templates.

    Parameters
    ----------
    evaluation : folder with the tables.
    record : ``training/record.json``.
    counts : images by split and class.
    findings : warnings about the cost matrix.
    confidence : level of the intervals.
    provenance : names and values that identify the run; ``MLflow run``, ``commit``, ``with uncommitted changes`` and
        ``DVC experiment`` decide the commands that reproduce it.
    data_notes : sentences about what was left out, carved or merged when the data was prepared.
    labels : suspicious and corrected labels; None leaves them out.
    """
    policy = Policy.load(evaluation / "policy.json")
    usual_cost, costliest_cells = _costliest_cells(policy)
    folder, level = evaluation / "test", f"{confidence:.0%}"
    confusion = json.loads((folder / "confusion_matrix.json").read_text(encoding="utf-8"))
    classes, outcomes = confusion["classes"], confusion["outcomes"]
    matrix = _ordered_costs(classes, outcomes, policy)
    test, validation = (_metrics(evaluation / name, policy) for name in ("test", "validation"))
    baselines = pd.read_csv(folder / "baselines.csv").to_dict("records")
    return {
        "name": record["data"]["name"],
        "verdict": _verdict(np.array(confusion["counts"]), policy, test, str(baselines[-1]["decision"]), level),
        "params": record["params"],
        "record": record,
        "counts": counts,
        "splits": [split for split in ("train", "validation", "calibration", "test") if split in counts],
        "policy": policy,
        "calibration": _calibration(policy),
        "classes": classes,
        "outcomes": outcomes,
        "matrix": matrix.tolist() if len(classes) <= _LARGEST_MATRIX else None,
        "usual_cost": usual_cost,
        "costliest_cells": costliest_cells,
        "findings": [*(f"Test split: {warning}." for warning in read_warnings(folder)), *findings],
        "data_notes": data_notes,
        "labels": labels,
        "level": level,
        "test": test,
        "validation": validation,
        "baselines": baselines,
        "pairs": _rows(folder / "cost_by_pair.csv"),
        "per_class": _rows(folder / "per_class.csv", longest=None),
        "subgroups": _subgroups(folder),
        "subgroup_sentences": read_sentences(folder, confidence),
        "unfamiliar": read_unfamiliar(folder),
        "comparable": {"data": record["data"]["digest"][:8], "costs": policy.costs_digest},
        "provenance": provenance,
    }


def _ordered_costs(classes: Sequence[str], outcomes: Sequence[str], policy: Policy) -> NDArray[np.float64]:
    """The costs (K, D) with classes and outcomes in this order."""
    rows, columns = [policy.classes.index(name) for name in classes], [policy.outcomes.index(name) for name in outcomes]
    return policy.outcome_costs[np.ix_(rows, columns)]


def _metrics(folder: Path, policy: Policy) -> dict[str, tuple[float, float, float]]:
    """Value and interval of each metric; without the referral rate where referral is not available."""
    table = pd.read_csv(folder / "metrics.csv").set_index("metric")[["value", "low", "high"]]
    if REFER not in policy.action_names:
        table = table.drop(index="referral_rate")
    values = table.to_numpy(dtype=float).tolist()
    return {str(name): (value, low, high) for name, (value, low, high) in zip(table.index, values, strict=True)}


def _verdict(
    counts: NDArray[np.int64], policy: Policy, test: Mapping[str, tuple[float, float, float]], constant: str, level: str
) -> Verdict:
    k = len(policy.classes)
    right, actions = int(np.trace(counts[:, :k])), dict(zip(policy.action_names, map(int, counts[:, k:].sum(axis=0)),
                                                             strict=True))  # fmt: skip
    return verdict(test, int(counts.sum()), right, actions, constant, policy.decision == "argmax", level)


def _mistakes(folder: Path, images: StoredImages | NDArray[np.uint8]) -> list[dict[str, Any]]:
    """The costliest mistakes, the first ones with their image."""
    rows = _rows(folder / "costliest_mistakes.csv")
    for row in rows[:_MISTAKES]:
        row["image"] = thumbnail_uri(np.array(images[row["row"]]))
    return rows


def _least_familiar(folder: Path, images: StoredImages | NDArray[np.uint8]) -> list[dict[str, Any]]:
    """The least familiar images; none if an earlier version wrote the folder."""
    path = folder / LEAST_FAMILIAR
    rows = _rows(path) if path.is_file() else []
    return [row | {"image": thumbnail_uri(np.array(images[row["row"]]))} for row in rows]


def _subgroups(folder: Path) -> list[dict[str, Any]]:
    """Rows of the table of subgroups, with ``recalls``: class, value and interval of each recall."""
    if not (folder / SUBGROUPS).is_file():
        return []
    table = read_subgroup_table(folder / SUBGROUPS)
    names = [str(column) for column in table if str(column).startswith("recall/") and f"{column}_low" in table]
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    return [row | {"recalls": {name.removeprefix("recall/"): [row[f"{name}{end}"] for end in ("", "_low", "_high")]
                               for name in names}} for row in rows]  # fmt: skip


def _figures(folder: Path, figures: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Name, caption and image of the figures that exist."""
    paths = [(name, caption, folder / f"{name}.png") for name, caption in figures]
    return [(name, caption, png_uri(path)) for name, caption, path in paths if path.is_file()]


def _training_figures(folder: Path) -> list[tuple[str, str, str]]:
    curves, augmented = folder / "curves.png", folder / "augmented.png"
    figures = []
    if curves.is_file():
        figures.append(("curves", "Loss and validation scores by epoch.", png_uri(curves)))
    if augmented.is_file():
        caption = ("Training images as the network gets them: the first of the first epoch, cropped, mirrored, "
                   "recoloured, erased and mixed as train.* says.")  # fmt: skip
        figures.append(("augmented", caption, sheet_uri(augmented)))
    return figures


def _rows(path: Path, longest: int | None = _LONGEST_TABLE) -> list[dict[str, Any]]:
    text = dict.fromkeys(("class", "true", "decided", "path"), str)
    table = pd.read_csv(path, dtype=text, keep_default_na=False)
    return [{str(key): value for key, value in row.items()} for row in table[:longest].to_dict("records")]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("udc_model.evaluation", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number_text, "cost": cost_text}
    return environment.get_template("report.html.j2")


def number_text(value: float | None) -> str:
    """A number with four decimals; a dash for None and NaN."""
    return "–" if value is None or np.isnan(value) else f"{value:.4f}"


def _calibration(policy: Policy) -> str:
    parameters = policy.calibration.parameters
    temperature = f" (T = {parameters['temperature']:.3f})" if "temperature" in parameters else ""
    return policy.calibration.method + temperature


def _costliest_cells(policy: Policy) -> tuple[str, list[tuple[str, str, float]]]:
    """What most mistakes cost, and true class, decision and cost of the costliest mistakes that cost something else."""
    costs = np.array(policy.class_costs)
    is_mistake = ~np.eye(len(costs), dtype=bool)
    values, numbers = np.unique(costs[is_mistake], return_counts=True)
    usual = values[numbers.argmax()]
    unusual = np.flatnonzero(is_mistake & (costs != usual))
    order = unusual[np.argsort(-costs.ravel()[unusual], kind="stable")][:_LONGEST_TABLE]
    text = f"{numbers.max():,} of the {is_mistake.sum():,} mistakes cost {usual:g}."
    if len(order) < len(unusual):
        text += f" The {len(order)} costliest of the others:"
    elif len(order):
        text += " The others:"
    text = " ".join([*(_action_cost(policy, name) for name in policy.action_names), text])
    cells = zip(*np.unravel_index(order, costs.shape), strict=True)
    return text, [(policy.classes[i], policy.classes[j], float(costs[i, j])) for i, j in cells]


def _action_cost(policy: Policy, name: str) -> str:
    """What an action costs, as a sentence."""
    costs = policy.outcome_costs[:, policy.outcomes.index(name)]
    amount = f"{costs.min():g}" if costs.min() == costs.max() else f"{costs.min():g} to {costs.max():g}"
    return f"The decision {name} costs {amount}."


def write_report(evaluation: Path, **contents: Any) -> None:
    """Write ``report.html`` into an evaluation folder; the parameters are those of `render_report`."""
    (evaluation / "report.html").write_text(render_report(evaluation, **contents), encoding="utf-8")


def model_identity(record: Mapping[str, Any], sha256: str, dvc_hash: str) -> dict[str, str]:
    """Names and values that identify a result on any machine: seed, data, weights, hardware."""
    return {
        "seed": str(record["params"]["seed"]),
        "data, SHA-256": record["data"]["digest"],
        "weights, SHA-256": sha256,
        "model folder in dvc.lock": dvc_hash,
        "trained on": json.dumps(record["hardware"], sort_keys=True).strip("{}").replace('"', ""),
    }
