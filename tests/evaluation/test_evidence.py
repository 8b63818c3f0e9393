"""Warnings about figures that rest on fewer than ten costly mistakes."""

import numpy as np
import pytest

from udc_model.evaluation.evidence import few_mistakes, few_mistakes_of
from udc_model.evaluation.metrics import Scored

COSTS = np.array([[0.0, 1.0, 1.0], [4.0, 0.0, 1.0], [20.0, 10.0, 0.0]])


def _warnings(paid, costs=COSTS, groups=None):
    paid = np.array(paid, dtype=float)
    return few_mistakes(paid, paid > 0, costs, np.ones(len(paid)), groups, 0.95)


def test_costly_mistakes_cost_at_least_half_of_the_costliest():
    (warning,) = _warnings([20.0, 10.0, 4.0] + [1.0] * 50 + [0.0] * 247)
    assert warning.startswith("only 2 mistakes of cost 10 or more in 300 images; in truth up to 2.")  # 2.08 %
    assert _warnings([10.0] * 10 + [0.0] * 290) == []
    assert _warnings([10.0] + [0.0] * 299)[0].startswith("only 1 mistake of cost 10 or more in")


def test_with_equal_costs_all_mistakes_count():
    assert _warnings([1.0] * 3 + [0.0] * 97, 1 - np.eye(3))[0].startswith("only 3 mistakes in 100 images;")
    assert _warnings([1.0] * 12 + [0.0] * 88, 1 - np.eye(3)) == []


def test_groups_are_the_unit_of_the_bound():
    paid = [0.0] * 300
    share = [float(_warnings(paid, COSTS, groups)[0].split("up to ")[1].split("%")[0])
             for groups in (None, np.arange(300) // 6)]  # fmt: skip
    assert share == pytest.approx([1.0, 5.8], rel=0.05)  # 1 - 0.05 ** (1 / 300), 1 - 0.05 ** (1 / 50)


def test_referred_images_are_no_mistakes():
    costs = np.column_stack([COSTS, np.full(3, 15.0)])
    scored = Scored(np.arange(30) % 3, np.full(30, 3), np.full((30, 3), 1 / 3), costs)
    assert few_mistakes_of(scored, 0.95)[0].startswith("no mistakes of cost 10 or more in 30 images")
