"""The corrected t interval by hand, the outer of two intervals, and what one test split decides."""

import numpy as np
import pytest

from udc_model.evaluation.cross_validation import FoldDecisions, corrected_t_interval, cross_validation
from udc_model.evaluation.intervals import interval_of, mean_draws

COSTS = np.array([[0.0, 1.0], [20.0, 0.0]])
NAMES = ["safe", "venomous"]


def test_corrected_t_interval_by_hand():
    """Mean 3, variance 2.5, factor 1/5 + 1/4: error sqrt(1.125), times the t quantile 2.776 of 4 degrees of freedom."""
    low, high = corrected_t_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 0.25, 0.95)
    assert (low, high) == pytest.approx((3 - 2.7764451 * 1.0606602, 3 + 2.7764451 * 1.0606602), abs=1e-6)
    uncorrected = corrected_t_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 0.0, 0.95)
    assert uncorrected == pytest.approx((3 - 2.7764451 * 0.7071068, 3 + 2.7764451 * 0.7071068), abs=1e-6)


def _folds(wrong, size=20, is_cheaper=None):
    """Five folds of 20 images, 5 of them venomous, with some costly mistakes in each."""
    folds = []
    for k, count in enumerate(wrong):
        true = np.repeat([0, 1], [size - 5, 5])
        decided = true.copy()
        decided[size - 5 : size - 5 + count] = 0
        units = np.arange(size) + k * size
        folds.append(FoldDecisions(1, k + 1, 4 * size, units, true, decided, np.ones(size), is_cheaper))
    return folds


def test_cost_and_difference_are_means_over_folds_with_the_outer_ends():
    result = cross_validation(_folds([1, 0, 2, 0, 1]), COSTS, NAMES, 0.95)
    assert result.constant == "always venomous"  # 15 of 20 cost 1; always safe: 5 of 20 cost 20
    assert result.table["cost"].tolist() == [1.0, 0.0, 2.0, 0.0, 1.0]
    assert result.table["constant_cost"].tolist() == [0.75] * 5
    assert result.table["right"].tolist() == [0.95, 1.0, 0.9, 1.0, 0.95]
    assert result.cost.value == pytest.approx(0.8)
    assert result.difference.value == pytest.approx(0.05)
    assert result.cost.by_folds == pytest.approx(corrected_t_interval(np.array([1, 0, 2, 0, 1.0]), 0.25, 0.95))
    paid = np.repeat([0.0, 20.0], [96, 4])
    assert result.cost.by_units == pytest.approx(interval_of(mean_draws(paid, np.ones(100), 0.0, 20.0), 0.95), rel=0.05)
    assert min(result.cost.by_folds) < 0 == result.cost.low  # no cost is lower than the lowest in the matrix
    assert min(result.difference.by_folds) < -1.0 == result.difference.low  # always venomous costs at most 1
    assert result.cost.high == max(result.cost.by_folds[1], result.cost.by_units[1])
    assert result.is_cheaper is None


def test_without_a_mistake_the_interval_still_allows_for_some():
    """All folds cost 0, so the t interval has no width; the bound of 20 units is that of Clopper and Pearson."""
    result = cross_validation(_folds([0] * 5), COSTS, NAMES, 0.95)
    assert result.cost.by_folds == (0.0, 0.0)
    assert result.cost.high == pytest.approx(20 * (1 - 0.025 ** (1 / 100)), rel=0.05)
    assert result.cost.low == 0.0


def test_repeats_do_not_count_as_more_images():
    once = cross_validation(_folds([1, 0, 2, 0, 1]), COSTS, NAMES, 0.95)
    thrice = cross_validation(_folds([1, 0, 2, 0, 1]) * 3, COSTS, NAMES, 0.95)
    assert thrice.cost.by_units == pytest.approx(once.cost.by_units)
    grouped = [FoldDecisions(1, fold.number, 80, fold.units // 10, fold.true, fold.decided, fold.weights, None)
               for fold in _folds([1, 0, 2, 0, 1])]  # fmt: skip
    assert np.ptp(cross_validation(grouped, COSTS, NAMES, 0.95).cost.by_units) > np.ptp(once.cost.by_units)


def test_weights_count():
    (first, *others) = _folds([5, 0])
    weights = np.where(first.true == 1, 3.0, 1.0)
    weighted = FoldDecisions(1, 1, 80, first.units, first.true, first.decided, weights, None)
    result = cross_validation([weighted, *others], COSTS, NAMES, 0.95)
    assert result.table["cost"].tolist() == [20 * 15 / 30, 0.0]


@pytest.mark.parametrize(("verdicts", "sentence"), [
    ([True, None, None, None, None], "One test split decides nothing: of 5 test splits of about 20 images, 1 show by "
                                     "themselves whether their model costs less."),
    ([True, True, True, None, None], "Of 5 test splits of about 20 images, 3 show by themselves whether their model "
                                     "costs less."),
    ([False] * 5, "One test split decides nothing: of 5 test splits of about 20 images, 0 show by themselves whether "
                  "their model costs less."),
])  # fmt: skip
def test_what_one_test_split_decides_is_said(verdicts, sentence):
    costs = np.array([[0.0, 1.0], [1.0, 0.0]])
    folds = [FoldDecisions(1, k + 1, 80, np.arange(20) + 20 * k, true := np.arange(20) % 2, true, np.ones(20), verdict)
             for k, verdict in enumerate(verdicts)]  # fmt: skip
    result = cross_validation(folds, costs, NAMES, 0.95)
    assert result.is_cheaper is True
    text = result.to_text()
    assert text.splitlines()[-1] == sentence
    assert "Cost of the procedure: 0 per image, in the unit of the cost matrix (95% interval 0 to 0.0" in text
    assert "against 0.5 for always safe.\nCheaper than always safe: shown at the 95% level (difference -0.6" in text


def test_a_costlier_procedure_is_called_costlier():
    text = cross_validation(_folds([5] * 5), COSTS, NAMES, 0.95).to_text()
    assert "Costlier than always venomous, the best decision without a model (95% level, difference " in text
