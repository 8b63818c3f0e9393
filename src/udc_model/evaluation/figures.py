"""All pictures of an evaluation, drawn from its tables: ``python -m udc_model.evaluation.figures PREPARED``.

A program of its own, for it takes as long as all else that evaluate does, and needs neither torch nor MLflow: evaluate
runs it beside its logging. It reads the folders of splits from the standard input, each once its tables are there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from udc_model.evaluation.plots import (
    plot_class_curves,
    plot_confusion_matrix,
    plot_cost_curve,
    plot_gallery,
    plot_referral,
    plot_reliability,
)

GALLERY = 24  # images


def draw_pictures(folder: Path, prepared: Path) -> None:
    """Draw the pictures of one split: the confusion matrix, and of the test split all that it has tables of.

    ``folder`` is the split's own in the evaluation folder; the images of the gallery lie in ``prepared``.
    """
    split = folder.name
    _confusion(folder, split)
    if split != "test":
        return
    policy = json.loads((folder.parent / "policy.json").read_text(encoding="utf-8"))
    areas = _table(folder, "areas")
    for kind in ("roc", "precision_recall"):
        curves, mean = _table(folder, f"{kind}_by_class"), _table(folder, kind)
        plot_class_curves(folder / f"{kind}.png", curves, mean, areas, kind)
    plot_reliability(folder / "reliability.png", _table(folder, "reliability"), policy["calibration"]["method"])
    if (folder / "cost_curve.csv").is_file():
        dear = (folder / "costliest_class.txt").read_text(encoding="utf-8")
        plot_cost_curve(folder / "cost_curve.png", _table(folder, "cost_curve"), dear)
    decided = _table(folder, "predictions")
    rate = float(np.average(decided["predicted"] == "refer", weights=decided["weight"]))
    plot_referral(folder / "referral.png", _table(folder, "referral"), policy["refer"], rate)
    _gallery(folder, prepared, split)


def _table(folder: Path, name: str) -> pd.DataFrame:
    text = dict.fromkeys(("class", "true", "decided", "predicted", "path", "group"), str)
    return pd.read_csv(folder / f"{name}.csv", dtype=text, keep_default_na=False, na_values={"expected_cost": ""})


def _confusion(folder: Path, split: str) -> None:
    confusion = json.loads((folder / "confusion_matrix.json").read_text(encoding="utf-8"))
    counts, money = np.array(confusion["counts"]), np.array(confusion["money"])
    shares = counts / counts.sum(axis=1, keepdims=True)
    classes, outcomes = confusion["classes"], confusion["outcomes"]
    about = f"{split} ({counts.sum():,} images)"
    plot_confusion_matrix(folder / "confusion_matrix.png", counts, classes, outcomes, f"Confusion matrix, {about}")
    if split == "test":
        title = f"Share of each true class, {about}"
        plot_confusion_matrix(folder / "confusion_shares.png", shares, classes, outcomes, title, "shares")
        title = f"Money lost, {money.sum():,.4g} on {about}"
        plot_confusion_matrix(folder / "confusion_cost.png", money, classes, outcomes, title, "money")


def _gallery(folder: Path, prepared: Path, split: str) -> None:
    mistakes = _table(folder, "costliest_mistakes")
    stored = np.load(prepared / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    images = [np.array(stored[row]) for row in mistakes["row"][:GALLERY]]
    captions = [
        f"{row.true}, decided {row.decided}\np = {row.probability:.2f}, cost {row.cost:g}"
        for row in mistakes[:GALLERY].itertuples()
    ]
    plot_gallery(folder / "costliest_mistakes.png", images, captions, f"The dearest mistakes, {split}")


if __name__ == "__main__":
    for line in sys.stdin:
        draw_pictures(Path(line.rstrip("\n")), Path(sys.argv[1]))
