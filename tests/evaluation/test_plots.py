"""What the plots show: few and many classes, perfect and useless models, long names; equal plots are equal files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from udc_model.decisions.policy import Policy
from udc_model.evaluation.curve_plots import (
    plot_class_curves,
    plot_cost_curve,
    plot_referral,
    plot_reliability,
    plot_threshold_reliability,
)
from udc_model.evaluation.curves import class_curves, cost_curve, mean_curves, referral_curve, reliability
from udc_model.evaluation.matrix_plots import LARGEST_MATRIX, plot_confusion_matrix, plot_recall
from udc_model.evaluation.metrics import Scored, split_metrics
from udc_model.evaluation.plot_style import COLOURS, class_label
from udc_model.evaluation.plots import CAPTION, plot_gallery, plot_range_test, plot_sweep, plot_training_curves
from udc_model.evaluation.thresholds import threshold_reliability


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order; nothing of them may overlap a legend or leave the image."""
    figures = []
    original = Figure.draw

    def draw(figure, renderer):
        figures.append(figure)
        original(figure, renderer)
        _check_layout(figure)

    monkeypatch.setattr(Figure, "draw", draw)
    return figures


def _check_layout(figure):
    parts = [figure, *figure.subfigs]
    axes = [each.bbox for part in parts for each in part.axes]
    for legend in (legend for part in parts for legend in part.legends):
        box = legend.get_window_extent()
        assert not any(box.overlaps(each) for each in axes)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1 + 1
    assert all(each.width > 100 and each.height > 60 for each in axes if each.width > each.height / 8)


