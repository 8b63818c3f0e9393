"""Plots of the tables that evaluate and train write, with colour-blind safe colours and readable at 50 classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.figure import Figure
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The palette of Okabe and Ito, distinguishable with all kinds of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_LONGEST_LABEL = 40  # characters
_LEGEND_CLASSES = 10  # more curves than this have one colour and no legend
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "savefig.dpi": 130,
}


def _save(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # rc_context types its keys as literals
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        # Without version and date, equal plots are equal files.
        figure.savefig(path, metadata={"Software": None})


def class_label(name: str, longest: int = _LONGEST_LABEL) -> str:
    """A class name as a label: at most ``longest`` characters, without Matplotlib's mathematics between dollars."""
    short = name if len(name) <= longest else f"{name[: longest - 1]}…"
    short = f" {short}" if short.startswith("_") else short  # Matplotlib leaves labels that begin with _ out
    return short.replace("$", r"\$")


def plot_confusion_matrix(
    path: Path, values: NDArray[np.number], classes: list[str], outcomes: list[str], title: str, kind: str = "counts"
) -> None:
    """Plot a matrix (K, D), rows true, columns decided, with its numbers.

    Parameters
    ----------
    values : by ``kind``: ``counts`` (colours show shares of the row, so that rare classes are readable), ``shares`` of
        the row in [0, 1], or ``costs``.
    """
    rows, columns = values.shape
    classes, outcomes = [*map(class_label, classes)], [*map(class_label, outcomes)]
    side = float(np.clip(0.55 * rows + 2.2, 4.2, 18))
    is_cost = kind == "costs"
    scale = np.abs(values).max() if is_cost else values.sum(axis=1, keepdims=True)
    shades = values / np.where(scale > 0, scale, 1)
    form = {"counts": ",.0f", "shares": ".0%" if rows > 6 else ".1%", "costs": ",.4g"}[kind]
    label = "cost, relative to the costliest cell" if is_cost else "share of the true class"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(shades, cmap="Oranges" if is_cost else "Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        rotate = max(map(len, outcomes)) > 3 and rows > 3
        axes.set_xticks(range(columns), outcomes, rotation=45 if rotate else 0, ha="right" if rotate else "center")
        axes.set_yticks(range(rows), classes)
        axes.set(xlabel="decided", ylabel="true")
        # the title of the figure, since the axes may be narrower
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        font = float(np.clip((160 if kind == "shares" else 220) / rows, 3.5, 12))
        for i, j in zip(*np.nonzero(values), strict=True):
            colour = "white" if shades[i, j] > 0.55 else "#222222"
            text = format(values[i, j], form)
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=font)
        figure.colorbar(image, ax=axes, shrink=0.75, label=label).outline.set_visible(False)

    _save(path, (max(side + 1.0, 5.6), side), draw)


def plot_class_curves(path: Path, curves: pd.DataFrame, mean: pd.DataFrame, areas: pd.DataFrame, kind: str) -> None:
    """Plot the curve of each class against the rest, areas with intervals, and the band of the mean over classes.

    Parameters
    ----------
    curves : columns ``class`` and the two axes.
    mean : columns of the two axes, ``low``, ``high``.
    kind : ``roc`` or ``precision_recall``.
    areas : ``class`` and ``roc_auc`` or ``average_precision`` with ``_low`` and ``_high``.
    """
    area = "roc_auc" if kind == "roc" else "average_precision"
    x, y = curves.columns[1], curves.columns[2]
    many = len(areas) > _LEGEND_CLASSES

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if kind == "roc":
            axes.plot([0, 1], [0, 1], color="#aaaaaa", linestyle=":", label="_chance")
        axes.fill_between(mean[x], mean["low"], mean["high"], color="#bbbbbb", alpha=0.6, linewidth=0,
                          label="mean over classes, interval")  # fmt: skip
        for k, row in enumerate(areas.itertuples()):
            curve = curves[curves["class"] == row[1]]
            low, high = getattr(row, f"{area}_low"), getattr(row, f"{area}_high")
            label = f"{class_label(row[1])}: {getattr(row, area):.3f} ({low:.3f} to {high:.3f})"
            style = "-" if k < len(COLOURS) else "--"
            if many:
                axes.plot(curve[x], curve[y], color=COLOURS[0], alpha=0.35, linewidth=1, label="_class")
            else:
                axes.plot(curve[x], curve[y], style, color=COLOURS[k % len(COLOURS)], linewidth=1.4, label=label)
        short = "AUC" if kind == "roc" else "AP"
        title = "ROC" if kind == "roc" else "Precision-recall"
        axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), title=f"{title}, one class against the rest",
                 xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))  # fmt: skip
        heading = f"{short}: mean {areas[area].mean():.3f}, lowest {areas[area].min():.3f}" if many else short
        axes.legend(frameon=False, fontsize=8, title=heading, title_fontsize=9,
                    loc="lower right" if kind == "roc" else "lower left")  # fmt: skip

    _save(path, (6.4, 5.2), draw)


