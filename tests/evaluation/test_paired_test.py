"""The paired sign-flip test against all sign patterns, SciPy's binomial test and its level; Holm's adjustment."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest, false_discovery_control

from udc_model.evaluation.paired_test import common_unit, holm, paired_test


def _all_patterns(differences):
    sums = np.array(list(product([-1, 1], repeat=len(differences)))) @ np.abs(differences)
    return (np.abs(sums) >= abs(differences.sum()) - 1e-9).mean()


@pytest.mark.parametrize("values", [[-20, -1, 1, 20], [-0.3, -0.1, 0.2, 0.7], [-2.5, 1, 0.5, 10], [1 / 3, -2 / 3, 1]])
def test_equals_the_count_of_all_sign_patterns(rng, values):
    for n in range(2, 13):
        differences = rng.choice(np.array(values, dtype=float), n)
        assert paired_test(np.append(differences, [0.0, 0.0])) == pytest.approx(_all_patterns(differences), abs=1e-12)


def test_differences_without_a_common_unit(rng):
    differences = rng.normal(0.3, 1, 11)
    assert common_unit(np.sort(np.abs(differences))) is None
    assert paired_test(differences) == pytest.approx(_all_patterns(differences), abs=1e-12)
    assert paired_test(rng.normal(0, 1, 12_000)) > 0.001
    assert paired_test(rng.normal(0.1, 1, 12_000)) == 1 / 1000  # none of 999 random patterns
    many = rng.normal(0.12, 1, 300)
    assert paired_test(many, seed=1) == pytest.approx(paired_test(np.round(many, 3)), abs=0.01)  # exact, in thousandths


def test_equal_sizes_are_the_sign_test():
    for n, positive in ((10, 9), (60, 40), (100_000, 50_400)):
        differences = np.repeat([2.5, -2.5], [positive, n - positive])
        assert paired_test(differences) == pytest.approx(binomtest(positive, n).pvalue, rel=1e-6)


def test_fewer_than_two_differences_show_nothing():
    assert paired_test(np.array([3.0])) == 1
    assert paired_test(np.zeros(4)) == 1
    assert paired_test(np.array([1.0, -1.0])) == 1


def test_many_large_differences(rng):
    assert paired_test(np.full(100_000, 0.1)) <= 1e-15
    assert paired_test(rng.choice([-20.0, -1.0, 1.0, 20.0], 100_000)) > 0.001


def test_common_unit():
    assert common_unit(np.array([1.0, 20.0])) == 1
    assert common_unit(np.array([0.5, 0.75])) == pytest.approx(0.25)
    assert common_unit(np.array([0.3, 0.7, 1.1])) == pytest.approx(0.1)
    assert common_unit(np.array([1.0, np.pi])) is None


@pytest.mark.slow
def test_paired_test_has_its_stated_level(rng):
    draws, level = 2000, 0.05
    differences = rng.choice([-10.0, -1.0, 0.0, 1.0, 10.0], (draws, 60), p=[0.05, 0.1, 0.7, 0.1, 0.05])
    rejected = sum(paired_test(row) <= level for row in differences)
    assert binom.ppf(0.001, draws, 0.7 * level) <= rejected <= binom.ppf(0.999, draws, level)


def test_holm_equals_his_example():
    """Holm 1979 compares the sorted p-values with level / n, level / (n - 1), …"""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    p = np.random.default_rng(0).uniform(size=20)
    assert (np.array(holm(p)) >= false_discovery_control(p) - 1e-12).all()  # Holm is the stricter of the two
