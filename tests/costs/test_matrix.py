"""The cost matrix: built by class name, every mistake named."""

import numpy as np
import pytest

from udc_model.costs.matrix import cost_matrix
from udc_model.errors import UdcError
from udc_model.params import CostEntry, CostParams

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


def test_numbers_order_numerically_not_as_texts():
    costs = cost_matrix(CostParams(preset="absolute_difference"), ["10", "2"])
    assert np.array_equal(costs, [[0, 8], [8, 0]])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            CostParams(entries=[CostEntry(true="x", predicted="a", cost=1.0)]),
            r"costs\.entries\.0\.true: .* no class 'x'",
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
def test_mistakes_are_named(params, message):
    with pytest.raises(UdcError, match=message):
        cost_matrix(params, AB)
