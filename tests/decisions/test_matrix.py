"""The cost matrix: built by class name; errors and warnings name the class."""

import numpy as np
import pytest

from udc_model.config import CostEntry, CostParams
from udc_model.decisions.matrix import class_prior, cost_matrix, display_order, key_problems
from udc_model.errors import UdcError

AB = ["a", "b"]


def test_presets_and_entries():
    assert cost_matrix(CostParams(), AB).tolist() == [[0, 1], [1, 0]]
    entry = CostEntry(true="a", predicted="b", cost=10.0)
    assert cost_matrix(CostParams(default=2.0, entries=[entry]), AB).tolist() == [[0, 10], [2, 0]]
    digits = [str(d) for d in range(10)]
    costs = cost_matrix(CostParams(preset="absolute_difference"), digits)
    assert costs[3, 7] == costs[7, 3] == 4
    squared = cost_matrix(CostParams(preset="absolute_difference", power=2.0, order=["mild", "bad", "worst"]),
                          ["bad", "mild", "worst"])  # fmt: skip
    assert squared.tolist() == [[0, 1, 1], [1, 0, 4], [1, 4, 0]]


def test_full_matrix_by_name_and_by_rows():
    by_name = CostParams(matrix={"b": {"a": 3.0, "b": 0.0}, "a": {"b": 2.0, "a": 0.0}})
    assert cost_matrix(by_name, AB).tolist() == [[0, 2], [3, 0]]
    assert cost_matrix(CostParams(matrix=[[0.0, 2.0], [3.0, 0.0]]), AB).tolist() == [[0, 2], [3, 0]]


def test_absolute_difference_uses_class_names_as_numbers():
    costs = cost_matrix(CostParams(preset="absolute_difference"), ["10", "2"])
    assert np.array_equal(costs, [[0, 8], [8, 0]])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            CostParams(entries=[CostEntry(true="x", predicted="a", cost=1.0)]),
            r"costs\.entries\.0\.actual: .* no class 'x'",
        ),
        (CostParams(matrix={"a": {"a": 0.0, "b": 1.0}}), r"costs\.matrix: the class 'b' is missing"),
        (
            CostParams(matrix={"a": {"a": 0.0}, "b": {"a": 0.0, "b": 1.0}}),
            r"costs\.matrix\.a: the class 'b' is missing",
        ),
        (CostParams(matrix=[[0.0, 1.0, 2.0]]), r"needs 2 rows of 2 numbers, has rows of 3"),
        (CostParams(matrix=[[0.0, 0.0], [0.0, 0.0]]), r"nothing to decide"),
        (CostParams(preset="absolute_difference"), r"class names that are numbers, or their order in costs\.order"),
        (CostParams(preset="absolute_difference", order=["a"]), r"costs\.order: the class 'b' is missing"),
    ],
)
def test_cost_matrix_raises_for_names_and_shapes_that_do_not_match(params, message):
    with pytest.raises(UdcError, match=message):
        cost_matrix(params, AB)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (CostParams(entries=[CostEntry(true="a", predicted="b", cost=-5)]),
         r"costs\.entries\.0: deciding b costs -5 if the true class is a, less than the right decision"),
        (CostParams(entries=[CostEntry(true="b", predicted="b", cost=2)]), r"costs\.entries\.0: deciding a costs 1 if"),
        (CostParams(matrix={"a": {"a": 0, "b": 1}, "b": {"a": -0.5, "b": 0}}), r"costs\.matrix: deciding a costs -0"),
        (CostParams(matrix=[[0, -1], [1, 0]]), r"costs\.matrix: deciding b costs -1 if the true class is a"),
        (CostParams(preset="absolute_difference", default=1e6, power=12, order=AB, entries=[]), None),
    ],
)  # fmt: skip
def test_a_mistake_cheaper_than_the_right_decision_is_an_error(params, message):
    if message is None:
        assert cost_matrix(params, AB).max() == 1e6
        return
    with pytest.raises(UdcError, match=message):
        cost_matrix(params, AB)


def test_a_gain_for_a_right_decision_is_valid():
    params = CostParams(entries=[CostEntry(true="a", predicted="a", cost=-3)])
    assert cost_matrix(params, AB).tolist() == [[-3, 1], [1, 0]]


@pytest.mark.parametrize(
    ("costs", "name"),
    [({"entries": [{"true": "a", "predicted": "b", "cost": 1e10}]}, "costs.entries.0.cost"),
     ({"refer": -0.1}, "costs.refer"), ({"refer": 1e308}, "costs.refer"), ({"default": 1e12}, "costs.default"),
     ({"matrix": [[0.0, 1e15], [1.0, 0.0]]}, "costs.matrix")],
)  # fmt: skip
def test_costs_out_of_range_are_named(costs, name):
    from udc_model.config import validate_params

    with pytest.raises(UdcError, match=name.replace(".", r"\.")):
        validate_params({"costs": costs}, "params.yaml")


def test_powers_out_of_range_are_an_error():
    classes = [str(k) for k in range(10)]
    with pytest.raises(UdcError, match=r"a cost is larger than 1e\+09; lower costs\.power"):
        cost_matrix(CostParams(preset="absolute_difference", power=10), classes)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [(None, None), ({"b": 0.5}, [0.3, 0.5, 0.2]), ({"a": 0.1, "c": 0.2}, [0.1, 0.7, 0.2]),
     ({"a": 0.2, "b": 0.3, "c": 0.5}, [0.2, 0.3, 0.5])],
)  # fmt: skip
def test_classes_without_a_frequency_share_the_rest_as_in_training(prior, expected):
    found = class_prior(CostParams(prior=prior), ["a", "b", "c"], [300, 100, 200])
    assert found is None if expected is None else found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prior", "message"),
    [({"a": 0.5, "b": 0.3, "c": 0.1}, r"costs\.prior: the shares add up to 0\.9; they must add up to 1"),
     ({"a": 0.6, "b": 0.4}, r"costs\.prior: the shares add up to 1, which leaves nothing for c; lower a share"),
     ({"A": 0.6}, r"costs\.prior: the data has no class 'A'; did you mean 'a'\?")],
)  # fmt: skip
def test_frequencies_that_do_not_fit_are_named(prior, message):
    with pytest.raises(UdcError, match=message):
        class_prior(CostParams(prior=prior), ["a", "b", "c"], [1, 1, 1])


def test_plots_follow_the_stated_order():
    assert display_order(CostParams(), ["bad", "mild", "worst"]) is None
    assert display_order(CostParams(order=["mild", "bad", "worst"]), ["bad", "mild", "worst"]) == [1, 0, 2]


class _Counted(str):
    """A name that counts the hashes of all names."""

    __slots__ = ()
    hashes = 0

    def __hash__(self):
        _Counted.hashes += 1
        return super().__hash__()


def test_names_are_compared_in_linear_time():
    hashes = []
    for count in (10, 100):
        _Counted.hashes = 0
        names = [_Counted(k) for k in range(count)]
        assert not key_problems("costs.order", names, names)
        hashes.append(_Counted.hashes)
    assert hashes[1] == 10 * hashes[0]
