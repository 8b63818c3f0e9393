"""Name and description of an MLflow run, for people: what was asked, what came out, and where the details are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from udc_model.config import CostParams, EvaluateParams, validate_params, with_json_mappings
from udc_model.config.model import AUTO
from udc_model.config.presets import PRESETS
from udc_model.config.yaml12 import read_yaml
from udc_model.decisions.actions import REFER
from udc_model.decisions.policy import Policy, short_digest
from udc_model.errors import UdcError
from udc_model.evaluation.intervals import Intervals
from udc_model.evaluation.metrics import Metrics
from udc_model.stages.resolve import reduce, training_params
from udc_model.tracking.journal import EXPERIMENT_ID_PLACEHOLDER, RUN_ID_PLACEHOLDER
from udc_model.tracking.provenance import git
from udc_model.tracking.run import flatten
from udc_model.tracking.tags import CHANGED

_LONGEST_VALUE = 40  # characters of a parameter's value
_MOST_CHANGES, _MOST_PAIRS = 12, 3
_RESOLVED = (
    ("model.weights", AUTO),
    ("model.weights_sha256", None),
    ("evaluate.precision", "auto"),
)  # values that stage resolve replaces by what it finds
_OUTPUTS = ("params.yaml", "dvc.lock", "metrics.json")  # files that differ in each experiment


@dataclass(frozen=True)
class Changes:
    """What differs from the baseline: the commit from which a DVC experiment starts, otherwise the last commit.

    Parameters
    ----------
    baseline : short name and subject of the commit; empty without one.
    params : value in the baseline and value of the run, by name.
    files : that differ, except parameters and results.
    mean_cost : of the baseline on test, if its result is committed and its costs are those of the run.
    """

    baseline: str = ""
    params: Mapping[str, tuple[Any, Any]] | None = None
    files: Sequence[str] = ()
    mean_cost: float | None = None

    def tags(self) -> dict[str, str]:
        """The new values in one tag, as ``train.epochs=5, seed=1``; no tag if no parameter differs."""
        values = ", ".join(f"{name}={_short(new)}" for name, (_, new) in self._shown())
        return {CHANGED: values} if values else {}

    def to_markdown(self) -> str:
        """One paragraph."""
        if not self.baseline:
            return "**Asked:** no commit to compare with; see the parameters below."
        if self.params is None:
            return f"**Asked:** see the parameters below; those of {self.baseline} cannot be compared."
        parts = [f"`{name}` {_short(old)} → **{_short(new)}**" for name, (old, new) in self._shown()]
        if (more := len(self.params) - len(parts)) > 0:
            parts.append(f"{more} more parameters")
        if self.files:
            names = [*map(code, self.files[:_MOST_PAIRS]), *(["…"] if len(self.files) > _MOST_PAIRS else [])]
            parts.append(f"code or data in {_count(len(self.files), 'file')} ({', '.join(names)})")
        if not parts:
            return f"**Asked:** the parameters of commit {self.baseline}, unchanged."
        text = f"**Changed** from {self.baseline}: {', '.join(parts)}."
        if self.mean_cost is None:
            return text
        return f"{text} There the test cost is {self.mean_cost:.4f} an image, under the same costs."

    def _shown(self) -> list[tuple[str, tuple[Any, Any]]]:
        return list((self.params or {}).items())[:_MOST_CHANGES]


def recorded_params(training: Mapping[str, Any], costs: CostParams, evaluate: EvaluateParams) -> dict[str, Any]:
    """All parameters of a run by dotted name: those of the training run, and costs and policy of its decisions."""
    sections = {**training, "costs": costs.model_dump(), "evaluate": evaluate.model_dump()}
    return flatten(with_json_mappings(sections))


def changes_since_baseline(params: Mapping[str, Any], revision: str) -> Changes:
    """Compare the parameters of a run with those committed in a revision.

    Parameters
    ----------
    params : by dotted name, see `recorded_params`; names that the baseline does not have, as those of another
        architecture, are ignored.
    revision : commit of the baseline; empty without one.
    """
    if not revision or not (subject := git("show", "--no-patch", "--format=%h (%s)", revision)):
        return Changes()
    try:
        committed = reduce(validate_params(read_yaml(git("show", f"{revision}:./params.yaml")), "params.yaml"))
    except (UdcError, ValueError, yaml.YAMLError, RecursionError):  # of another version, or not committed
        return Changes(baseline=code(subject))
    former = recorded_params(training_params(committed.train), committed.evaluate.costs, committed.evaluate.evaluate)
    changed = {
        name: (former[name], value)
        for name, value in params.items()
        if name in former and former[name] != value and not (value and (name, former[name]) in _RESOLVED)
    }
    files = [name for name in git("diff", "--name-only", "--relative", revision).splitlines() if name not in _OUTPUTS]
    is_same_cost = not any(name.startswith("costs.") for name in changed)
    return Changes(code(subject), changed, files, _committed_cost(revision) if is_same_cost else None)


def _committed_cost(revision: str) -> float | None:
    try:
        return float(json.loads(git("show", f"{revision}:./metrics.json"))["test"]["mean_cost"])
    except (ValueError, KeyError, TypeError):
        return None


def baseline_revision(commit: str | None) -> str:
    """The commit from which DVC starts the experiment, otherwise ``commit``; empty without one."""
    return os.environ.get("DVC_EXP_BASELINE_REV") or commit or ""


def run_name(params: Mapping[str, Any]) -> str:
    """A name for a run with these recorded parameters, as ``resnet-mini lr=0.003``."""
    model = params["model"]
    block = model[model["model_type"]]
    names = (name for name, preset in PRESETS.items() if preset.settings.items() <= block.items())
    rate = params["train"].get("learning_rate")
    return next(names, str(block.get("name", model["model_type"]))) + (
        f" lr={rate:g}" if isinstance(rate, float | int) else ""
    )


def digests(policy: Policy, evaluate: EvaluateParams) -> dict[str, dict[str, str]]:
    """A digest of the costs and one of how decisions are made from them, as parameters of a run.

    Mean costs can be compared between runs of equal ``costs.digest``.
    """
    names = {"calibration", "decision", "recall_floor", "cost_ceiling", "flip_averaging"}
    decision = short_digest(evaluate.model_dump(include=names))
    return {"costs": {"digest": policy.costs_digest}, "policy": {"digest": decision}}


def training_note(changes: Changes, data: Mapping[str, Any]) -> str:
    """The description of a run that has no evaluation yet."""
    return f"{changes.to_markdown()}\n\nNot evaluated yet. {_link('parameters', 'params.yaml')} · {_data(data)}"


def evaluation_note(
    folder: Path, metrics: Metrics, intervals: Intervals, confidence: float, changes: Changes, data: Mapping[str, Any],
    costs_digest: str,
) -> str:  # fmt: skip
    """The description of a run with an evaluation; the first paragraph has the result.

    Parameters
    ----------
    folder : with the tables of the evaluation, of which ``test/`` is used.
    metrics, intervals : of test.
    confidence : level of the intervals.
    data : name and digest of the data set.
    """
    test = folder / "test"
    baselines = pd.read_csv(test / "baselines.csv", dtype={"decision": str})
    constant = baselines.iloc[-1]
    level = f"{confidence:.0%}"
    result = (
        f"**Test cost {metrics['mean_cost']:.4f} an image** ({level} interval {interval(intervals, 'mean_cost')}); "
        f"{code(constant['decision'])}, the best constant decision, costs {constant['mean_cost']:.4f}."
    )
    ratio = metrics["normalised_cost"]
    if ratio is not None:
        result += f" Ratio {ratio:.4f} ({interval(intervals, 'normalised_cost')})."
    if metrics["accuracy"] is not None:
        result += f" Accuracy {metrics['accuracy']:.4f} ({interval(intervals, 'accuracy')})."
    links = [
        _link("report", "report.html"),
        _link("costs by decision", "evaluation/test/cost_by_pair.csv"),
        _link("all metrics with intervals", "metrics_with_intervals.json"),
        _data(data),
        f"costs {code(costs_digest)}",
    ]
    return "\n\n".join([result, changes.to_markdown(), _costliest(test), " · ".join(links)])


def _costliest(test: Path) -> str:
    text = dict.fromkeys(("true", "decided"), str)
    pairs = pd.read_csv(test / "cost_by_pair.csv", dtype=text, keep_default_na=False).to_dict("records")
    shown = [
        f"{code(row['true'])} {'referred' if row['decided'] == REFER else 'as ' + code(row['decided'])}: "
        f"{_count(row['images'], 'image')}, {row['share']:.0%} of the cost"
        for row in pairs[:_MOST_PAIRS]
    ]
    return f"**Costliest decisions:** {'; '.join(shown)}." if shown else "No decision on test has a cost."


def interval(intervals: Intervals, name: str) -> str:
    """The interval of a metric as ``0.0000 to 0.0259``; that it has none otherwise."""
    low, high = intervals.get(name, (None, None))
    return "no interval" if low is None or high is None or low != low else f"{low:.4f} to {high:.4f}"


def _link(title: str, path: str) -> str:
    run = f"#/experiments/{EXPERIMENT_ID_PLACEHOLDER}/runs/{RUN_ID_PLACEHOLDER}"
    return f"[{title}]({run}/artifacts/{path})"


def _data(data: Mapping[str, Any]) -> str:
    return f"data {_link(code(data['name']), 'data/dataset.json')} {data['digest'][:8]}"


def code(text: str) -> str:
    """A name in Markdown that is shown as it is."""
    return "`" + " ".join(str(text).replace("`", "'").split()) + "`"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
