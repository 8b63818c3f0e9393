"""Plots of curves: ROC and precision-recall, reliability, cost curve, cost by referral rate.

Where a curve lies on an axis nobody can see it. These plots then zoom into the part that has the curves, and replace a
curve without any visible part by its number in the legend.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from udc_model.evaluation.plot_style import (
    BAND,
    COLOURS,
    LINES,
    NEUTRAL,
    WIDTH,
    class_label,
    legend_below,
    save,
    save_note,
)

_CORNERS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # sides of the corner that ROC and precision-recall curves may be cut to
_VISIBLY_ONE = 0.9995  # areas from here on are 1.000 in three digits
_ZOOM = 0.1  # curves below this share of the axis get their own scale


def plot_class_curves(path: Path, curves: pd.DataFrame, mean: pd.DataFrame, areas: pd.DataFrame, kind: str) -> None:
    """Plot the curves of the classes of least area against the rest, and the band of the mean over classes.

    Curves that pass through the perfect corner are cut to it. Classes of area 1.000, and those that exceed the number
    of distinguishable colours, are numbers in the legend.

    Parameters
    ----------
    curves : columns ``class`` and the two axes.
    mean : columns of the two axes, ``low``, ``high``.
    kind : ``roc`` or ``precision_recall``.
    areas : ``class`` and ``roc_auc`` or ``average_precision`` with ``_low`` and ``_high``.
    """
    is_roc = kind == "roc"
    area, short, title = ("roc_auc", "AUC", "ROC") if is_roc else ("average_precision", "AP", "Precision-recall")
    x, y = curves.columns[1], curves.columns[2]
    ranked = areas.sort_values([area, "class"])
    drawn = ranked[ranked[area] < _VISIBLY_ONE][: len(COLOURS)]
    heading = f"{title}, one class against the rest"
    if not len(drawn):
        text = f"{short} is 1.000 for each of the {len(areas)} classes; the lowest is {areas[area].min():.5f}."
        save_note(path, heading, text)
        return
    of_class = {name: part for name, part in curves.groupby("class") if name in set(drawn["class"])}
    side = _corner_side([part[[x, y]].to_numpy() for part in of_class.values()], is_roc)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), title=heading)
        axes.fill_between(mean[x], mean["low"], mean["high"], color=BAND, linewidth=0,
                          label=f"mean over classes, interval: {short} {areas[area].mean():.3f}")  # fmt: skip
        if is_roc and side == 1:
            axes.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", linewidth=1, label="_chance")
        for (_, row), colour, line in zip(drawn.iterrows(), COLOURS, LINES, strict=False):
            label = (
                f"{class_label(row['class'])}: {row[area]:.3f} ({row[f'{area}_low']:.3f} to {row[f'{area}_high']:.3f})"
            )
            axes.plot(of_class[row["class"]][x], of_class[row["class"]][y], color=colour, linestyle=line, label=label)
        if rest := _rest(ranked[area].to_numpy(), len(drawn)):
            axes.plot([], [], linestyle="none", label=rest)
        _cut_to_corner(axes, side, is_roc)
        legend_below(figure, axes, f"{short} (interval), lowest first")

    save(path, (WIDTH, 5.2 + 0.22 * min(len(areas), len(COLOURS))), draw)


def _rest(areas: np.ndarray, drawn: int) -> str:
    """The legend's entry of the classes without a curve, from rising areas; empty if there are none."""
    rest = areas[drawn:]
    if not len(rest):
        return ""
    low, high = f"{rest[0]:.3f}", f"{rest[-1]:.3f}"
    return f"{len(rest)} more class{'es' if len(rest) > 1 else ''}: {low if low == high else f'{low} to {high}'}"


