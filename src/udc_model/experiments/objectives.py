"""What ``udc tune`` minimises or maximises: metrics of the validation split, and the duration of training."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from udc_model.config import Params
from udc_model.decisions.actions import REFER
from udc_model.errors import UdcError
from udc_model.evaluation.metrics import Scored, split_metrics
from udc_model.evaluation.tables import read_metrics

Direction = Literal["minimize", "maximize"]

SECONDS = "training/seconds"  # the only objective that is not of the validation split
_MINIMISED = re.compile(r"cost(?!_saved)|loss|error|brier|(referral|miss|action)_rate|seconds")


class Measurement(NamedTuple):
    """The value of a metric, None if it has none, and its standard error, None if it is not known."""

    value: float | None
    error: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The values of a trial's objectives and their standard errors, None where it is not known."""

    values: tuple[float, ...]
    errors: tuple[float | None, ...]


def direction_of(metric: str) -> Direction:
    """Costs, losses, errors, rates of referral, misses and actions, and durations are minimised, other metrics are
    maximised. Names of classes, as in ``recall/gloss``, have no meaning."""
    name = metric.removeprefix("validation/").removeprefix("training/").partition("/")[0]
    return "minimize" if _MINIMISED.search(name) else "maximize"


def check_objectives(metrics: Sequence[str], params: Params) -> None:
    """:class:`UdcError` if a search must not, or cannot, use these metrics together.

    Parameters
    ----------
    params : of the trials; which metrics there are depends on its actions and on ``evaluate.recall_of``.
    """
    for name in metrics:
        if name.startswith("test/"):
            raise UdcError(f"{name}: a search must not use the test split, whose metrics would be biased; "
                           f"use validation/{name.removeprefix('test/')}")  # fmt: skip
        if name.startswith("training/") and name != SECONDS:
            raise UdcError(f"{name}: of the training run, a search can use {SECONDS} only")
    names = [name.removeprefix("validation/") for name in metrics]
    known = [*_validation_metrics(params), SECONDS]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise UdcError(f"--metric: no metric {name}; {advice}")
    if repeated := [name for k, name in enumerate(names) if name in names[:k]]:
        raise UdcError(f"--metric: {repeated[0]} is given twice")


def _validation_metrics(params: Params) -> list[str]:
    """The names of the metrics that an evaluation computes of a split."""
    actions = [*([] if params.costs.refer is None else [REFER]), *(params.costs.actions or {})]
    half = np.full((2, 2), 0.5)
    scored = Scored(np.arange(2), np.arange(2), half, np.ones((2, 2 + len(actions))), actions=actions)
    return list(split_metrics(scored, 1, [(0, name) for name in params.evaluate.recall_of]))


def read_measurements(path: Path, confidence: float) -> dict[str, Measurement]:
    """The metrics in a ``metrics.csv`` under their names with ``validation/``.

    Parameters
    ----------
    confidence : level of the intervals in the table. Their half length divided by the normal quantile of the level is
        the standard error.
    """
    import pandas as pd

    values = read_metrics(path)
    table = pd.read_csv(path).set_index("metric")
    lengths = table["high"] - table["low"]
    per_error = 2 * NormalDist().inv_cdf((1 + confidence) / 2)
    errors = {name: length / per_error for name, length in lengths.dropna().items()}
    return {f"validation/{name}": Measurement(value, errors.get(name)) for name, value in values.items()}


def outcome_of(measured: Mapping[str, Measurement], metrics: Sequence[str]) -> Outcome:
    """The outcome of a trial by its measurements; ``validation/`` may be missing in the names of the metrics.

    Raises
    ------
    UdcError
        One of the metrics does not exist, or has no value.
    """
    chosen = [measured.get(name) or measured.get(f"validation/{name}") for name in metrics]
    values = [None if each is None else each.value for each in chosen]
    for name, each, value in zip(metrics, chosen, values, strict=True):
        if value is None:
            what = "the trials have no such metric" if each is None else "has no value for the images of this trial"
            defined = ", ".join(known for known, measurement in measured.items() if measurement.value is not None)
            raise UdcError(f"{name}: {what}; start another --study with one of {defined}")
    return Outcome(tuple(value for value in values if value is not None),
                   tuple(each and each.error for each in chosen))  # fmt: skip
