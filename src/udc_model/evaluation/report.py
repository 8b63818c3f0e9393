"""``report.html``: one self-contained page about a run, made from the evaluation folder. No script, nothing fetched."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from udc_model.decisions.policy import Policy

_LARGEST_MATRIX = 12  # classes up to which the cost matrix is shown whole
_LONGEST_TABLE = 24
_PICTURES = (
    ("confusion_cost", "Where the money goes: cost by true class (row) and decision (column)."),
    ("confusion_matrix", "The same in images; colours are shares of the true class."),
    ("confusion_shares", "Shares of each true class."),
    ("reliability", "Do the probabilities mean what they say? Accuracy against confidence, bins of equal mass."),
    ("cost_curve", "What the decisions would cost if the dear class were rarer or more frequent than here."),
    ("referral", "What remains to pay when the images of largest expected cost go to a person."),
    ("roc", "ROC of each class against the rest."),
    ("precision_recall", "Precision and recall of each class against the rest."),
    ("costliest_mistakes", "The dearest mistakes, the most certain first."),
)  # fmt: skip


def render_report(
    evaluation: Path,
    record: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, int]],
    findings: list[str],
    confidence: float,
    provenance: Mapping[str, str],
) -> str:
    """The page as HTML.

    Parameters
    ----------
    evaluation : finished folder with tables and pictures.
    record : ``training/record.json``.
    counts : images by split and class.
    findings : what is odd about the cost matrix.
    confidence : level of the intervals.
    provenance : names and values of what identifies the run.
    """
    policy = Policy.load(evaluation / "policy.json")
    tables = {
        name: pd.read_csv(evaluation / name / "metrics.csv").set_index("metric") for name in ("test", "validation")
    }
    environment = Environment(
        loader=PackageLoader("udc_model.evaluation", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = _number
    test = evaluation / "test"
    return environment.get_template("report.html.j2").render(
        name=record["data"]["name"],
        params=record["params"],
        record=record,
        counts=counts,
        splits=[split for split in ("train", "validation", "calibration", "test") if split in counts],
        policy=policy,
        calibration=_calibration(policy),
        matrix=policy.outcome_costs.tolist() if len(policy.classes) <= _LARGEST_MATRIX else None,
        dear_cells=_dear_cells(policy),
        findings=findings,
        percent=f"{confidence:.0%}",
        test={name: tuple(row) for name, row in zip(tables["test"].index, tables["test"].to_numpy(), strict=True)},
        validation={
            name: tuple(row)
            for name, row in zip(tables["validation"].index, tables["validation"].to_numpy(), strict=True)
        },
        rules=pd.read_csv(test / "rules.csv").to_dict("records"),
        pairs=_rows(test / "cost_by_pair.csv"),
        mistakes=_rows(test / "costliest_mistakes.csv"),
        pictures=[
            (name, about, base64.b64encode((test / f"{name}.png").read_bytes()).decode())
            for name, about in _PICTURES
            if (test / f"{name}.png").is_file()
        ],
        provenance=provenance,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    text = dict.fromkeys(("true", "decided", "path"), str)
    table = pd.read_csv(path, dtype=text, keep_default_na=False)
    return [{str(key): value for key, value in row.items()} for row in table[:_LONGEST_TABLE].to_dict("records")]


def _number(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.4f}"


def _calibration(policy: Policy) -> str:
    parameters = policy.calibration.parameters
    known = f" (T = {parameters['temperature']:.3f})" if "temperature" in parameters else ""
    return policy.calibration.method + known


def _dear_cells(policy: Policy) -> list[tuple[str, str, float]]:
    """The dearest prices of a matrix that is too large to show, with their classes."""
    prices = np.array(policy.class_costs)
    order = np.argsort(-prices, axis=None, kind="stable")[:_LONGEST_TABLE]
    cells = zip(*np.unravel_index(order, prices.shape), strict=True)
    return [(policy.classes[i], policy.classes[j], float(prices[i, j])) for i, j in cells]


def write_report(evaluation: Path, **about: Any) -> None:
    """Write ``report.html`` into an evaluation folder; parameters as :func:`render_report` takes them."""
    (evaluation / "report.html").write_text(render_report(evaluation, **about), encoding="utf-8")


def model_identity(record: Mapping[str, Any], sha256: str) -> dict[str, str]:
    """What identifies a result on any machine: seed, data, weights, hardware."""
    return {
        "seed": str(record["params"]["seed"]),
        "data, SHA-256": record["data"]["digest"],
        "weights, SHA-256": sha256,
        "trained on": json.dumps(record["hardware"], sort_keys=True).strip("{}").replace('"', ""),
    }
