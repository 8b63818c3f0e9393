"""``report.html``: one self-contained page about an evaluation, made from its folder, without scripts or links."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from udc_model.decisions.policy import Policy

_LARGEST_MATRIX = 12  # classes; larger cost matrices are shown as a list of their costliest cells
_LONGEST_TABLE = 24  # rows
_FIGURES = (
    ("confusion_cost", "Cost by true class (rows) and decision (columns)."),
    ("confusion_matrix", "Images by true class and decision; colours are shares of the true class."),
    ("confusion_shares", "Share of each true class by decision."),
    ("reliability", "Accuracy against confidence in bins of equal mass, before and after calibration."),
    ("cost_curve", "Cost at other frequencies of the costliest class."),
    ("referral", "Cost by referral rate if the images of largest expected cost are referred to a person."),
    ("roc", "ROC curve of each class against the rest."),
    ("precision_recall", "Precision-recall curve of each class against the rest."),
    ("costliest_mistakes", "The costliest mistakes; of equal cost, the most probable decision first."),
)  # fmt: skip


def render_report(
    evaluation: Path,
    record: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, int]],
    findings: list[str],
    confidence: float,
    provenance: Mapping[str, str],
    data_notes: Sequence[str] = (),
) -> str:
    """Render the report as HTML.

    Parameters
    ----------
    evaluation : complete folder with tables and figures.
    record : ``training/record.json``.
    counts : images by split and class.
    findings : warnings about the cost matrix.
    confidence : level of the intervals.
    provenance : names and values that identify the run.
    data_notes : sentences about what was left out, carved or merged when the data was prepared.
    """
    policy = Policy.load(evaluation / "policy.json")
    tables = {
        name: pd.read_csv(evaluation / name / "metrics.csv").set_index("metric") for name in ("test", "validation")
    }
    test = evaluation / "test"
    return _template().render(
        name=record["data"]["name"],
        params=record["params"],
        record=record,
        counts=counts,
        splits=[split for split in ("train", "validation", "calibration", "test") if split in counts],
        policy=policy,
        calibration=_calibration(policy),
        matrix=policy.outcome_costs.tolist() if len(policy.classes) <= _LARGEST_MATRIX else None,
        costliest_cells=_costliest_cells(policy),
        findings=findings,
        data_notes=data_notes,
        percent=f"{confidence:.0%}",
        test={name: tuple(row) for name, row in zip(tables["test"].index, tables["test"].to_numpy(), strict=True)},
        validation={
            name: tuple(row)
            for name, row in zip(tables["validation"].index, tables["validation"].to_numpy(), strict=True)
        },
        baselines=pd.read_csv(test / "baselines.csv").to_dict("records"),
        pairs=_rows(test / "cost_by_pair.csv"),
        mistakes=_rows(test / "costliest_mistakes.csv"),
        figures=[
            (name, caption, base64.b64encode((test / f"{name}.png").read_bytes()).decode())
            for name, caption in _FIGURES
            if (test / f"{name}.png").is_file()
        ],
        provenance=provenance,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    text = dict.fromkeys(("true", "decided", "path"), str)
    table = pd.read_csv(path, dtype=text, keep_default_na=False)
    return [{str(key): value for key, value in row.items()} for row in table[:_LONGEST_TABLE].to_dict("records")]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("udc_model.evaluation", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = _number
    return environment.get_template("report.html.j2")


def _number(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.4f}"


def _calibration(policy: Policy) -> str:
    parameters = policy.calibration.parameters
    temperature = f" (T = {parameters['temperature']:.3f})" if "temperature" in parameters else ""
    return policy.calibration.method + temperature


def _costliest_cells(policy: Policy) -> list[tuple[str, str, float]]:
    """True class, decision and cost of the costliest cells of the cost matrix."""
    costs = np.array(policy.class_costs)
    order = np.argsort(-costs, axis=None, kind="stable")[:_LONGEST_TABLE]
    cells = zip(*np.unravel_index(order, costs.shape), strict=True)
    return [(policy.classes[i], policy.classes[j], float(costs[i, j])) for i, j in cells]


def write_report(evaluation: Path, **contents: Any) -> None:
    """Write ``report.html`` into an evaluation folder; the parameters are those of `render_report`."""
    (evaluation / "report.html").write_text(render_report(evaluation, **contents), encoding="utf-8")


def model_identity(record: Mapping[str, Any], sha256: str) -> dict[str, str]:
    """Names and values that identify a result on any machine: seed, data, weights, hardware."""
    return {
        "seed": str(record["params"]["seed"]),
        "data, SHA-256": record["data"]["digest"],
        "weights, SHA-256": sha256,
        "trained on": json.dumps(record["hardware"], sort_keys=True).strip("{}").replace('"', ""),
    }
