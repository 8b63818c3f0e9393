"""Pictures, drawn from the tables that evaluate and train write. Colour-blind safe, readable at 50 classes."""

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

# Okabe and Ito's colours, distinguishable with every kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_LEGEND_CLASSES = 10  # more curves than this get one colour and no legend
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
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are a long list of literals
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        # No date or version in the file: equal pictures are equal files.
        figure.savefig(path, metadata={"Software": None})


def plot_confusion_matrix(
    path: Path, values: NDArray[np.number], classes: list[str], outcomes: list[str], title: str, kind: str = "counts"
) -> None:
    """A matrix (K, D), rows true, columns decided, with its numbers.

    Parameters
    ----------
    values : of ``kind`` ``counts`` (colours are shares of the row, so that rare classes can be read too), ``shares``
        of the row in [0, 1], or ``money`` lost.
    """
    rows, columns = values.shape
    side = float(np.clip(0.55 * rows + 2.2, 4.2, 18))
    money = kind == "money"
    scale = np.abs(values).max() if money else values.sum(axis=1, keepdims=True)
    shades = values / np.where(scale > 0, scale, 1)
    form = {"counts": ",.0f", "shares": ".0%" if rows > 6 else ".1%", "money": ",.4g"}[kind]
    label = "money, of the dearest cell" if money else "share of the true class"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(shades, cmap="Oranges" if money else "Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        rotate = max(map(len, outcomes)) > 3 and rows > 3
        axes.set_xticks(range(columns), outcomes, rotation=45 if rotate else 0, ha="right" if rotate else "center")
        axes.set_yticks(range(rows), classes)
        axes.set(xlabel="decided", ylabel="true")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")  # the axes may be narrower than it
        font = float(np.clip((160 if kind == "shares" else 220) / rows, 3.5, 12))
        for i, j in zip(*np.nonzero(values), strict=True):
            colour = "white" if shades[i, j] > 0.55 else "#222222"
            text = format(values[i, j], form)
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=font)
        figure.colorbar(image, ax=axes, shrink=0.75, label=label).outline.set_visible(False)

    _save(path, (max(side + 1.0, 5.6), side), draw)


def plot_class_curves(path: Path, curves: pd.DataFrame, mean: pd.DataFrame, areas: pd.DataFrame, kind: str) -> None:
    """ROC (``kind`` ``roc``) or precision-recall (``precision_recall``) of each class against the rest, areas with
    intervals, and the mean over classes with its band.

    Parameters
    ----------
    curves : ``class`` and the two axes; ``mean`` : the two axes, ``low``, ``high``.
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
            own = curves[curves["class"] == row[1]]
            low, high = getattr(row, f"{area}_low"), getattr(row, f"{area}_high")
            label = f"{row[1]}: {getattr(row, area):.3f} ({low:.3f} to {high:.3f})"
            style = "-" if k < len(COLOURS) else "--"
            if many:
                axes.plot(own[x], own[y], color=COLOURS[0], alpha=0.35, linewidth=1, label="_class")
            else:
                axes.plot(own[x], own[y], style, color=COLOURS[k % len(COLOURS)], linewidth=1.4, label=label)
        short = "AUC" if kind == "roc" else "AP"
        title = "ROC" if kind == "roc" else "Precision-recall"
        axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), title=f"{title}, one class against the rest",
                 xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))  # fmt: skip
        heading = f"{short}: mean {areas[area].mean():.3f}, lowest {areas[area].min():.3f}" if many else short
        axes.legend(frameon=False, fontsize=8, title=heading, title_fontsize=9,
                    loc="lower right" if kind == "roc" else "lower left")  # fmt: skip

    _save(path, (6.4, 5.2), draw)


def plot_reliability(path: Path, table: pd.DataFrame, method: str) -> None:
    """Accuracy against confidence in bins of equal mass, before and after calibration, with intervals."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        lowest = float(table["confidence"].min())
        axes.plot([0, 1], [0, 1], color="#aaaaaa", linestyle=":", label="perfect")
        for name, colour, marker in (("before", COLOURS[1], "s"), ("after", COLOURS[0], "o")):
            own = table[table["calibration"] == name]
            gaps = [own["accuracy"] - own["low"], own["high"] - own["accuracy"]]
            error = float((own["images"] * (own["confidence"] - own["accuracy"]).abs()).sum() / own["images"].sum())
            label = (
                f"{name} calibration ({method}), error {error:.3f}" if name == "after" else f"before, error {error:.3f}"
            )
            axes.errorbar(own["confidence"], own["accuracy"], yerr=gaps, color=colour, marker=marker, markersize=4,
                          linewidth=1.2, elinewidth=0.8, label=label)  # fmt: skip
        left = max(0.0, min(lowest, float(table["low"].min())) - 0.03)
        axes.set(xlabel="confidence", ylabel="accuracy", title="Reliability", xlim=(left, 1.02), ylim=(left, 1.02))
        axes.legend(frameon=False, fontsize=8, loc="upper left")

    _save(path, (5.6, 5.2), draw)


