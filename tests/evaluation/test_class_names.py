"""Class names in metrics, tables, figures and sweeps: no two collide, and none breaks a table, a figure or MLflow."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from udc_model.config import CostParams, EvaluateParams, Params, with_json_mappings
from udc_model.data.packed import PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.evaluation.curve_plots import plot_class_curves
from udc_model.evaluation.curves import class_curves, mean_curves
from udc_model.evaluation.matrix_plots import plot_confusion_matrix
from udc_model.evaluation.metrics import Scored, escape_class, miss_rate_metric, recall_metric, split_metrics
from udc_model.evaluation.redecision import Sweep, decision_report, write_sweep
from udc_model.evaluation.tables import logits_of, read_predictions, write_predictions
from udc_model.experiments.stored import load_evaluation

ORDINARY = ["venomous", "3", "Class A", "e_f", "g-h", "1.0", "é", "蜘蛛", "macro", "mean", "NA", "nan"]
UNUSUAL = [
    "a/b", "a:2Fb", "a,b", "a=b", "a b/", "..", ".", "/", "recall/a", "$x$", "_hidden", "Macro", "x" * 255, "x" * 254,
    "é" * 127, "path", "class", "true", "expected_cost", "logit_a", "p_a", "%2F", "e\u0301", '"quoted"', "'",
]  # fmt: skip
NAMES = [*ORDINARY, *UNUSUAL]


def test_metric_names_are_allowed_by_mlflow_and_differ():
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

    forms = ("test/{}", "interval/validation/{}_low", "interval/validation/{}_high")
    names = [form.format(metric(name)) for name in NAMES for metric in (recall_metric, miss_rate_metric)
             for form in forms]  # fmt: skip
    for name in names:
        _validate_metric_name(name)
        assert len(name) <= MAX_ENTITY_KEY_LENGTH
    assert len(set(names)) == len(names)


def test_ordinary_class_names_stay_as_they_are():
    assert [escape_class(name) for name in ORDINARY] == ORDINARY
    assert [escape_class(name) for name in ("a/b", "a:b", "..", "é,")] == ["a:2Fb", "a:3Ab", ":2E:2E", "é:2C"]


@pytest.mark.parametrize("name", [name for name in NAMES if len(name) < 100])
def test_escaped_names_can_be_read_back(name):
    escaped = re.sub("(?::[0-9A-F]{2})+", lambda m: bytes.fromhex(m[0].replace(":", "")).decode(), escape_class(name))
    assert escaped == name


def _split(classes, rng):
    """Three images of each class, and their logits."""
    n = 3 * len(classes)
    split = PackedSplit(np.zeros((n, 4, 4, 3), np.uint8), np.repeat(np.arange(len(classes)), 3),
                        [f"{i}.png" for i in range(n)], [""] * n, ["0"] * n)  # fmt: skip
    return split, rng.normal(size=(n, len(classes))).astype(np.float32)


def _stored(tmp_path, classes, rng):
    k = len(classes)
    policy = Policy(classes, (1 - np.eye(k)).tolist(), training_prior=[1 / k] * k)
    split, logits = _split(classes, rng)
    for name in ("calibration", "test"):
        write_predictions(tmp_path / name, split, logits, policy)
    (tmp_path / "policy.json").write_text(policy.to_json(), encoding="utf-8")
    return load_evaluation(str(tmp_path), "test"), logits


def test_a_policy_fitted_again_says_how_its_logits_were_computed(tmp_path, rng):
    """Whatever the parameters say now: the stored logits stay as they are."""
    stored, _ = _stored(tmp_path, NAMES, rng)
    stored = replace(stored, policy=replace(stored.policy, precision="bf16", flip_averaging=True))
    policy, _ = stored.decide(EvaluateParams(precision="fp32", flip_averaging=False), CostParams())
    assert (policy.precision, policy.flip_averaging) == ("bf16", True)


def test_tables_are_read_back_with_every_class_name(tmp_path, rng):
    stored, logits = _stored(tmp_path, NAMES, rng)
    table = read_predictions(tmp_path / "test" / "predictions.csv")
    assert table["true"].tolist() == [name for name in NAMES for _ in range(3)]
    assert set(table["predicted"]) <= set(NAMES)
    assert np.array_equal(logits_of(table, NAMES), logits)
    assert len(set(table.columns)) == len(table.columns) == 8 + len(NAMES)
    evaluate = EvaluateParams(calibration="none", resamples=100, recall_of=NAMES)
    policy, scored = stored.decide(evaluate, CostParams())
    report = decision_report(stored, policy, scored, evaluate)
    assert all(f"{name}: recall " in report for name in NAMES)
    metrics = split_metrics(scored, 10, list(enumerate(NAMES)))
    assert len(metrics) == len(split_metrics(scored, 10)) + 2 * len(NAMES)
    for k, name in enumerate(NAMES):
        of_class = scored.decided[scored.targets == k]
        assert metrics[recall_metric(name)] == pytest.approx((of_class == k).mean())


@pytest.mark.parametrize(("true", "predicted", "stem"), [
    ("big cat", "red_dog", "cost_of_big_cat_as_red_dog"),
    ("a,b", "a=b", "cost_of_a_b_as_a_b-[0-9a-f]{8}"),
    ("..", "a/b", "cost_of_.._as_a_b-[0-9a-f]{8}"),
    ("true=x", "a,predicted", "cost_of_true_x_as_a_predicted-[0-9a-f]{8}"),
    ("x" * 255, "$x$", r"cost_of_x{32}-[0-9a-f]{8}"),
])  # fmt: skip
def test_sweeps_of_unusual_names(tmp_path, rng, true, predicted, stem):
    stored, _ = _stored(tmp_path, [true, predicted, "other"], rng)
    sweep = Sweep.parse(f"true={true},predicted={predicted},values=0:2:1")
    assert (sweep.true, sweep.predicted, sweep.values) == (true, predicted, [0, 1, 2])
    evaluate = EvaluateParams(calibration="none", resamples=100)
    _, files = write_sweep(sweep, stored, evaluate, CostParams(), tmp_path / "sweeps")
    assert [path.suffix for path in files] == [".csv", ".png", ".csv"]
    assert all(path.parent == tmp_path / "sweeps" and path.is_file() for path in files)
    assert re.fullmatch(stem, files[0].stem)
    assert pd.read_csv(files[0])[recall_metric(true)].between(0, 1).all()


def test_sweeps_of_names_that_differ_in_symbols_have_files_of_their_own(tmp_path, rng):
    stored, _ = _stored(tmp_path, ["+", "*", "-"], rng)
    evaluate, files = EvaluateParams(calibration="none", resamples=100), set()
    for true in "+*":
        sweep = Sweep.parse(f"true={true},predicted=-,values=0:1:1")
        files |= set(write_sweep(sweep, stored, evaluate, CostParams(), tmp_path / "sweeps")[1])
    assert files == set((tmp_path / "sweeps").iterdir())
    assert len(files) == 6


@pytest.mark.parametrize(("text", "message"), [
    ("true=a,predicted=refer,values=0:1:1", r"^--sweep predicted=refer: referral has one cost for all classes; "),
    ("true=a,predicted=z,values=0:1:1", r"^--sweep predicted=z: the data has no class 'z'; .* are a, B, other$"),
    ("true=b,predicted=a,values=0:1:1", r"^--sweep true=b: the data has no class 'b'; did you mean 'B'\?"),
    ("true=a,predicted=B,values=0:1e9:1e-9", r"at most 10,000 are possible"),
    ("true=a,predicted=B,values=0:nan:1", r"^--sweep"),
    ("true=a,predicted=B,values=0:inf:1", r"values=0:inf:1: costs must be from "),
    ("true=a,predicted=B", r"must be like true=A,predicted=B"),
])  # fmt: skip
def test_sweeps_that_cannot_run_are_one_message(tmp_path, rng, text, message):
    stored, _ = _stored(tmp_path, ["a", "B", "other"], rng)
    with pytest.raises(UdcError, match=message):
        Sweep.parse(text).run(stored, EvaluateParams(calibration="none"), CostParams())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [["$a$", "$\\frac{$", "_hidden", "x" * 255], ["a", "b" * 255, "é/", "c$"]])
def test_figures_show_every_class_name(tmp_path, rng, classes):
    from matplotlib.figure import Figure

    n = len(classes)
    plot_confusion_matrix(tmp_path / "matrix.png", np.eye(n), classes, classes, "Matrix", "counts")
    scored = Scored(
        np.repeat(np.arange(n), 4), np.repeat(np.arange(n), 4), rng.dirichlet(np.ones(n), 4 * n), 1 - np.eye(n)
    )
    roc, _, areas = mean_curves(scored, classes, 100, 0.95)
    legends = []
    original = Figure.draw

    def draw(figure, renderer):
        legends.extend(text.get_text() for text in figure.legends[0].get_texts())
        return original(figure, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", draw)
        plot_class_curves(tmp_path / "roc.png", class_curves(scored, classes)[0], roc, areas, "roc")
    assert len(legends) == n + 1  # with the mean


def test_three_hundred_classes(tmp_path, rng):
    classes = [f"class {i}" for i in range(300)]
    stored, logits = _stored(tmp_path, classes, rng)
    assert np.array_equal(logits_of(stored.predictions, classes), logits)
    _, scored = stored.decide(EvaluateParams(calibration="none"), CostParams())
    names = split_metrics(scored, 10, list(enumerate(classes))).keys()
    assert {f"recall/class {i}" for i in range(300)} <= names


def test_mappings_by_class_name_are_one_value_of_a_record():
    params = Params(costs=CostParams(prior={"a,b": 0.5, "..": 0.5}, matrix={"x": {"x": 0.0}}),
                    evaluate=EvaluateParams(recall_floor={"class": "a"}))  # fmt: skip
    recorded = with_json_mappings(params.model_dump())
    assert recorded["costs"]["prior"] == '{"a,b": 0.5, "..": 0.5}'
    assert recorded["costs"]["matrix"] == '{"x": {"x": 0.0}}'
    assert recorded["evaluate"]["recall_floor"] == {"class": "a", "floor": 0.95, "confidence": 0.95}
    assert recorded["model"]["resnet"]["depths"] == params.model.resnet.depths
