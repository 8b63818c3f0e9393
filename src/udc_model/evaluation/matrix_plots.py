"""Plots by class: the confusion matrix, or its largest cells if there are many classes; the recall by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from udc_model.evaluation.plot_style import (
    BARS,
    COLOURS,
    NEUTRAL,
    SEQUENTIAL,
    WIDTH,
    class_label,
    legend_below,
    save,
    save_note,
)

LARGEST_MATRIX = 16  # classes
_PAIRS = 15  # cells of a larger matrix that are plotted
_CLASSES = 30  # of least recall that are plotted
_SHORT_PAIR = 44  # characters of a pair on one line
_FORMATS = {"counts": ",.0f", "shares": ".1%", "costs": ",.4g"}
_UNITS = {"counts": "images", "shares": "share of the true class", "costs": "total cost of these images"}


def plot_confusion_matrix(
    path: Path, values: NDArray[np.number], classes: list[str], outcomes: list[str], title: str, kind: str = "counts"
) -> None:
    """Plot a matrix (K, D), rows true, columns decided; of more than `LARGEST_MATRIX` classes the largest mistakes.

    Parameters
    ----------
    values : by ``kind``: ``counts`` (colours show shares of the row, so that rare classes are readable), ``shares`` of
        the row in [0, 1], or ``costs``.
    """
    if not values.any():
        save_note(path, title, "No decision has a cost.")
        return
    if len(classes) > LARGEST_MATRIX:
        _plot_pairs(path, values, classes, outcomes, title, kind)
        return
    rows, columns = values.shape
    cell = (0.6, 0.44) if rows > 3 else (1.0, 0.7)  # inches
    names = [class_label(name, 24) for name in classes]
    width, height = cell[0] * columns + 2.4 + 0.09 * max(map(len, names)), cell[1] * rows + 1.8
    scale = np.abs(values).max() if kind == "costs" else values.sum(axis=1, keepdims=True)
    shades = values / np.where(scale > 0, scale, 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        top = float(scale) if kind == "costs" and scale > 0 else 1.0
        image = axes.imshow(shades * top, cmap=SEQUENTIAL[kind], vmin=0, vmax=top, aspect="auto")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        labels = [class_label(name, 24) for name in outcomes]
        is_long = max(map(len, labels)) > 4
        axes.set_xticks(range(columns), labels, rotation=45 if is_long else 0, ha="right" if is_long else "center",
                        rotation_mode="anchor" if is_long else "default")  # fmt: skip
        axes.set_yticks(range(rows), names)
        axes.set(xlabel="decided", ylabel="true")
        # the title of the figure, since the axes may be narrower
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        for i, j in zip(*np.nonzero(values), strict=True):
            text = format(values[i, j], _FORMATS[kind])
            size = 12 if len(text) <= 5 else 12 * 5 / len(text)
            colour = "white" if shades[i, j] > 0.55 else "#222222"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
        bar = figure.colorbar(image, ax=axes, shrink=0.85, label=_UNITS["costs" if kind == "costs" else "shares"])
        bar.outline.set_visible(False)
        if kind != "costs":
            bar.ax.yaxis.set_major_formatter(PercentFormatter(1))

    save(path, (max(width, WIDTH), max(height, 3.4)), draw)


def _plot_pairs(
    path: Path, values: NDArray[np.number], classes: list[str], outcomes: list[str], title: str, kind: str
) -> None:
    """Plot the largest cells of a matrix, without its diagonal, as bars."""
    mistakes = np.array(values, dtype=np.float64)
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_PAIRS]
    cells = [(i, j) for i, j in zip(*np.unravel_index(order, mistakes.shape), strict=True) if mistakes[i, j] > 0]
    number = int((mistakes > 0).sum())
    pairs = [(class_label(classes[i]), class_label(outcomes[j])) for i, j in cells]
    is_short = max((len(a) + len(b) for a, b in pairs), default=0) <= _SHORT_PAIR
    labels = [f"{true}{' ' if is_short else chr(10)}→ {decided}" for true, decided in pairs]
    if not cells:
        save_note(path, title, "No mistake has a cost." if kind == "costs" else "No mistake.")
        return
    lengths = np.array([mistakes[cell] for cell in cells])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        bars = axes.barh(range(len(cells)), lengths, color=BARS[kind], height=0.6)
        axes.bar_label(bars, [format(length, _FORMATS[kind]) for length in lengths], padding=3)
        axes.set_yticks(range(len(cells)), labels)
        axes.set(ylim=(len(cells) - 0.4, -0.6), xlim=(0, 1.2 * lengths.max()), xlabel=_UNITS[kind])
        axes.grid(visible=False, axis="y")
        if kind == "counts":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if kind == "shares":
            axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title(f"true → decided, {len(cells)} of {number:,} pairs", fontsize=12, fontweight="normal")

    save(path, (WIDTH + (0 if is_short else 1), 1.9 + (0.3 if is_short else 0.5) * max(3, len(cells))), draw)


def plot_recall(path: Path, table: pd.DataFrame, title: str, is_ordinal: bool = False) -> None:
    """Plot the recall of each class with its interval, lowest first; of many classes those of least recall.

    Parameters
    ----------
    table : columns ``class``, ``recall``, ``recall_low``, ``recall_high``, ``support`` (images).
    is_ordinal : whether the order of the rows has a meaning, and is the order in the plot.
    """
    lowest = table.sort_values(["recall", "recall_low", "class"])[:_CLASSES]
    if is_ordinal:
        lowest = table[table["class"].isin(lowest["class"])]
    names = [f"{class_label(name, 32)}  ({support:,})" for name, support in zip(lowest["class"], lowest["support"],
             strict=True)]  # fmt: skip
    ends = [lowest["recall"] - lowest["recall_low"], lowest["recall_high"] - lowest["recall"]]
    left = max(0.0, float(lowest["recall_low"].min()) - 0.03)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        axes.errorbar(lowest["recall"], range(len(lowest)), xerr=ends, color=COLOURS[0], marker="o", markersize=6,
                      linestyle="none", elinewidth=1.5, label="recall with interval")  # fmt: skip
        mean = float(table["recall"].mean())
        axes.axvline(mean, color=NEUTRAL, linestyle=":", label=f"mean over classes: {mean:.3f}")
        axes.set_yticks(range(len(lowest)), names)
        right = 1 + 0.02 * (1 - left)
        axes.set(ylim=(len(lowest) - 0.4, -0.6), xlim=(left, right), xlabel="recall")
        axes.grid(visible=False, axis="y")
        if len(table) > len(lowest):
            axes.set_title(f"the {len(lowest)} of {len(table)} classes of least recall", fontsize=12,
                           fontweight="normal")  # fmt: skip
        legend_below(figure, axes)

    save(path, (WIDTH, 2.2 + 0.3 * len(lowest)), draw)
