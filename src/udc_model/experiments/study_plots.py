"""Plots of a study: its history, the importance of its parameters, and the trade-offs between several metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from udc_model.evaluation.plot_style import COLOURS, NEUTRAL, WIDTH, class_label, legend_below, save
from udc_model.experiments.objectives import Direction

_HEIGHT = 4.6  # inches
_APART = 0.05  # of width and height; a point that is closer to one with a number has none


@dataclass(frozen=True)
class PlottedTrials:
    """The completed trials of a study.

    Parameters
    ----------
    study : its name, with which the experiments' names begin.
    numbers : of the N experiments, with which their names end.
    metrics, directions : of the M objectives.
    values, errors : (N, M); the standard errors are NaN where they are not known.
    is_best : (N,), whether a trial is Pareto-optimal.
    """

    study: str
    numbers: Sequence[int]
    metrics: Sequence[str]
    directions: Sequence[Direction]
    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    is_best: NDArray[np.bool_]


def plot_history(path: Path, trials: PlottedTrials) -> None:
    """The value of each trial in the order of completion, and the best so far; of the first metric."""
    better = min if trials.directions[0] == "minimize" else max
    values = trials.values[:, 0].tolist()

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(title="History of the study", xlabel="completed trial", ylabel=trials.metrics[0])
        numbers = range(1, len(values) + 1)
        axes.plot(numbers, values, "o", color=COLOURS[0], label="trial")
        axes.step(numbers, list(accumulate(values, better)), "--", where="post", color=COLOURS[1], label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(figure, axes)

    save(path, (WIDTH, _HEIGHT), draw)


def plot_importances(path: Path, importances: Sequence[tuple[str, dict[str, float]]]) -> None:
    """The importance of each parameter for each metric, as shares of 1, the most important for the first on top."""
    names = list(importances[0][1])[::-1]
    thickness = 0.8 / len(importances)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(title="Importance of the parameters", xlabel="importance, as a share of 1")
        for k, (metric, shares) in enumerate(importances):
            places = np.arange(len(names)) + 0.4 - (k + 0.5) * thickness
            bars = axes.barh(places, [shares.get(name, 0.0) for name in names], thickness, color=COLOURS[k % 7],
                             label=metric)  # fmt: skip
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=10)
        axes.set_yticks(range(len(names)), [class_label(name) for name in names])
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        if len(importances) > 1:
            legend_below(figure, axes)
        else:
            axes.set_xlabel(f"importance for {importances[0][0]}, as a share of 1")

    save(path, (WIDTH, 1.6 + (0.3 + 0.2 * len(importances)) * len(names)), draw)


def plot_trade_offs(path: Path, trials: PlottedTrials) -> None:
    """The first metric against each of the others; Pareto-optimal trials have their number and standard error."""
    others = range(1, len(trials.metrics))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(others), 1, squeeze=False)[:, 0]
        for other, axes in zip(others, panels, strict=True):
            _draw_panel(axes, trials, other)
        figure.suptitle("Trade-offs between the metrics", x=0.01, ha="left", fontsize=13, fontweight="bold")
        legend_below(figure, panels[-1])

    save(path, (WIDTH, 0.4 + _HEIGHT * len(others)), draw)


def _draw_panel(axes: Axes, trials: PlottedTrials, other: int) -> None:
    """One metric (horizontal) against the first (vertical)."""
    best = np.flatnonzero(trials.is_best)
    best = best[np.argsort(trials.values[best, other], kind="stable")]
    x, y = trials.values[:, other], trials.values[:, 0]
    axes.plot(x[~trials.is_best], y[~trials.is_best], "o", color=NEUTRAL, markersize=5, label="other trials")
    if len(trials.metrics) == 2:
        # between two trials, a trade-off that somebody could choose is that of the worse corner
        where: Literal["post", "pre"] = "post" if trials.directions[other] == "minimize" else "pre"
        axes.step(x[best], y[best], "-", where=where, color=COLOURS[0], linewidth=1.2)
    errors = [_bars(trials.errors[best, metric]) for metric in (other, 0)]
    example = trials.numbers[best[0]]
    label = f"Pareto-optimal ({example} is {class_label(trials.study)}-{example})"
    label += ", with standard error" if any(each is not None for each in errors) else ""
    axes.errorbar(x[best], y[best], xerr=errors[0], yerr=errors[1], fmt="D", color=COLOURS[0], ecolor=COLOURS[5],
                  elinewidth=1.2, markersize=6, label=label)  # fmt: skip
    for k in _numbered(np.column_stack([x, y]), best):
        axes.annotate(str(trials.numbers[k]), (x[k], y[k]), (5, 4), textcoords="offset points")
    axes.set_xlabel(_axis_label(trials, other))
    axes.set_ylabel(_axis_label(trials, 0))
    axes.margins(0.1)


def _numbered(points: NDArray[np.float64], best: NDArray[np.intp]) -> list[int]:
    """Those of the ``best`` of the points (N, 2) that have their number beside them."""
    scaled = points / np.maximum(np.ptp(points, axis=0), np.finfo(np.float64).tiny)
    chosen: list[int] = []
    for k in best.tolist():
        if all((abs(scaled[k] - scaled[other]) >= _APART).any() for other in chosen):
            chosen.append(k)
    return chosen


def _bars(errors: NDArray[np.float64]) -> NDArray[np.float64] | None:
    return None if np.isnan(errors).all() else np.nan_to_num(errors)


def _axis_label(trials: PlottedTrials, metric: int) -> str:
    better = "lower" if trials.directions[metric] == "minimize" else "higher"
    return f"{trials.metrics[metric]} ({better} is better)"
