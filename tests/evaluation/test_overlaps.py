"""Overlapping classes are named by a test in both directions, and shortcuts beside the network."""

import numpy as np
import pytest
from scipy.stats import binomtest

from udc_model.evaluation.overlaps import Overlap, overlap_sentences, overlapping_pairs, shortcut_sentence

CLASSES = ["ant", "bee", "wasp"]


def _decided(rates, n=100):
    """Labels and decisions of n images of each class, with these shares (K, K)."""
    labels = np.repeat(np.arange(len(rates)), n)
    return labels, np.concatenate(
        [np.repeat(np.arange(len(rates)), (np.array(row) * n).round().astype(int)) for row in rates]
    )


def test_classes_mistaken_for_each_other_are_named():
    labels, decided = _decided([[0.95, 0.0, 0.05], [0.0, 0.55, 0.45], [0.0, 0.4, 0.6]])
    (pair,) = overlapping_pairs(CLASSES, labels, decided, None)
    assert (pair.first, pair.second) == ("bee", "wasp")
    assert (pair.first_as_second, pair.second_as_first) == pytest.approx((0.45, 0.4))
    assert overlap_sentences([pair])[0].startswith("bee and wasp may be one class, or need a rule for labelling")


def test_one_direction_is_no_overlap():
    labels, decided = _decided([[1, 0, 0], [0, 0.3, 0.7], [0, 0.05, 0.95]])
    assert overlapping_pairs(CLASSES, labels, decided, None) == []


def test_few_images_prove_nothing_and_groups_count_once():
    rates = [[1, 0, 0], [0, 0.6, 0.4], [0, 0.4, 0.6]]
    labels, decided = _decided(rates, 10)
    assert overlapping_pairs(CLASSES, labels, decided, None) == []
    labels, decided = _decided(rates, 200)
    assert len(overlapping_pairs(CLASSES, labels, decided, None)) == 1
    in_groups = np.arange(600) % 20 + 20 * labels
    assert overlapping_pairs(CLASSES, labels, decided, in_groups) == []


@pytest.mark.parametrize("share", [0.34, 0.37, 0.40])
def test_limit_is_that_of_an_exact_binomial_test(share):
    labels, decided = _decided([[1, 0, 0], [0, 1 - share, share], [0, share, 1 - share]])
    is_significant = binomtest(round(100 * share), 100, 0.25, alternative="greater").pvalue <= 0.05 / 6
    assert bool(overlapping_pairs(CLASSES, labels, decided, None)) == is_significant


def test_many_pairs_are_counted():
    pairs = [Overlap("a", str(k), 0.5, 0.5) for k in range(8)]
    assert overlap_sentences(pairs)[5:] == ["3 more pairs of classes overlap like that."]


def test_shortcuts_as_good_as_the_network_are_named():
    shortcuts = [{"trait": "file size", "balanced_accuracy": 0.93}, {"trait": "EXIF date", "balanced_accuracy": 0.6}]
    (sentence,) = shortcut_sentence(shortcuts, 0.95)
    assert "balanced accuracy of 0.95" in sentence
    assert "the file size 0.93" in sentence
    assert "EXIF" not in sentence
    assert shortcut_sentence(shortcuts, 0.99) == []
    assert shortcut_sentence(shortcuts, None) == []
    assert shortcut_sentence([], 0.5) == []
