"""Class names and parameters that do not fit the data: one error lists all findings before anything expensive runs."""

import pytest

from udc_model.config import CostParams, EvaluateParams, Params
from udc_model.decisions.checks import check_classes, check_data, check_policy
from udc_model.errors import UdcError


def _params(**sections):
    return Params.model_validate({"costs": {"preset": "uniform"}, **sections})


def test_one_error_lists_all_findings():
    params = _params(
        model={"num_labels": 3},
        costs={"entries": [{"actual": "Mild", "predicted": "x", "cost": 2.0}], "prior": {"mild": 0.5, "y": 0.5},
               "preset": "uniform"},
        evaluate={"recall_of": ["z", "bad", "bad"], "calibration": "auto", "decision": "recall_floor",
                  "recall_floor": {"class": "bad", "floor": 0.9}},
    )  # fmt: skip
    with pytest.raises(UdcError) as error:
        check_data(params, ["bad", "mild"], {"bad": 20, "mild": 1})
    assert str(error.value).splitlines() == [
        "9 parameters or class names do not fit the data:",
        "  model.num_labels: is 3, but the data has 2 classes",
        "  costs.entries.0.true: the data has no class 'Mild'; did you mean 'mild'?",
        "  costs.entries.0.predicted: the data has no class 'x'",
        "  costs.prior: the data has no class 'y'",
        "  costs.prior: the class 'bad' is missing",
        "  evaluate.recall_of: the data has no class 'z'",
        "  evaluate.recall_of: names the class 'bad' twice",
        "  evaluate.calibration: auto and dirichlet use cross-validation, which needs two images of each class in the "
        "calibration split; raise data.splits.calibration, or set evaluate.calibration: temperature",
        "  evaluate.recall_floor: a recall of 0.9 of bad at confidence 0.95 needs at least 29 of its images in the "
        "calibration split, which has 20: 9 more are needed. Raise data.splits.calibration, or lower the floor or the "
        "confidence",
        "the classes of the data are: bad, mild",
    ]
    with pytest.raises(UdcError, match=r"^7 parameters or class names"):  # prepare does not know the splits yet
        check_classes(params, ["bad", "mild"])
    with pytest.raises(UdcError, match=r"^8 parameters or class names"):  # udc decide has no model
        check_policy(params.evaluate, params.costs, ["bad", "mild"], {"bad": 20, "mild": 1})


@pytest.mark.parametrize(
    ("sections", "counts", "message"),
    [
        ({}, {}, "^evaluate.calibration: temperature needs images, but the calibration split is empty"),
        ({"evaluate": {"calibration": "auto"}}, {}, "auto needs images, but the calibration split is empty"),
        ({"evaluate": {"calibration": "auto"}}, {"a": 5}, "needs two images of each class"),  # b has none
        ({"evaluate": {"calibration": "none", "decision": "recall_floor", "recall_floor": {"class": "b"}}}, {"a": 99},
         r"at least 59 of its images in the calibration split, which has 0: 59 more are needed"),
        ({"costs": {"matrix": [[0.0, 0.0], [1.0, 1.0]]}}, {"a": 1}, "^costs: all decisions cost the same"),
        ({"costs": {"preset": "absolute_difference"}}, {"a": 1}, "^costs.preset: .* no numbers are the classes a, b;"),
        ({"costs": {"matrix": [[0.0]]}}, {"a": 1}, "^costs.matrix: needs 2 rows of 2 numbers, has rows of 1"),
        ({"costs": {"order": ["a", "b", "b"]}}, {"a": 1}, "^costs.order: names a class twice"),
    ],
)  # fmt: skip
def test_single_findings_before_training(sections, counts, message):
    with pytest.raises(UdcError, match=message):
        check_data(_params(**sections), ["a", "b"], counts)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["1", "nan"], "no numbers are the classes nan;"),
        (["1", "inf"], "no numbers are the classes inf;"),
        (["1", "1e400"], "no numbers are the classes 1e400;"),
        (["1", "1e300"], r"costs: a cost is larger than 1e\+09; lower costs.power or costs.default"),
    ],
)
def test_class_names_as_numbers_are_finite(classes, message):
    with pytest.raises(UdcError, match=message):
        check_classes(Params.model_validate({"costs": {"preset": "absolute_difference", "power": 3.0}}), classes)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("refer", "is the name of the decision to refer an image to a person; rename it, or give it another name in "
                  "data.merge_labels"),
        ("", "is empty"),
        ("  ", "is empty"),
        (" a", "begins or ends with a space"),
        ("a\u00a0", "begins or ends with a space"),
        ("a\nb", "contains a line break or another control character"),
        ("\x1b[31ma", "contains a line break or another control character"),
        ("a\u2028b", "contains a line break or another control character"),
        ("\udcff", "is not valid UTF-8"),
        ("é" * 128, "has 256 bytes, and 255 are allowed"),
    ],
)  # fmt: skip
def test_class_names_that_cannot_be_used_are_refused_with_and_without_referral(name, reason):
    for costs in ({"preset": "uniform"}, {"preset": "uniform", "refer": 1.0}):
        with pytest.raises(UdcError) as error:
            check_classes(_params(costs=costs), ["ok", name])
        assert str(error.value).startswith(f"class {name!r}: {reason}")
        assert len(str(error.value).splitlines()) == 2  # with the list of classes


@pytest.mark.parametrize(
    "name",
    ["Refer", "a/b", "..", ".", "a,b", "a=b", "a:b", "path", "class", "macro", "mean_cost", "a b", "é", "-1", "x" * 255,
     "$x$", "_a", "p_a", "%", "'", '"', "#", "{a}"],
)  # fmt: skip
def test_other_class_names_are_allowed(name):
    check_classes(_params(evaluate={"recall_of": [name]}), ["ok", name])
    check_classes(_params(), [f"{name[:250]}{i}" for i in range(300)])


def test_messages_list_at_most_twenty_classes():
    classes = [f"c{i:03d}" for i in range(300)]
    with pytest.raises(UdcError) as error:
        check_classes(_params(costs={"order": ["c000"], "preset": "uniform"}), classes)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("costs.order: 299 classes are missing: c001, c002,")
    assert lines[0].endswith("c020, … and 279 more")
    assert lines[1].endswith("c019, … and 280 more")


def test_referral_of_stored_results_with_a_class_of_that_name():
    with pytest.raises(UdcError, match=r"^costs\.refer: not available for data with a class called 'refer'"):
        check_policy(EvaluateParams(calibration="none"), CostParams(refer=1.0), ["a", "refer"], {})
    check_policy(EvaluateParams(calibration="none"), CostParams(), ["a", "refer"], {})
