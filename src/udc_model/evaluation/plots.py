"""Plots that do not belong to one kind of table: images with captions, sweeps, training curves, range test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from udc_model.evaluation.plot_style import COLOURS, LINES, NEUTRAL, WIDTH, class_label, legend_below, save, save_note

CAPTION = 22  # characters of a caption's line, at most as wide as its image


def plot_gallery(path: Path, images: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str) -> None:
    """Plot images (S, S, C) uint8, six per row, with captions of equally many lines of at most `CAPTION` characters."""
    if not len(images):
        save_note(path, title, "No mistake has a cost.")
        return
    columns = min(6, max(3, len(images)))
    rows = -(-len(images) // columns)
    lines = max(caption.count("\n") + 1 for caption in captions)

    def draw(figure: Figure) -> None:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, image, caption in zip(grid, images, captions, strict=False):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(caption, fontsize=10, fontweight="normal", loc="center")

    save(path, (2.0 * columns, (1.9 + 0.17 * lines) * rows + 0.5), draw, has_images=True)


def plot_sweep(path: Path, table: pd.DataFrame, swept: str, panels: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Plot metrics against one swept value.

    Parameters
    ----------
    swept : column of the swept value.
    panels : title and columns of each panel; columns ``…_low`` and ``…_high`` become a band.
    """

    def draw(figure: Figure) -> None:
        parts = figure.subfigures(len(panels), 1, squeeze=False)[:, 0]
        for part, (title, names) in zip(parts, panels, strict=True):
            axes = part.subplots()
            for k, name in enumerate(names):
                colour, line = COLOURS[k % len(COLOURS)], LINES[k % len(LINES)]
                axes.plot(table[swept], table[name], marker="o", markersize=4, color=colour, linestyle=line,
                          label=class_label(name.replace("_", " ")))  # fmt: skip
                if f"{name}_low" in table:
                    axes.fill_between(table[swept], table[f"{name}_low"], table[f"{name}_high"], color=colour,
                                      alpha=0.2, linewidth=0)  # fmt: skip
            axes.set(xlabel=class_label(swept, 60), title=class_label(title))
            legend_below(part, axes)

    save(path, (WIDTH, 4.4 * len(panels)), draw)


def plot_training_curves(path: Path, curves: pd.DataFrame, best_epoch: int) -> None:
    """Plot losses and validation scores by epoch, with the selected epoch marked.

    The scores' axis begins at the lowest score after the first quarter of the epochs, where later epochs differ.
    """

    def draw(figure: Figure) -> None:
        upper, lower = figure.subfigures(2, 1, squeeze=False)[:, 0]
        epochs, loss, scores = curves["epoch"], upper.subplots(), lower.subplots()
        loss.plot(epochs, curves["train_loss"], label="training loss")
        loss.plot(epochs, curves["validation_log_loss"], label="validation log loss")
        loss.set(title="Loss", yscale="log")
        names = [f"validation_{name}" for name in ("accuracy", "balanced_accuracy", "macro_f1")]
        for name in names:
            scores.plot(epochs, curves[name], label=name.removeprefix("validation_").replace("_", " "))
        late = curves[names][len(curves) // 4 :].to_numpy()
        pad = 0.05 * max(np.ptp(late), 0.01)
        scores.set(title="Validation, argmax decisions", ylim=(late.min() - pad, late.max() + pad))
        for part, axes in ((upper, loss), (lower, scores)):
            axes.axvline(best_epoch, color=NEUTRAL, linestyle=":", label=f"best epoch: {best_epoch}")
            axes.set_xlabel("epoch")
            legend_below(part, axes)

    save(path, (WIDTH, 7.6), draw)


def plot_range_test(path: Path, table: pd.DataFrame, steepest: float) -> None:
    """Plot loss against learning rate, with the rate of the steepest descent marked."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(table["learning_rate"], table["loss"], color="#bbbbbb", linewidth=1, label="loss of the batch")
        axes.plot(table["learning_rate"], table["smoothed_loss"], color=COLOURS[0], linestyle="-", label="smoothed")
        axes.axvline(steepest, color=NEUTRAL, linestyle=":", label=f"steepest descent: {steepest:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
        legend_below(figure, axes)

    save(path, (WIDTH, 4.6), draw)
