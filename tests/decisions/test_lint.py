"""Warnings about costs: named, and true for every accepted matrix."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from udc_model.config import CostParams
from udc_model.decisions.lint import is_never_least, lint_costs
from udc_model.decisions.matrix import cost_matrix


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


def test_a_decision_that_only_gains_or_costs_nothing_is_not_always_taken():
    assert lint_costs(np.array([[-5.0, 3.0], [0.0, -2.0]]), ["a", "b"]) == []


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


def _is_feasible(constraints):
    """Fourier-Motzkin elimination (Dines 1919) of ``a x >= b``, strict where ``c``; tuples (a, b, c) of fractions."""
    n = len(constraints[0][0])
    for k in range(n):
        lower = [each for each in constraints if each[0][k] > 0]
        upper = [each for each in constraints if each[0][k] < 0]
        rest = [each for each in constraints if each[0][k] == 0]
        for (a, b, s), (c, d, t) in product(lower, upper):
            combined = [x * -c[k] + y * a[k] for x, y in zip(a, c, strict=True)]
            rest.append((combined, b * -c[k] + d * a[k], s or t))
        constraints = rest
    return all(b < 0 or (b == 0 and not strict) for _, b, strict in constraints)


def _exactly_never_least(costs, decision):
    """No posterior p >= 0 has ``p (C[:, other] - C[:, decision]) > 0`` for all others."""
    exact = [[Fraction(repr(float(c))) for c in row] for row in costs]
    k = len(exact)
    constraints = [([Fraction(int(i == j)) for j in range(k)], Fraction(0), False) for i in range(k)]
    for other in set(range(costs.shape[1])) - {decision}:
        constraints.append(([row[other] - row[decision] for row in exact], Fraction(0), True))
    return not _is_feasible(constraints)


@pytest.mark.parametrize("values", [[0, 1, 2, 5], [0, 1, 1e9], [0.1, 0.2, 0.3], [0, 1e-6, 1, 1e6, 1e9]])
def test_findings_equal_those_of_exact_elimination(values):
    rng = np.random.default_rng(len(values))
    n_never = 0
    for _ in range(60):
        costs = rng.choice(values, (3, 4)).astype(float)
        for decision in range(4):
            expected = _exactly_never_least(costs, decision)
            assert is_never_least(costs, decision) == expected, (costs, decision)
            n_never += expected
    assert 20 < n_never < 220


def test_one_costly_mistake_makes_no_decision_useless():
    costs = 1 - np.eye(10)
    costs[3, 7] = 1e9
    assert lint_costs(costs, [str(k) for k in range(10)]) == []


def test_decisions_that_are_the_cheapest_for_their_class_need_no_linear_programme(monkeypatch):
    """300 classes took 12 seconds."""
    monkeypatch.setattr("udc_model.decisions.lint._candidates", None)
    costs = np.random.default_rng(0).integers(1, 9, (300, 300)) * (1.0 - np.eye(300))
    assert lint_costs(costs, [f"class {k}" for k in range(300)]) == []