def plot_reliability(path: Path, table: pd.DataFrame, method: str) -> None:
    """Plot accuracy against confidence in bins of equal mass, before and after calibration, with intervals."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        lowest = float(table["confidence"].min())
        axes.plot([0, 1], [0, 1], color="#aaaaaa", linestyle=":", label="perfect")
        for name, colour, marker in (("before", COLOURS[1], "s"), ("after", COLOURS[0], "o")):
            bins = table[table["calibration"] == name]
            gaps = [bins["accuracy"] - bins["low"], bins["high"] - bins["accuracy"]]
            error = float((bins["images"] * (bins["confidence"] - bins["accuracy"]).abs()).sum() / bins["images"].sum())
            label = (
                f"{name} calibration ({method}), error {error:.3f}" if name == "after" else f"before, error {error:.3f}"
            )
            axes.errorbar(bins["confidence"], bins["accuracy"], yerr=gaps, color=colour, marker=marker, markersize=4,
                          linewidth=1.2, elinewidth=0.8, label=label)  # fmt: skip
        left = max(0.0, min(lowest, float(table["low"].min())) - 0.03)
        axes.set(xlabel="confidence", ylabel="accuracy", title="Reliability", xlim=(left, 1.02), ylim=(left, 1.02))
        axes.legend(frameon=False, fontsize=8, loc="upper left")

    _save(path, (5.6, 5.2), draw)


def plot_cost_curve(path: Path, table: pd.DataFrame) -> None:
    """Plot normalised expected cost against the costliest class's share of the cost at stake."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, label, style, colour in (
            ("best_constant", "best constant decision", ":", "#888888"),
            ("argmax", "argmax", "--", COLOURS[1]),
            ("fixed_decisions", "decisions fixed", "-.", COLOURS[2]),
            ("policy", "policy", "-", COLOURS[0]),
        ):
            axes.plot(table["x"], table[name], style, color=colour, label=label)
        costliest = table["costliest_class"].iloc[0]
        axes.set(xlabel=f"share of the cost at stake that belongs to class {class_label(costliest)}",
                 ylabel="normalised expected cost", title="Cost curve", xlim=(0, 1), ylim=(0, None))  # fmt: skip
        axes.legend(frameon=False, fontsize=8)

    _save(path, (6.4, 4.8), draw)


def plot_referral(path: Path, table: pd.DataFrame, refer: float | None, rate: float) -> None:
    """Plot cost against referral rate.

    Parameters
    ----------
    refer : cost of referring an image; None if referral is not available.
    rate : referral rate of the policy.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(table["referral_rate"], table["cost_of_decided"], label="mean cost of images not referred")
        if refer is not None:
            axes.plot(table["referral_rate"], table["cost_with_referral"], "--",
                      label=f"mean cost of all images, cost of referral {refer:g}")  # fmt: skip
            axes.axvline(rate, color="#888888", linestyle=":", label=f"policy: {rate:.1%} referred")
        axes.set(xlabel="referral rate", ylabel="mean cost", xlim=(0, 1), ylim=(0, None),
                 title="Cost by referral rate, largest expected cost first")  # fmt: skip
        axes.legend(frameon=False, fontsize=8)

    _save(path, (6.4, 4.8), draw)


def plot_gallery(path: Path, images: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str) -> None:
    """Plot images (S, S, C) uint8 with captions, six per row."""
    columns = min(6, max(2, len(images)))
    rows = -(-max(1, len(images)) // columns)

    def draw(figure: Figure) -> None:
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, image, caption in zip(grid, images, captions, strict=False):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(caption, fontsize=8, fontweight="normal", loc="center")
        if not len(images):
            grid[0].text(0, 0.5, "no mistake with a cost", fontsize=10)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")

    _save(path, (1.9 * columns, 2.5 * rows + 0.5), draw)


def plot_sweep(path: Path, table: pd.DataFrame, swept: str, panels: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Plot metrics against one swept value.

    Parameters
    ----------
    swept : column of the swept value.
    panels : title and columns of each panel; columns ``…_low`` and ``…_high`` become a band.
    """

    def draw(figure: Figure) -> None:
        for axes, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for k, name in enumerate(names):
                colour = COLOURS[k % len(COLOURS)]
                axes.plot(table[swept], table[name], marker="o", markersize=3, color=colour,
                          label=class_label(name.replace("_", " ")))  # fmt: skip
                if f"{name}_low" in table:
                    axes.fill_between(table[swept], table[f"{name}_low"], table[f"{name}_high"], color=colour,
                                      alpha=0.2, linewidth=0)  # fmt: skip
            axes.set(xlabel=class_label(swept, 60), title=class_label(title))
            axes.legend(frameon=False, fontsize=8)

    _save(path, (4.6 * len(panels), 4.0), draw)


def plot_training_curves(path: Path, curves: pd.DataFrame, best_epoch: int) -> None:
    """Plot losses and validation scores by epoch, with the selected epoch marked."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        epochs = curves["epoch"]
        left.plot(epochs, curves["train_loss"], label="training loss")
        left.plot(epochs, curves["validation_log_loss"], label="validation log loss")
        left.set(title="Loss", yscale="log")
        for name in ("accuracy", "balanced_accuracy", "macro_f1"):
            right.plot(epochs, curves[f"validation_{name}"], label=name.replace("_", " "))
        right.set(title="Validation, argmax decisions")
        for axes in (left, right):
            axes.axvline(best_epoch, color="#888888", linestyle=":", label=f"best epoch: {best_epoch}")
            axes.set_xlabel("epoch")
            axes.legend(frameon=False)

    _save(path, (10, 4), draw)


def plot_range_test(path: Path, table: pd.DataFrame, steepest: float) -> None:
    """Plot loss against learning rate, with the rate of the steepest descent marked."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(table["learning_rate"], table["loss"], color="#bbbbbb", linewidth=1, label="loss of the batch")
        axes.plot(table["learning_rate"], table["smoothed_loss"], color=COLOURS[0], label="smoothed")
        axes.axvline(steepest, color="#888888", linestyle=":", label=f"steepest descent: {steepest:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
        axes.legend(frameon=False)

    _save(path, (6, 4), draw)