def texts(figure):
    """All visible texts of a figure."""
    return [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")) if text.get_text()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def scored_of(classes, margin, rng, per_class=20):
    targets = np.repeat(np.arange(classes), per_class)
    logits = rng.normal(size=(len(targets), classes)) + margin * np.eye(classes)[targets]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Scored(targets, p.argmax(axis=1), p, 1 - np.eye(classes))


@pytest.mark.parametrize("kind", ["counts", "shares", "costs"])
def test_small_matrices_have_their_numbers_and_equal_bytes(kind, tmp_path, drawn):
    values = {"counts": np.array([[40, 2, 1], [0, 7, 3]]), "shares": np.array([[0.9, 0.05, 0.05], [0, 0.7, 0.3]]),
              "costs": np.array([[0, 8.5, 0.25], [0, 0, 2]])}[kind]  # fmt: skip
    for name in ("1.png", "2.png"):
        plot_confusion_matrix(tmp_path / name, values, ["a", "$b$"], ["a", "$b$", "refer"], "Matrix", kind)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    shown = texts(drawn[0])
    expected = {"counts": ["40", "2", "1", "7", "3"], "shares": ["90.0%", "5.0%", "70.0%", "30.0%"],
                "costs": ["8.5", "0.25"]}[kind]  # fmt: skip
    assert set(expected) <= set(shown)
    bar = {"costs": "total cost of these images"}.get(kind, "share of the true class")
    assert bar in shown


def test_large_matrices_become_their_costliest_pairs(tmp_path, drawn):
    n = LARGEST_MATRIX + 1
    classes = [f"class {k}" for k in range(n)]
    costs = np.zeros((n, n + 1))
    costs[3, 7], costs[2, n], costs[5, 5] = 40, 12.5, 1000  # the diagonal is no mistake
    plot_confusion_matrix(tmp_path / "a.png", costs, classes, [*classes, "refer"], "Total cost", "costs")
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert labels == ["class 3 → class 7", "class 2 → refer"]
    assert {"40", "12.5", "true → decided, 2 of 2 pairs"} <= set(texts(drawn[0]))


def test_a_matrix_of_300_classes_is_drawn_as_few_pairs_and_bytes(rng, tmp_path, drawn):
    classes = [f"a rather long class name of a species {k}" for k in range(300)]
    counts = rng.integers(0, 2000, (300, 300)) * (rng.random((300, 300)) < 0.02)
    plot_confusion_matrix(tmp_path / "a.png", counts, classes, classes, "Matrix", "counts")
    assert (tmp_path / "a.png").stat().st_size < 200_000
    assert len(drawn[0].axes[0].patches) == 15


def test_a_matrix_without_a_cost_is_a_sentence(tmp_path, drawn):
    for n in (2, LARGEST_MATRIX + 1):
        plot_confusion_matrix(tmp_path / "a.png", np.zeros((n, n)), ["x"] * n, ["x"] * n, "Total cost 0", "costs")
        assert texts(drawn[-1]) == ["Total cost 0", "No decision has a cost."]


def test_long_names_differ_after_they_are_shortened():
    names = [f"a rather long class name of a species {k:03d}" for k in (1, 2)]
    labels = [class_label(name, 20) for name in names]
    assert labels == ["a rather l…ecies 001", "a rather l…ecies 002"]


@pytest.mark.parametrize(("classes", "curves", "rest"), [(4, 4, []), (12, 7, ["5 more classes"])])
def test_class_curves_show_the_lowest_areas_in_different_colours(classes, curves, rest, rng, tmp_path, drawn):
    names = [f"class {k}" for k in range(classes)]
    scored = scored_of(classes, 1.0, rng)
    roc, pr, areas = mean_curves(scored, names, 100, 0.95)
    for kind, table, mean in zip(("roc", "precision_recall"), class_curves(scored, names), (roc, pr), strict=True):
        plot_class_curves(tmp_path / "curves.png", table, mean, areas, kind)
        area = "roc_auc" if kind == "roc" else "average_precision"
        lowest = areas.sort_values(area)["class"].iloc[0]
        entries = legend(drawn[-1])
        assert entries[1].startswith(f"{lowest}: {areas[area].min():.3f} (")
        assert len(entries) == 1 + curves + len(rest)
        assert [entry.split(":")[0] for entry in entries[1 + curves :]] == rest
        lines = [line for line in drawn[-1].axes[0].lines if line.get_label().startswith("class ")]
        assert len({line.get_color() for line in lines}) == len(lines) == curves


def test_near_perfect_curves_are_cut_to_their_corner_and_perfect_ones_are_numbers(rng, tmp_path, drawn):
    names = [f"class {k}" for k in range(3)]
    for margin, is_perfect in ((3.0, False), (60.0, True)):
        scored = scored_of(3, margin, rng, 400)
        roc, pr, areas = mean_curves(scored, names, 100, 0.95)
        for kind, table, mean in zip(("roc", "precision_recall"), class_curves(scored, names), (roc, pr), strict=True):
            plot_class_curves(tmp_path / "curves.png", table, mean, areas, kind)
            figure = drawn[-1]
            if is_perfect:
                assert any("1.000 for each of the 3 classes; the lowest is 1.00000" in text for text in texts(figure))
            else:
                assert figure.axes[0].get_ylim()[0] > 0.4
                assert any(f"the upper {'left' if kind == 'roc' else 'right'} corner" in text for text in texts(figure))


def test_useless_curves_have_the_complete_axes(rng, tmp_path, drawn):
    scored = scored_of(3, 0.0, rng)
    roc, _, areas = mean_curves(scored, list("abc"), 100, 0.95)
    plot_class_curves(tmp_path / "roc.png", class_curves(scored, list("abc"))[0], roc, areas, "roc")
    assert drawn[0].axes[0].get_ylim() == pytest.approx((-0.02, 1.02))


def test_reliability_shows_the_gap_and_the_error(rng, tmp_path, drawn):
    scored = scored_of(3, 2.0, rng, 100)
    table = reliability(scored, scored.probabilities, 5, 0.95)
    plot_reliability(tmp_path / "reliability.png", table, "temperature")
    after = table[table["calibration"] == "after"]
    error = np.average((after["accuracy"] - after["confidence"]).abs(), weights=after["weight"])
    assert legend(drawn[0])[1] == f"after calibration (temperature), error {error:.3f}"
    confidences = [float(label.get_text()) for label in drawn[0].axes[0].get_xticklabels()]
    assert confidences == pytest.approx(after["confidence"], abs=0.005)


def test_the_error_after_calibration_is_the_metric_at_the_frequencies_of_deployment(rng, tmp_path, drawn):
    scored = scored_of(3, 1.0, rng, 100)
    policy = Policy(list("abc"), scored.outcome_costs.tolist(), training_prior=[1 / 3] * 3,
                    deployment_prior=[0.9, 0.09, 0.01])  # fmt: skip
    logits = np.log(scored.probabilities)
    shifted = replace(scored, probabilities=policy.probabilities(logits), weights=policy.weights(scored.targets))
    table = reliability(shifted, scored.probabilities, 10, 0.95)
    plot_reliability(tmp_path / "reliability.png", table, "none")
    error_before, error = (split_metrics(each, 10)["expected_calibration_error"] for each in (scored, shifted))
    assert legend(drawn[0]) == [f"before calibration, error {error_before:.3f}",
                                f"after calibration (none), error {error:.3f}"]  # fmt: skip
    assert table["accuracy"].between(table["low"], table["high"]).all()


@pytest.mark.parametrize(("policy", "top"), [(0.01, 0.0115), (0.3, None)])
def test_cost_curves_far_below_the_best_constant_decision_have_their_own_scale(policy, top, tmp_path, drawn):
    table = pd.DataFrame({"x": [0.1, 0.9], "policy": policy, "fixed_decisions": policy, "argmax": policy,
                          "best_constant": [0.1, 0.8], "costliest_class": "3"})  # fmt: skip
    plot_cost_curve(tmp_path / "cost.png", table)
    assert drawn[0].axes[0].get_ylim()[1] == pytest.approx(top or 0.8, rel=0.06)
    assert legend(drawn[0])[0] == "best constant decision, at most 0.8"
    plot_cost_curve(tmp_path / "cost.png", table.assign(policy=0.0))
    assert legend(drawn[1])[-1] == "policy, 0 everywhere"


def test_referral_ends_where_nothing_costs_anything(tmp_path, drawn):
    table = pd.DataFrame({"referral_rate": [0.0, 0.05, 0.1, 0.5, 0.99], "cost_of_decided": [1.0, 0.5, 0.0, 0.0, 0.0],
                          "cost_with_referral": [1.0, 0.6, 0.2, 0.9, 2.0]})  # fmt: skip
    plot_referral(tmp_path / "referral.png", table, 2.0, 0.07)
    assert drawn[0].axes[0].get_xlim()[1] == pytest.approx(0.15)
    assert legend(drawn[0]) == ["mean cost of images not referred, 0 from 10.0% on",
                                "mean cost of all images, cost of referral 2", "policy: 7.0% referred"]  # fmt: skip
    plot_referral(tmp_path / "referral.png", table.assign(cost_of_decided=0.0), None, 0.0)
    assert any("No decision costs anything" in text for text in texts(drawn[1]))


def test_gains_are_inside_the_axes(tmp_path, drawn):
    table = pd.DataFrame({"referral_rate": [0.0, 0.5, 0.99], "cost_of_decided": [-1.0, -0.5, -0.2],
                          "cost_with_referral": [-1.0, -0.7, -0.4]})  # fmt: skip
    plot_referral(tmp_path / "referral.png", table, 2.0, 0.07)
    low, high = drawn[0].axes[0].get_ylim()
    assert (low, high) == (-1.0, 0.0)
    curve = pd.DataFrame({"x": [0.1, 0.9], "policy": [-0.3, 0.1], "fixed_decisions": 0.2, "argmax": 0.2,
                          "best_constant": 0.25, "costliest_class": "3"})  # fmt: skip
    plot_cost_curve(tmp_path / "cost.png", curve)
    assert drawn[1].axes[0].get_ylim()[0] == -0.3


def test_thresholds_name_class_side_and_images(rng, tmp_path, drawn):
    table = threshold_reliability(scored_of(3, 1.0, rng), ["a", "b", "c"], 1 - np.eye(3), 0.95)
    plot_threshold_reliability(tmp_path / "a.png", table)
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    first = table.iloc[0]
    assert labels[0] == f"{first['class']}, below {first['threshold']:.2g}  ({first['images']})"
    assert len(labels) == len(table) == 6
    assert set(legend(drawn[0])) == {"mean probability of the class", "threshold", "observed share of the class"}
    plot_threshold_reliability(tmp_path / "b.png", table[:0])
    assert any("No image is near a threshold" in text for text in texts(drawn[1]))


def test_curves_of_a_real_table_draw(rng, tmp_path, drawn):
    scored = scored_of(3, 1.0, rng)
    policy = Policy(list("abc"), (1 - np.eye(3)).tolist())
    plot_cost_curve(tmp_path / "cost.png", cost_curve(scored, policy))
    plot_referral(tmp_path / "referral.png", referral_curve(scored), None, 0.0)
    assert len(drawn) == 2


@pytest.mark.parametrize(("classes", "shown"), [(2, 2), (300, 30)])
def test_recall_has_the_lowest_classes_first(classes, shown, rng, tmp_path, drawn):
    recall = rng.permutation(np.linspace(0.3, 1, classes))
    names = [f"class {k}" for k in range(classes)]
    table = pd.DataFrame({"class": names, "recall": recall, "recall_low": recall - 0.1,
                          "recall_high": (recall + 0.1).clip(max=1), "support": 50})  # fmt: skip
    plot_recall(tmp_path / "recall.png", table, "Recall")
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert len(labels) == shown
    assert labels[0] == f"class {recall.argmin()}  (50)"
    assert (f"the 30 of {classes} classes of least recall" in texts(drawn[0])) == (classes > shown)


def test_recall_of_ordinal_classes_has_their_order(tmp_path, drawn):
    recall = np.array([0.9, 0.5, 0.7])
    table = pd.DataFrame({"class": ["mild", "bad", "worst"], "recall": recall, "recall_low": recall - 0.1,
                          "recall_high": recall + 0.05, "support": 50})  # fmt: skip
    plot_recall(tmp_path / "recall.png", table, "Recall", True)
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert labels == ["mild  (50)", "bad  (50)", "worst  (50)"]


@pytest.mark.parametrize("n", [0, 1, 24])
def test_galleries_of_any_size(n, rng, tmp_path, drawn):
    images = list(rng.integers(0, 255, (n, 16, 16, 3), dtype=np.uint8))
    caption = f"{'x' * CAPTION}\n→ 7\np = 0.51, cost 4"
    plot_gallery(tmp_path / "gallery.png", images, [caption] * n, "Costliest mistakes")
    shown = texts(drawn[0])
    assert shown.count(caption) == n
    assert ("No mistake has a cost." in shown) == (n == 0)


def test_sweep_with_and_without_bands(tmp_path, drawn):
    table = pd.DataFrame({"swept": [0, 1, 2], "cost": [1.0, 2, 3], "cost_low": [0.5, 1, 2], "cost_high": [2.0, 3, 4],
                          "recall/a": [0.5, 0.6, 0.7]})  # fmt: skip
    plot_sweep(tmp_path / "sweep.png", table, "swept", [("Cost", ["cost"]), ("Recall", ["recall/a"])])
    assert (tmp_path / "sweep.png").is_file()
    assert len(drawn[0].subfigs) == 2


def test_training_curves_and_range_test(tmp_path, drawn):
    epochs = np.arange(1, 9)
    scores = dict.fromkeys(["validation_accuracy", "validation_balanced_accuracy", "validation_macro_f1"],
                           np.append(0.1, np.linspace(0.9, 0.97, 7)))  # fmt: skip
    curves = pd.DataFrame({"epoch": epochs, "train_loss": 1 / epochs, "validation_log_loss": 1 / epochs, **scores})
    plot_training_curves(tmp_path / "curves.png", curves, 5)
    assert drawn[0].subfigs[1].axes[0].get_ylim()[0] > 0.85  # the first epoch does not hide the others
    rates = np.geomspace(1e-6, 1, 20)
    plot_range_test(
        tmp_path / "rates.png", pd.DataFrame({"learning_rate": rates, "loss": 1.0, "smoothed_loss": 1.0}), 0.1
    )
    assert "steepest descent: 0.1" in legend(drawn[1])


def test_gallery_of_grey_images_has_no_colours(tmp_path, rng):
    images = list(rng.integers(0, 255, (3, 16, 16, 1), dtype=np.uint8))
    plot_gallery(tmp_path / "grey.png", images, [""] * 3, "")
    pixels = np.asarray(Image.open(tmp_path / "grey.png").convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=-1).max() == 0


def test_colours_differ_in_lightness_or_hue_for_colour_blind_readers():
    """Simulated deuteranopia (Machado 2009, severity 1): no two colours of the palette fall together."""
    matrix = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]])
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ matrix.T).clip(0, 1) ** (1 / 2.4)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(seen))
    assert distances.min() > 0.1
