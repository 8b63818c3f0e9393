"""All figures of an evaluation, drawn from its tables: ``python -m udc_model.evaluation.figures PREPARED``.

Drawing takes as long as the rest of the stage evaluate and needs neither torch nor MLflow, so another process draws
while evaluate logs. It reads the folders of splits from standard input, one per line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

import udc_model

GALLERY = 24  # images


class FigureProcess:
    """A context manager that draws figures in another process, which imports its libraries on entry.

    Parameters
    ----------
    prepared : folder with the packed splits.
    """

    def __init__(self, prepared: Path) -> None:
        command = [sys.executable, "-m", "udc_model.evaluation.figures", str(prepared)]
        paths = [str(Path(udc_model.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}  # this copy of the package
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def __enter__(self) -> FigureProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def draw(self, folder: Path) -> None:
        """Start to draw from the tables in the folder of a split."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # finish() raises with the process's error output
            self.process.stdin.write(f"{folder}\n")
            self.process.stdin.flush()

    def finish(self) -> None:
        """Wait until all figures are drawn; RuntimeError if the process failed."""
        _, errors = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError(f"drawing the figures failed: {errors}")


def draw_figures(folder: Path, prepared: Path) -> None:
    """Draw the figures of one split: the confusion matrix and, for the test split, all others.

    Parameters
    ----------
    folder : the split's folder in the evaluation folder; its name is the name of the split.
    prepared : folder with the packed splits, which hold the images of the gallery.
    """
    from udc_model.evaluation import plots  # matplotlib, which the process that waits does not need

    split = folder.name
    _draw_confusion(folder, split)
    if split != "test":
        return
    policy = json.loads((folder.parent / "policy.json").read_text(encoding="utf-8"))
    areas = _table(folder, "areas")
    for kind in ("roc", "precision_recall"):
        curves, mean = _table(folder, f"{kind}_by_class"), _table(folder, kind)
        plots.plot_class_curves(folder / f"{kind}.png", curves, mean, areas, kind)
    plots.plot_reliability(folder / "reliability.png", _table(folder, "reliability"), policy["calibration"]["method"])
    if (folder / "cost_curve.csv").is_file():
        plots.plot_cost_curve(folder / "cost_curve.png", _table(folder, "cost_curve"))
    predictions = _table(folder, "predictions")
    rate = float(np.average(predictions["predicted"] == "refer", weights=predictions["weight"]))
    plots.plot_referral(folder / "referral.png", _table(folder, "referral"), policy["refer"], rate)
    _draw_gallery(folder, prepared, split)


def _table(folder: Path, name: str) -> pd.DataFrame:
    text = dict.fromkeys(("class", "true", "decided", "predicted", "path", "group", "costliest_class"), str)
    return pd.read_csv(folder / f"{name}.csv", dtype=text, keep_default_na=False, na_values={"expected_cost": ""})


def _draw_confusion(folder: Path, split: str) -> None:
    from udc_model.evaluation.plots import plot_confusion_matrix

    confusion = json.loads((folder / "confusion_matrix.json").read_text(encoding="utf-8"))
    counts, costs = np.array(confusion["counts"]), np.array(confusion["costs"])
    shares = counts / counts.sum(axis=1, keepdims=True)
    classes, outcomes = confusion["classes"], confusion["outcomes"]
    of_split = f"{split} ({counts.sum():,} images)"
    plot_confusion_matrix(folder / "confusion_matrix.png", counts, classes, outcomes, f"Confusion matrix, {of_split}")
    if split == "test":
        title = f"Share of each true class, {of_split}"
        plot_confusion_matrix(folder / "confusion_shares.png", shares, classes, outcomes, title, "shares")
        title = f"Total cost {costs.sum():,.4g}, {of_split}"
        plot_confusion_matrix(folder / "confusion_cost.png", costs, classes, outcomes, title, "costs")


def _draw_gallery(folder: Path, prepared: Path, split: str) -> None:
    from udc_model.evaluation.plots import plot_gallery

    mistakes = _table(folder, "costliest_mistakes")
    stored = np.load(prepared / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    images = [np.array(stored[row]) for row in mistakes["row"][:GALLERY]]
    captions = [
        f"{row.true}, decided {row.decided}\np = {row.probability:.2f}, cost {row.cost:g}"
        for row in mistakes[:GALLERY].itertuples()
    ]
    plot_gallery(folder / "costliest_mistakes.png", images, captions, f"Costliest mistakes, {split}")


if __name__ == "__main__":
    for line in sys.stdin:
        draw_figures(Path(line.rstrip("\n")), Path(sys.argv[1]))
