"""Ranking of labels: scores, thresholds, suggestions, costs, bounds; corrected test labels; the report's section."""

import math

import numpy as np
import pytest

from udc_model.data.applied_corrections import AppliedCorrection
from udc_model.data.margins import Margins
from udc_model.data.packed import PackedSplit
from udc_model.decisions.calibration import Calibration
from udc_model.decisions.policy import Policy
from udc_model.evaluation import label_findings
from udc_model.evaluation import label_quality as module
from udc_model.evaluation.label_findings import LabelFindings, with_test_corrections
from udc_model.evaluation.label_quality import LabelEvidence, label_quality
from udc_model.evaluation.metrics import Scored

CLASSES = ["a", "b", "c"]
NAN = float("nan")


def _split(labels, name="x"):
    n = len(labels)
    return PackedSplit(np.zeros((n, 4, 4, 3), np.uint8), np.array(labels), [f"{name}{k}.png" for k in range(n)],
                       [""] * n, [f"{k:064x}" for k in range(n)])  # fmt: skip


def _margins(values, rivals=None, epochs=None):
    values = np.array(values, np.float16)
    rivals = np.zeros(values.shape) if rivals is None else np.array(rivals)
    numbers = np.arange(len(values)) if epochs is None else np.array(epochs)
    return Margins(values, rivals.astype(np.uint16), numbers.astype(np.int32))


def _log_logistic(x):
    return -math.log1p(math.exp(-2 * x))


def test_training_score_is_the_mean_log_probability_in_the_first_half_of_the_epochs():
    evidence = LabelEvidence.of_training(_margins([[1, -2], [3, -1], [9, 9], [9, 9]]))
    expected = [(_log_logistic(1) + _log_logistic(3)) / 2, (_log_logistic(-2) + _log_logistic(-1)) / 2]
    assert evidence.support == pytest.approx(expected, rel=1e-6)


def test_each_network_of_an_ensemble_counts_with_the_first_half_of_its_epochs():
    """The second one has ended after one epoch."""
    evidence = LabelEvidence.of_training(_margins([[1], [2], [8], [4]], epochs=[0, 1, 2, 0]))
    assert evidence.support == pytest.approx([np.mean([_log_logistic(x) for x in (1, 2, 4)])], rel=1e-6)


def test_epochs_that_are_not_recorded_are_not_counted():
    """Of 5 epochs the first, third and fifth are recorded."""
    evidence = LabelEvidence.of_training(_margins([[1], [2], [8]], epochs=[0, 2, 4]))
    assert evidence.support == pytest.approx([np.mean([_log_logistic(x) for x in (1, 2)])], rel=1e-6)


def test_image_that_no_epoch_used_is_not_suspicious():
    evidence = LabelEvidence.of_training(_margins([[NAN, -3], [NAN, NAN]]))
    assert evidence.support == pytest.approx([0, _log_logistic(-3)], rel=1e-6)


@pytest.mark.parametrize("calibration", [
    Calibration("none"), Calibration("temperature", {"temperature": 2.5}),
    Calibration("vector", {"weight": [0.5, 2, 1], "bias": [0.1, 0, -1]}),
])  # fmt: skip
def test_held_out_score_is_the_calibrated_probability_against_the_strongest_other_class(calibration, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 6)  # two rows at once
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(7, 3)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2, 0])
    probabilities = calibration.probabilities(logits)
    evidence = LabelEvidence.of_predictions(logits, labels, calibration)
    for k, (row, label) in enumerate(zip(probabilities, labels, strict=True)):
        others = np.where(np.arange(3) == label, -1, row)
        assert np.exp(evidence.support[k]) == pytest.approx(row[label] / (row[label] + others.max()), rel=1e-6)
        assert evidence.rivals[0, k] == others.argmax()
        assert evidence.is_negative[0, k] == (row[label] < others.max())


def test_certain_predictions_have_finite_scores():
    evidence = LabelEvidence.of_predictions(np.array([[0.0, 1e4, 0]] * 2), np.array([0, 1]), Calibration())
    assert evidence.support.tolist() == [-1e4, 0]


def test_suggested_class_is_the_one_most_often_stronger_than_the_label():
    margins = _margins([[-1, 1, 2], [1, -1, 2], [-1, -1, 2], [0.5, 2, 2]] * 2,
                       [[2, 0, 1], [1, 2, 2], [2, 0, 1], [1, 1, 1]] * 2)  # fmt: skip
    evidence = LabelEvidence.of_training(margins)
    assert evidence.suggested(np.arange(3)).tolist() == [2, 0, 1]


COSTS = np.array([[0, 1, 5], [2, 0, 3], [7, 4, 0.0]])