def plot_cost_curve(path: Path, table: pd.DataFrame, dear: str) -> None:
    """Normalised expected cost against the dear class's share of the money at stake."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, label, style, colour in (
            ("constant", "cheapest constant answer", ":", "#888888"),
            ("argmax", "argmax", "--", COLOURS[1]),
            ("as_decided", "decisions as they stand", "-.", COLOURS[2]),
            ("this_rule", "this rule, told of the frequencies", "-", COLOURS[0]),
        ):
            axes.plot(table["x"], table[name], style, color=colour, label=label)
        axes.set(xlabel=f"share of the money at stake that lies with {dear}", ylabel="normalised expected cost",
                 title="Cost curve", xlim=(0, 1), ylim=(0, None))  # fmt: skip
        axes.legend(frameon=False, fontsize=8)

    _save(path, (6.4, 4.8), draw)


def plot_referral(path: Path, table: pd.DataFrame, refer: float | None, rate: float) -> None:
    """Cost against referral rate; ``rate`` is that of the rule, ``refer`` the price of a referral if it is offered."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(table["referral_rate"], table["cost_of_decided"], label="mean cost of the images still decided")
        if refer is not None:
            axes.plot(table["referral_rate"], table["cost_with_referral"], "--",
                      label=f"mean cost of all images, referral at {refer:g}")  # fmt: skip
            axes.axvline(rate, color="#888888", linestyle=":", label=f"the rule refers {rate:.1%}")
        axes.set(xlabel="share of images handed to a person", ylabel="mean cost",
                 title="Cost against referral, dearest images first", xlim=(0, 1), ylim=(0, None))  # fmt: skip
        axes.legend(frameon=False, fontsize=8)

    _save(path, (6.4, 4.8), draw)


def plot_gallery(path: Path, images: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str) -> None:
    """Images (S, S, 3) with captions, six in a row."""
    columns = min(6, max(2, len(images)))
    rows = -(-max(1, len(images)) // columns)

    def draw(figure: Figure) -> None:
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, image, caption in zip(grid, images, captions, strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(caption, fontsize=8, fontweight="normal", loc="center")
        if not len(images):
            grid[0].text(0, 0.5, "no mistake that costs anything", fontsize=10)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")

    _save(path, (1.9 * columns, 2.5 * rows + 0.5), draw)


def plot_sweep(path: Path, table: pd.DataFrame, swept: str, panels: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Metrics against one swept value: a panel for each title and its columns; ``…_low``/``…_high`` become bands."""

    def draw(figure: Figure) -> None:
        for axes, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for k, name in enumerate(names):
                colour = COLOURS[k % len(COLOURS)]
                axes.plot(table[swept], table[name], marker="o", markersize=3, color=colour,
                          label=name.replace("_", " "))  # fmt: skip
                if f"{name}_low" in table:
                    axes.fill_between(table[swept], table[f"{name}_low"], table[f"{name}_high"], color=colour,
                                      alpha=0.2, linewidth=0)  # fmt: skip
            axes.set(xlabel=swept, title=title)
            axes.legend(frameon=False, fontsize=8)

    _save(path, (4.6 * len(panels), 4.0), draw)


def plot_training_curves(path: Path, curves: pd.DataFrame, best_epoch: int) -> None:
    """Losses and validation scores by epoch, the kept epoch marked."""

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
            axes.axvline(best_epoch, color="#888888", linestyle=":", label=f"kept: epoch {best_epoch}")
            axes.set_xlabel("epoch")
            axes.legend(frameon=False)

    _save(path, (10, 4), draw)


def plot_range_test(path: Path, table: pd.DataFrame, found: float) -> None:
    """Loss against learning rate, the rate of steepest descent marked."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(table["learning_rate"], table["loss"], color="#bbbbbb", linewidth=1, label="loss of the batch")
        axes.plot(table["learning_rate"], table["smoothed_loss"], color=COLOURS[0], label="smoothed")
        axes.axvline(found, color="#888888", linestyle=":", label=f"falls fastest: {found:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
        axes.legend(frameon=False)

    _save(path, (6, 4), draw)
