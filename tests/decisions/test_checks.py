"""Class names and parameters that do not fit the data: one error lists all findings before anything expensive runs."""

import pytest

from udc_model.config import CostParams, EvaluateParams, Params
from udc_model.decisions.checks import check_classes, check_data, check_policy, group_counts
from udc_model.errors import UdcError


def _params(**sections):
    return Params.model_validate({"costs": {"preset": "uniform"}, **sections})


def test_guarantees_that_do_not_fit():
    def messages(evaluate, costs=None, counts=None, groups=None):
        params = _params(evaluate=evaluate, costs={"preset": "uniform"} | (costs or {}))
        with pytest.raises(UdcError) as error:
            check_data(params, ["a", "b", "c"], counts or {"a": 500, "b": 500, "c": 500}, groups)
        return str(error.value)

    floor = {"decision": "recall_floor"}
    assert messages(floor | {"recall_floor": [{"class": "a"}, {"class": ["b", "B"]}]}).startswith(
        "evaluate.recall_floor.1.class: the data has no class 'B'; did you mean 'b'?"
    )
    assert "evaluate.recall_floor.class: names a class twice" in messages(
        floor | {"recall_floor": {"class": ["a", "a"]}}
    )
    assert "names all classes" in messages(floor | {"recall_floor": {"class": ["a", "b", "c"]}})
    prior = {"prior": {"a": 0.2, "b": 0.3, "c": 0.5}}
    assert "cannot be proved for those in costs.prior" in messages(
        floor | {"recall_floor": {"class": ["a", "b"]}}, prior
    )
    ceiling = {"decision": "cost_ceiling", "cost_ceiling": {"ceiling": 0.1}}
    assert messages(ceiling).startswith("evaluate.decision: cost_ceiling needs costs.refer")
    assert "for other class frequencies than those" in messages(ceiling, prior | {"refer": 0.2})
    assert "needs at least 35 images in the calibration split, which has 15: 20 more" in messages(
        ceiling, {"refer": 0.2}, {"a": 5, "b": 5, "c": 5}
    )


def test_groups_are_the_unit_of_what_can_be_proved():
    """20 images of each of 50 groups prove less than 59 images without groups."""
    params = _params(evaluate={"decision": "recall_floor", "recall_floor": {"class": ["a", "b"]}})
    counts = {"a": 500, "b": 500, "c": 500}
    groups = [{"a": 10, "b": 10, "c": 10}] * 50
    check_data(params, ["a", "b", "c"], counts)
    message = r"of a or b .* at least 71 groups with its images in the calibration split, which has 50: 21 more"
    with pytest.raises(UdcError, match=message):
        check_data(params, ["a", "b", "c"], counts, groups)
    with pytest.raises(UdcError, match=message):
        check_policy(params.evaluate, params.costs, ["a", "b", "c"], counts, groups)
    assert group_counts(["a", "b", "a"], ["x", "", "x"]) == [{"a": 2}, {"b": 1}]
    assert group_counts(["a", "b"], ["", ""]) is None


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
        "  costs.entries.0.actual: the data has no class 'Mild'; did you mean 'mild'?",
        "  costs.entries.0.predicted: the data has no class 'x'",
        "  costs.prior: the data has no class 'y'",
        "  evaluate.recall_of: the data has no class 'z'",
        "  evaluate.recall_of: names the class 'bad' twice",
        "  evaluate.calibration: auto and dirichlet use cross-validation, which needs two images of each class in the "
        "calibration split; raise data.splits.calibration, or set evaluate.calibration: temperature",
        "  evaluate.recall_floor: a recall of 0.9 of bad at confidence 0.95 needs at least 29 of its images in the "
        "calibration split, which has 20: 9 more are needed. Raise data.splits.calibration, or lower the floor or the "
        "confidence",
        "  evaluate.calibration: auto fits the calibration split so closely that recall_floor cannot be proved on the "
        "same images; set temperature or none",
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


def test_a_calibration_split_of_one_group_is_refused_before_training():
    params, counts = _params(evaluate={"calibration": "auto"}), {"a": 5, "b": 5}
    with pytest.raises(UdcError, match="needs two groups in the calibration split"):
        check_data(params, ["a", "b"], counts, [counts])
    check_data(params, ["a", "b"], counts, [{"a": 5}, {"b": 5}])


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