def test_label_is_suspicious_below_the_threshold_of_its_kind():
    """0.1 in training and 0.05 in predictions; half the logarithm of the odds, because the margins are doubled."""
    train, test = _split([0, 0, 1], "train"), _split([0, 0, 2], "test")
    at = np.log(1 / np.array([0.099, 0.101]) - 1) / 2, np.log(1 / np.array([0.049, 0.051]) - 1)
    logits = np.array([[0, at[1][0], -9], [0, at[1][1], -9], [0, 0, 5]])
    evidence = {
        "test": LabelEvidence.of_predictions(logits, test.labels, Calibration()),
        "train": LabelEvidence.of_training(_margins([[-at[0][0], -at[0][1], 1]], [[1, 1, 0]])),
    }
    splits = {"train": train, "test": test}
    table = label_quality(splits, evidence, CLASSES, COSTS)
    assert list(table.columns) == ["path", "sha256", "label", "suggested_label", "score", "expected_cost", "split",
                                   "row", "is_suspicious"]  # fmt: skip
    assert table["path"].tolist() == ["test0.png", "test1.png", "train0.png", "train1.png", "train2.png", "test2.png"]
    assert table["score"].tolist()[:4] == pytest.approx([0.049, 0.051, 0.099, 0.101], rel=1e-3)
    assert table[table["is_suspicious"]]["path"].tolist() == ["test0.png", "train0.png"]
    first = table.iloc[0]
    assert first[["label", "suggested_label", "split", "row"]].tolist() == ["a", "b", "test", 0]
    assert first["sha256"] == f"{0:064x}"
    # decisions that learn the label a of an image of b: row b, column a
    assert first["expected_cost"] == pytest.approx((1 - 0.049) * 2, rel=1e-6)
    reviewed = label_quality(splits, evidence, CLASSES, COSTS, reviewed=["train0.png"])
    assert reviewed[reviewed["is_suspicious"]]["path"].tolist() == ["test0.png"]


def test_table_is_bounded_and_has_the_lowest_scores(monkeypatch):
    monkeypatch.setattr(module, "_MOST_ROWS", 10)
    rng = np.random.default_rng(0)
    splits = {name: _split(rng.integers(0, 3, 50), name) for name in ("test", "validation")}
    logits = {name: rng.normal(size=(50, 3)) for name in splits}
    evidence = {name: LabelEvidence.of_predictions(logits[name], splits[name].labels, Calibration()) for name in splits}
    table = label_quality(splits, evidence, CLASSES, COSTS)
    lowest = np.sort(np.exp(np.concatenate([each.support for each in evidence.values()])))[:10]
    np.testing.assert_allclose(table["score"], lowest)


def test_planted_labels_are_found_and_pure_classes_have_none():
    """300 images of 3 classes with clear margins, 6 of them with another label."""
    rng = np.random.default_rng(1)
    labels = np.arange(300) % 3
    signs = np.ones(300)
    signs[::50] = -1
    values = signs * rng.normal(3, 1, (10, 300)).clip(0.2)
    rivals = np.tile((labels + 1) % 3, (10, 1))
    split = _split(labels)
    evidence = {"train": LabelEvidence.of_training(_margins(values, rivals))}
    table = label_quality({"train": split}, evidence, CLASSES, 1 - np.eye(3))
    assert set(table["path"][:6]) == {f"x{k}.png" for k in range(0, 300, 50)}
    found = table[table["is_suspicious"]]
    assert set(found["path"]) == {f"x{k}.png" for k in range(0, 300, 50)}
    clean = {"train": LabelEvidence.of_training(_margins(np.abs(values), rivals))}
    assert not label_quality({"train": split}, clean, CLASSES, 1 - np.eye(3))["is_suspicious"].any()


def test_result_on_test_before_and_after_corrections(monkeypatch):
    """Of 4 images, x0 was relabelled from b to a, and decided a: before, that was a mistake of cost 2."""
    split, policy = _split([0, 0, 1, 2]), Policy(CLASSES, COSTS.tolist())
    scored = Scored(split.labels, np.array([0, 1, 1, 2]), np.full((4, 3), 1 / 3), policy.outcome_costs)
    applied = [
        AppliedCorrection("x0.png", "relabel", "test", "b", "a"),
        AppliedCorrection("gone.png", "drop", "test", "c", "c"),
        AppliedCorrection("t.png", "relabel", "train", "b", "a"),
    ]
    monkeypatch.setattr(label_findings, "read_applied", lambda folder: applied)

    class Dataset:
        folder = None

    findings = with_test_corrections(LabelFindings(None, 4, 0), Dataset, split, scored, policy)
    assert findings.sentences == [
        "1 test label(s) were corrected: mean cost 0.75 before and 0.25 after, accuracy 0.5000 before and 0.7500 after",
        "1 image(s) were dropped from the test split; they are in no result",
    ]
    assert findings.summary == "Nothing suspicious among 4 labels."
    assert LabelFindings(None, 1000, 1).summary == "1 of 1,000 labels is suspicious."
