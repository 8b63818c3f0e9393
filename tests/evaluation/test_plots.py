"""Plots of few and many classes with long names; equal plots are equal files."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from udc_model.decisions.policy import Policy
from udc_model.evaluation import plots
from udc_model.evaluation.curves import class_curves, mean_curves
from udc_model.evaluation.metrics import Scored


@pytest.mark.parametrize("n", [2, 12, pytest.param(50, marks=pytest.mark.slow)])
def test_matrices_and_curves_for_few_and_many_classes(n, rng, tmp_path):
    classes = [f"a rather long class name {k}" for k in range(n)]
    targets = np.repeat(np.arange(n), 4)
    p = rng.dirichlet(np.ones(n), 4 * n)
    counts = rng.integers(0, 2000, (n, n + 1)) * (rng.random((n, n + 1)) < 5 / n)
    outcomes = Policy(classes, (1 - np.eye(n)).tolist(), refer=0.3).outcomes
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    for kind, values in (("counts", counts), ("shares", shares), ("costs", counts * 3.5)):
        files = [tmp_path / f"{kind}{i}.png" for i in (1, 2)]
        for file in files[: 1 if n > 2 else 2]:
            plots.plot_confusion_matrix(file, values, classes, outcomes, "Matrix", kind)
        assert n > 2 or files[0].read_bytes() == files[1].read_bytes()
    scored = Scored(targets, targets, p, 1 - np.eye(n))
    roc, pr, areas = mean_curves(scored, classes, 100, 0.95)
    by_class = class_curves(scored, classes)
    plots.plot_class_curves(tmp_path / "roc.png", by_class[0], roc, areas, "roc")
    plots.plot_class_curves(tmp_path / "pr.png", by_class[1], pr, areas, "precision_recall")


@pytest.mark.parametrize("n", [0, 1, 24])
def test_galleries_of_any_size(n, rng, tmp_path):
    images = list(rng.integers(0, 255, (n, 16, 16, 3), dtype=np.uint8))
    plots.plot_gallery(tmp_path / "gallery.png", images, ["3, decided 7"] * n, "Costliest mistakes")
    assert (tmp_path / "gallery.png").stat().st_size > 1000


def test_sweep_with_and_without_bands(tmp_path):
    table = pd.DataFrame({"swept": [0, 1, 2], "cost": [1.0, 2, 3], "cost_low": [0.5, 1, 2], "cost_high": [2.0, 3, 4],
                          "recall/a": [0.5, 0.6, 0.7]})  # fmt: skip
    plots.plot_sweep(tmp_path / "sweep.png", table, "swept", [("Cost", ["cost"]), ("Recall", ["recall/a"])])
    assert (tmp_path / "sweep.png").is_file()


def test_gallery_of_grey_images_has_no_colours(tmp_path, rng):
    images = list(rng.integers(0, 255, (3, 16, 16, 1), dtype=np.uint8))
    plots.plot_gallery(tmp_path / "grey.png", images, [""] * 3, "")
    pixels = np.asarray(Image.open(tmp_path / "grey.png").convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=-1).max() == 0
