"""The cost matrix: built by class name; errors and warnings name the class."""

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


def test_absolute_difference_uses_class_names_as_numbers():
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
def test_cost_matrix_raises_for_names_and_shapes_that_do_not_match(params, message):
    with pytest.raises(UdcError, match=message):
        cost_matrix(params, AB)


def test_lint_has_no_findings_for_common_matrices():
    classes = ["a", "b", "c"]
    for params in (CostParams(), CostParams(preset="absolute_difference", order=classes)):
        assert lint_costs(cost_matrix(params, classes), classes) == []


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        (
            [[0, 5, 1], [0, 0, 0], [2, 1, 0]],
            ["mistakes on b cost nothing", "deciding b never has the least expected cost"],
        ),
        (
            [[0, 5], [0, 0]],
            ["deciding a costs nothing for any true class", "mistakes on b cost nothing", "deciding b never has"],
        ),
        # b costs more than c for every true class
        ([[0, 3, 2], [1, 1, 0], [4, 3, 0]], ["deciding b never has the least expected cost"]),
        # no single decision is better than b for all posteriors, but a or c always is
        ([[0, 3, 4], [2, 2.5, 2], [4, 3, 0]], ["deciding b never has the least expected cost"]),
    ],
)
def test_lint_findings_name_the_class(costs, expected):
    findings = lint_costs(np.array(costs, dtype=float), ["a", "b", "c"][: len(costs)])
    assert len(findings) == len(expected)
    for finding, start in zip(sorted(findings), sorted(f"costs: {each}" for each in expected), strict=True):
        assert finding.startswith(start)


def test_lint_agrees_with_random_posteriors():
    rng = np.random.default_rng(0)
    posteriors = rng.dirichlet(np.ones(3) * 0.5, size=20_000)
    for _ in range(40):
        costs = rng.integers(0, 8, (3, 3)) + 1.0
        decided = set(np.argmin(posteriors @ costs, axis=1).tolist())
        findings = " ".join(lint_costs(costs, list("abc")))
        possible = {k for k, name in enumerate("abc") if f"deciding {name} " not in findings}
        assert decided <= possible
        # the draws may miss a decision that is best in a small region only
        assert len(possible - decided) <= 1


def test_lint_finds_referral_that_is_never_or_always_best():
    costs = 1 - np.eye(3)
    assert lint_costs(costs, ["a", "b", "c"], 0.5) == []
    costly = lint_costs(costs, ["a", "b", "c"], 0.7)  # the largest expected cost of the best class is 2/3
    assert costly == ["costs.refer: at 0.7, referral never has the least expected cost; no image is referred"]
    free = lint_costs(costs, ["a", "b", "c"], -0.1)
    assert [text for text in free if "deciding a never has the least expected cost" in text]
