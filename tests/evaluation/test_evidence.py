"""Warnings about figures that rest on fewer than ten costly mistakes."""

import numpy as np
import pytest

from udc_model.evaluation.evidence import costly_mistakes, few_mistakes, too_few_images, warnings_of
from udc_model.evaluation.intervals import metric_intervals
from udc_model.evaluation.metrics import Scored, split_metrics

COSTS = np.array([[0.0, 1.0, 1.0], [4.0, 0.0, 1.0], [20.0, 10.0, 0.0]])


def _warnings(paid, costs=COSTS, groups=None):
    paid = np.array(paid, dtype=float)
    return few_mistakes(paid, paid > 0, costs, np.ones(len(paid)), groups, 0.95)


def test_costly_mistakes_cost_at_least_half_of_the_costliest():
    (warning,) = _warnings([20.0, 10.0, 4.0] + [1.0] * 50 + [0.0] * 247)
    assert warning.startswith(
        "only 2 mistakes of cost 10 or more among 300 images: their true share may be up to 2."
    )  # 2.08 %
    assert _warnings([10.0] * 10 + [0.0] * 290) == []
    assert _warnings([10.0] + [0.0] * 299)[0].startswith("only 1 mistake of cost 10 or more among")


def test_with_equal_costs_all_mistakes_count():
    assert _warnings([1.0] * 3 + [0.0] * 97, 1 - np.eye(3))[0].startswith("only 3 mistakes among 100 images:")
    assert _warnings([1.0] * 12 + [0.0] * 88, 1 - np.eye(3)) == []


def test_groups_are_the_unit_of_the_bound():
    paid = [0.0] * 300
    share = [float(_warnings(paid, COSTS, groups)[0].split("up to ")[1].split("%")[0])
             for groups in (None, np.arange(300) // 6)]  # fmt: skip
    assert share == pytest.approx([1.0, 5.8], rel=0.05)  # 1 - 0.05 ** (1 / 300), 1 - 0.05 ** (1 / 50)


def test_referred_images_are_no_mistakes():
    costs = np.column_stack([COSTS, np.full(3, 15.0)])
    scored = Scored(np.arange(30) % 3, np.full(30, 3), np.full((30, 3), 1 / 3), costs)
    warning = warnings_of(scored, ["a", "b", "c", "refer"], 0.95)[-1]
    assert warning.startswith("no mistakes of cost 10 or more among 30 images")
    assert not costly_mistakes(scored).any()


def test_costly_mistakes_of_images():
    scored = Scored(np.array([2, 2, 1, 0]), np.array([0, 2, 0, 1]), np.full((4, 3), 1 / 3), COSTS)
    assert costly_mistakes(scored).tolist() == [True, False, False, False]  # 20 of 20; right; 4; 1


RARE = np.array([[0.0, 1.0], [20.0, 0.0]])


@pytest.mark.parametrize(("harmless", "venomous", "decides"), [(10, 1, False), (60, 2, False), (90, 2, True)])
def test_images_that_decide_nothing_are_reported(harmless, venomous, decides):
    """`always venomous` costs 1 for each harmless image; an unseen venomous one may cost the model 20. With n harmless
    images it outweighs them in a share of (1 + 1/20) ** -n of the draws: 0.61, 0.054 and 0.012."""
    targets = np.repeat([0, 1], [harmless, venomous])
    warnings = too_few_images(targets, RARE, ["harmless", "venomous"], np.ones(len(targets)), None, 0.95)
    assert (warnings == []) == decides
    if not decides:
        assert warnings[0].startswith(f"{harmless + venomous} images decide nothing: even without a mistake, no model "
                                      "would be shown to cost less than always ")  # fmt: skip


def test_what_decides_nothing_is_never_called_cheaper(rng):
    """The verdict on a model without mistakes needs the upper end of the normalised cost below 1."""
    for n in (3, 6, 12, 40, 150):
        targets = np.append([0, 1], (rng.random(n) < 0.1).astype(int))
        perfect = Scored(targets, targets, np.eye(2)[targets], RARE)
        point = split_metrics(perfect, 5)
        high = metric_intervals(perfect, point, 5, (), 2000, 0.95)["normalised_cost"][1]
        if too_few_images(targets, RARE, ["a", "b"], np.ones(len(targets)), None, 0.95):
            assert high > 0.95


def test_groups_decide_less_than_images_and_free_constant_decisions_are_no_news():
    targets = np.repeat([0, 1], [90, 2])
    groups = np.arange(92) // 10
    (warning,) = too_few_images(targets, RARE, ["a", "b"], np.ones(92), groups, 0.95)
    assert warning.startswith("92 images in 10 groups decide nothing")
    assert too_few_images(np.zeros(3, int), RARE, ["a", "b"], np.ones(3), None, 0.95) == []
