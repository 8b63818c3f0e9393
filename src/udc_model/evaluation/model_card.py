"""``README.md``: the model card of an evaluation, in the format of the Hugging Face hub, with its metadata."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from udc_model.config import Params
from udc_model.config.yaml12 import as_yaml
from udc_model.evaluation.metrics import ACTION_RATE
from udc_model.evaluation.report import Metric, number_text, report_contents
from udc_model.evaluation.verdict import UNIT, cost_text
from udc_model.files import MAX_JSON, read_bytes

MODEL_CARD = "README.md"  # in the evaluation folder
_METRICS = ("mean_cost", "normalised_cost", "accuracy", "balanced_accuracy", "macro_f1", "log_loss",
            "expected_calibration_error", "referral_rate")  # fmt: skip
_MOST_CLASSES = 24  # rows of the table of images
_WEAKEST = 3  # classes


def render_card(evaluation: Path, record: Mapping[str, Any], **facts: Any) -> str:
    """Render the model card as Markdown.

    Parameters
    ----------
    record, facts : the arguments of `report_contents`.
    """
    contents = report_contents(evaluation, record, **facts)
    params, level = contents["params"], contents["level"]
    rates = [name for name in contents["test"] if name.startswith(ACTION_RATE)]
    metrics = {name: contents["test"][name] for name in (*_METRICS, *rates) if name in contents["test"]}
    model = params["model"]["preset"] or params["model"]["model_type"]
    extra = {
        "metadata": _metadata(contents["name"], model, record["data"]["digest"], metrics),
        "model": model,
        "counts_by_class": _counts(contents["counts"], contents["splits"]),
        "hardware": ", ".join(f"{name} {value}" for name, value in record["hardware"].items()),
        "changed": _changed(params, Params().model_dump()),
        "metrics": metrics,
        "unit": UNIT,
        "weakest": _weakest(contents["per_class"], level),
    }
    return _environment().get_template("model_card.md.j2").render(contents | extra)


def write_card(evaluation: Path, record: Mapping[str, Any], **facts: Any) -> None:
    """Write `MODEL_CARD` into an evaluation folder; the parameters are those of `render_card`."""
    (evaluation / MODEL_CARD).write_text(render_card(evaluation, record, **facts), encoding="utf-8")


def read_card(evaluation: Path) -> str:
    """The model card in an evaluation folder; empty if there is none."""
    path = evaluation / MODEL_CARD
    return read_bytes(path, "run evaluate (dvc repro)", MAX_JSON).decode() if path.exists() else ""


def _metadata(name: str, model: str, digest: str, metrics: Mapping[str, Metric]) -> str:
    """The block of metadata, see https://huggingface.co/docs/hub/model-cards, with the results as ``model-index``."""
    results = [{"type": metric, "value": value} for metric, (value, _, _) in metrics.items() if value == value]
    dataset = {"name": name, "type": "image-folder", "split": "test", "revision": digest}
    return as_yaml({
        "library_name": "udc-model",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "cost-sensitive", model],
        "license": "unknown",
        "model-index": [{"name": model, "results": [
            {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": results},
        ]}],
    })  # fmt: skip


def _counts(counts: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> list[list[str]]:
    """Rows with the images of each class by split, if the classes are few, and of all."""
    classes = list(counts[splits[0]])
    rows = [[_code(name), *(f"{counts[split][name]:,}" for split in splits)] for name in classes]
    total = [f"all {len(classes)} classes", *(f"{sum(counts[split].values()):,}" for split in splits)]
    return [*(rows if len(rows) <= _MOST_CLASSES else []), total]


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The parameters that differ from their defaults, by name, without the path of the data."""
    changed: dict[str, str] = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            changed |= _changed(value, default, f"{prefix}{name}.")
        elif value != default and f"{prefix}{name}" != "data.path":
            changed[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False)
    return changed


def _weakest(per_class: Sequence[Mapping[str, Any]], level: str) -> list[str]:
    lowest = sorted(per_class, key=lambda row: (row["recall"], row["class"]))[:_WEAKEST]
    return [f"{_code(row['class'])} with recall {row['recall']:.2f} ({level} interval {row['recall_low']:.2f} to "
            f"{row['recall_high']:.2f}, {row['support']} images)" for row in lowest]  # fmt: skip


def _code(text: object) -> str:
    """A name in Markdown, also in a table, that is shown as it is."""
    shown = " ".join(str(text).split()).replace("`", "'").replace("|", "¦")
    return f"`{shown}`"


def _plain(text: str) -> str:
    """A sentence that may have names in it, whose angle brackets are no HTML."""
    return html.escape(text, quote=False)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("udc_model.evaluation", ""), autoescape=False, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number_text, "cost": cost_text, "code": _code, "plain": _plain}
    return environment
