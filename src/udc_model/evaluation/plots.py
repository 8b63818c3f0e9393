"""Pictures: confusion matrix, ROC, precision-recall, training curves. Colour-blind safe, readable at 50 classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]

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


def plot_confusion_matrix(path: Path, counts: NDArray[np.integer], classes: list[str], title: str) -> None:
    """Counts (K, K), rows true; colours are shares of the row, so that rare classes can be read too."""
    n = len(classes)
    side = float(np.clip(0.55 * n + 2.2, 4.2, 18))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        rotate = max(map(len, classes)) > 3 and n > 3
        axes.set_xticks(range(n), classes, rotation=45 if rotate else 0, ha="right" if rotate else "center")
        axes.set_yticks(range(n), classes)
        axes.set(xlabel="decided", ylabel="true", title=title)
        font = float(np.clip(220 / n, 4, 12))
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[i, j] > 0.55 else "#222222"
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color=colour, fontsize=font)
        figure.colorbar(image, ax=axes, shrink=0.75, label="share of the true class").outline.set_visible(False)

    _save(path, (side + 1.0, side), draw)


def plot_roc(path: Path, targets: Indices, probabilities: Floats, classes: list[str]) -> None:
    """ROC curve of each class against the rest."""

    def curve(k: int) -> tuple[Floats, Floats, float]:
        fpr, tpr, _ = roc_curve(targets == k, probabilities[:, k])
        return fpr, tpr, float(auc(fpr, tpr))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#aaaaaa", linestyle=":", label="_chance")
        _plot_classes(axes, classes, curve, "AUC")
        axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC, one class against the rest")

    _save(path, (6.4, 4.8), draw)


def plot_precision_recall(path: Path, targets: Indices, probabilities: Floats, classes: list[str]) -> None:
    """Precision-recall curve of each class against the rest."""

    def curve(k: int) -> tuple[Floats, Floats, float]:
        precision, recall, _ = precision_recall_curve(targets == k, probabilities[:, k])
        return recall, precision, float(average_precision_score(targets == k, probabilities[:, k]))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _plot_classes(axes, classes, curve, "AP")
        axes.set(xlabel="recall", ylabel="precision", title="Precision-recall, one class against the rest")

    _save(path, (6.4, 4.8), draw)


def _plot_classes(
    axes: Axes, classes: list[str], curve: Callable[[int], tuple[Floats, Floats, float]], area_name: str
) -> None:
    many = len(classes) > _LEGEND_CLASSES
    for k, name in enumerate(classes):
        x, y, area = curve(k)
        style = "-" if k < len(COLOURS) else "--"
        if many:
            axes.plot(x, y, color=COLOURS[0], alpha=0.35, linewidth=1)
        else:
            axes.plot(x, y, style, label=f"{name} ({area_name} {area:.3f})", linewidth=1.5)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    if not many:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


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