def _corner_side(curves: list[np.ndarray], is_roc: bool) -> float:
    """The side of the smallest corner that each curve (points, 2) crosses; 1 is the complete square."""
    misses = []
    for points in curves:
        x = points[:, 0] if is_roc else 1 - points[:, 0]
        misses.append(float(np.maximum(x, 1 - points[:, 1]).min()))
    return next((side for side in _CORNERS if max(misses, default=1) <= side / 2), 1.0)


def _cut_to_corner(axes: Axes, side: float, is_roc: bool) -> None:
    pad = 0.02 * side
    axes.set_ylim(1 - side - pad, 1 + pad)
    axes.set_xlim(*((-pad, side + pad) if is_roc else (1 - side - pad, 1 + pad)))
    if side < 1:
        corner = "upper left" if is_roc else "upper right"
        axes.text(0.98 if is_roc else 0.02, 0.03, f"the {corner} corner, {side:.0%} of each axis", color=NEUTRAL,
                  transform=axes.transAxes, ha="right" if is_roc else "left")  # fmt: skip


def plot_reliability(path: Path, table: pd.DataFrame, method: str) -> None:
    """Plot accuracy minus confidence in bins of equal mass, before and after calibration, with intervals.

    The difference is visible for any model; the accuracy itself, of a good one, is a point in the corner.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=NEUTRAL, linewidth=1)
        for name, colour, marker, shift in (("before", COLOURS[1], "s", -0.12), ("after", COLOURS[0], "o", 0.12)):
            bins = table[table["calibration"] == name]
            gap = (bins["accuracy"] - bins["confidence"]).to_numpy()
            error = float((bins["weight"] * np.abs(gap)).sum() / bins["weight"].sum())
            ends = [bins["accuracy"] - bins["low"], bins["high"] - bins["accuracy"]]
            what = f"after calibration ({method})" if name == "after" else "before calibration"
            axes.errorbar(np.arange(len(bins)) + shift, gap, yerr=ends, color=colour, marker=marker, markersize=5,
                          linestyle="none", elinewidth=1.2, label=f"{what}, error {error:.3f}")  # fmt: skip
        after = table[table["calibration"] == "after"]
        axes.set_xticks(range(len(after)), [_confidence(value) for value in after["confidence"]], rotation=60)
        axes.set(xlabel="mean confidence of the bin after calibration", ylabel="accuracy minus confidence")
        axes.set_title("Reliability: above 0 too cautious, below 0 too sure")
        legend_below(figure, axes)

    save(path, (WIDTH, 4.8), draw)


def plot_threshold_reliability(path: Path, table: pd.DataFrame) -> None:
    """Plot mean probability and observed share of each class among the images below and above its threshold.

    Parameters
    ----------
    table : of `threshold_reliability`.
    """
    title = "Probabilities near the thresholds of the decision"
    if table.empty:
        save_note(path, title, "No image is near a threshold: each has odds more than five times larger or smaller.")
        return
    labels = [f"{class_label(row['class'], 24)}, {row['side']} {row['threshold']:.2g}  ({row['images']:,})"
              for _, row in table.iterrows()]  # fmt: skip
    places = np.arange(len(table))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        ends = [table["share"] - table["low"], table["high"] - table["share"]]
        axes.errorbar(table["share"], places, xerr=ends, color=COLOURS[0], marker="o", markersize=6, linestyle="none",
                      elinewidth=1.5, label="observed share of the class")  # fmt: skip
        axes.plot(table["probability"], places, color=COLOURS[1], marker="D", markersize=6, linestyle="none",
                  label="mean probability of the class")  # fmt: skip
        axes.plot(table["threshold"], places, color=NEUTRAL, marker="|", markersize=14, linestyle="none",
                  label="threshold")  # fmt: skip
        axes.set_yticks(places, labels)
        axes.set(ylim=(len(table) - 0.4, -0.6), xlim=(-0.02, 1.02), xlabel="probability of the class")
        axes.grid(visible=False, axis="y")
        legend_below(figure, axes)

    save(path, (WIDTH, 2.2 + 0.3 * len(table)), draw)


def _confidence(value: float) -> str:
    """A confidence with as many nines as it has: 0.62, 0.997; never rounded up to 1."""
    digits = next((d for d in (2, 3, 4) if round(value, d) < 1), 0)
    return f"{value:.{digits}f}" if digits else "≈ 1"


def plot_cost_curve(path: Path, table: pd.DataFrame) -> None:
    """Plot normalised expected cost against the costliest class's share of the cost at stake.

    The best constant decision leaves the plot if the others are far below it; the legend has the highest cost of each.
    """
    lines = (  # wide ones below narrow ones, so that all are visible where they are equal
        ("best_constant", "best constant decision", ":", NEUTRAL, 1.8),
        (
            "argmax",
            "argmax",
            "-",
            COLOURS[4],
            7.0,
        ),  # wide lines below narrow ones: all are visible where they are equal
        ("fixed_decisions", "decisions fixed", "-", COLOURS[2], 4.0),
        ("policy", "policy", "-", COLOURS[6], 1.5),
    )
    highest = {name: float(table[name].max()) for name, *_ in lines}
    of_model = max(value for name, value in highest.items() if name != "best_constant")
    lowest = min(0.0, *(float(table[name].min()) for name, *_ in lines))
    is_zoomed = 0 < of_model < _ZOOM * highest["best_constant"]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, label, style, colour, thickness in lines:
            at_most = f"{label}, at most {highest[name]:.3g}" if highest[name] else f"{label}, 0 everywhere"
            axes.plot(table["x"], table[name], linestyle=style, color=colour, linewidth=thickness, label=at_most)
        costliest = class_label(table["costliest_class"].iloc[0], 24)
        axes.set(xlabel=f"share of the cost at stake that belongs to {costliest}", ylabel="normalised expected cost",
                 xlim=(0, 1), ylim=(lowest, 1.15 * of_model if is_zoomed else None), title="Cost curve")  # fmt: skip
        legend_below(figure, axes)

    save(path, (WIDTH, 5.2), draw)


def plot_referral(path: Path, table: pd.DataFrame, refer: float | None, rate: float) -> None:
    """Plot cost against referral rate, up to the rate from which no image costs anything.

    Parameters
    ----------
    refer : cost of referring an image; None if it depends on the class, or referral is not available.
    rate : referral rate of the policy.
    """
    rates, cost = table["referral_rate"].to_numpy(), table["cost_of_decided"].to_numpy()
    end, is_free = 1.0, np.abs(cost[::-1]).cumsum()[::-1] <= 1e-12  # at this rate and all higher ones
    if is_free.any():
        end = min(1.0, max(1.5 * rates[is_free.argmax()], 1.2 * rate, 0.02))

    heading = "Cost by referral rate, largest expected cost first"
    if is_free[0]:
        save_note(path, heading, "No decision costs anything, so referral saves nothing.")
        return

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        zero = f", 0 from {rates[is_free.argmax()]:.1%} on" if is_free.any() else ""
        axes.plot(rates, cost, "-", label=f"mean cost of images not referred{zero}")
        shown = cost[rates <= end]
        if "cost_with_referral" in table:
            total = table["cost_with_referral"].to_numpy()
            of_referral = "by class" if refer is None else f"{refer:g}"
            axes.plot(rates, total, "--", label=f"mean cost of all images, cost of referral {of_referral}")
            axes.axvline(rate, color=NEUTRAL, linestyle=":", label=f"policy: {rate:.1%} referred")
            shown = np.append(shown, total[rates <= end])
        axes.set(xlabel="referral rate", ylabel="mean cost per image", title=heading, xlim=(0, end),
                 ylim=(min(0.0, shown.min()), max(0.0, 1.05 * shown.max())))  # fmt: skip
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1 if end < 0.1 else 0))
        legend_below(figure, axes)

    save(path, (WIDTH, 4.8), draw)
