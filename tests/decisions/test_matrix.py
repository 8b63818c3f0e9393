"""The cost matrix: built by class name, every mistake named."""

import numpy as np
import pytest

from udc_model.config import CostEntry, CostParams
from udc_model.decisions.matrix import cost_matrix, lint_costs
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


def test_a_sensible_matrix_has_no_findings():
    classes = ["a", "b", "c"]
    for params in (CostParams(), CostParams(preset="absolute_difference", order=classes)):
        assert lint_costs(cost_matrix(params, classes), classes) == []


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([[0, 5, 1], [0, 0, 0], [2, 1, 0]], ["no mistake on a b costs anything", "deciding b is never the cheapest"]),
        (
            [[0, 5], [0, 0]],
            ["calling every image a costs nothing", "no mistake on a b costs anything", "deciding b is never"],
        ),
        # b is dearer than c whatever the truth
        ([[0, 3, 2], [1, 1, 0], [4, 3, 0]], ["deciding b is never the cheapest"]),
        # no single decision is better than b everywhere, but a and c by turns are
        ([[0, 3, 4], [2, 2.5, 2], [4, 3, 0]], ["deciding b is never the cheapest"]),
    ],
)
def test_findings_name_the_class(costs, expected):
    found = lint_costs(np.array(costs, dtype=float), ["a", "b", "c"][: len(costs)])
    assert len(found) == len(expected)
    for finding, start in zip(sorted(found), sorted(f"costs: {each}" for each in expected), strict=True):
        assert finding.startswith(start)


def test_never_cheapest_agrees_with_trying_posteriors():
    rng = np.random.default_rng(0)
    posteriors = rng.dirichlet(np.ones(3) * 0.5, size=20_000)
    for _ in range(40):
        costs = rng.integers(0, 8, (3, 3)) + 1.0
        tried = set(np.argmin(posteriors @ costs, axis=1).tolist())
        findings = " ".join(lint_costs(costs, list("abc")))
        told = {k for k, name in enumerate("abc") if f"deciding {name} " not in findings}
        assert tried <= told
        # a decision that is cheapest in a sliver may be missed by the draws, not the other way round
        assert len(told - tried) <= 1


def test_referral_that_is_never_or_always_cheapest():
    costs = 1 - np.eye(3)
    assert lint_costs(costs, ["a", "b", "c"], 0.5) == []
    dear = lint_costs(costs, ["a", "b", "c"], 0.7)  # the largest expected cost is 2/3
    assert dear == ["costs.refer: at 0.7 handing an image to a person is never the cheapest; none will be"]
    free = lint_costs(costs, ["a", "b", "c"], -0.1)
    assert [text for text in free if "deciding a is never the cheapest" in text]
