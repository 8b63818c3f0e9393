"""The result on objects that the network was trained on, beside that on new objects."""

import numpy as np
import pytest
from scipy.stats import binomtest

from udc_model.evaluation.metrics import Scored
from udc_model.evaluation.relatives import relatives_sentence

PATTERN = r"^(.+)[ _.-]\(?[0-9]{1,4}\)?\.[^.]+$"


def _paths(objects, shots):
    return [f"ant/tile{k:03d}_{shot}.jpg" for k in objects for shot in range(shots)]


def _scored(is_right, columns=2):
    is_right = np.array(is_right)
    targets = np.arange(len(is_right)) % 2
    decided = np.where(is_right, targets, 1 - targets)
    return Scored(targets, decided, np.full((len(targets), 2), 0.5), np.ones((2, columns)))


def test_better_on_objects_that_were_trained_on():
    paths = _paths(range(40), 1) + _paths(range(100, 140), 1)
    scored = _scored([True] * 39 + [False] + [True] * 24 + [False] * 16)
    sentence = relatives_sentence(PATTERN, _paths(range(60), 2), paths, scored, 0.95)
    seen = binomtest(39, 40).proportion_ci(0.95, "exact")
    new = binomtest(24, 40).proportion_ci(0.95, "exact")
    assert sentence == (
        "By their file names, 40 of 80 test images show objects that the network was trained on. Their accuracy is "
        f"0.975 ({seen.low:.3f} to {seen.high:.3f}), that of the others 0.600 ({new.low:.3f} to {new.high:.3f}). "
        f"The result looks better than it is for new objects; set data.group: '{PATTERN}'."
    )


def test_shots_of_one_object_count_once():
    paths = _paths(range(8), 5) + _paths(range(100, 108), 5)
    scored = _scored([True] * 40 + [True] * 24 + [False] * 16)
    sentence = relatives_sentence(PATTERN, _paths(range(60), 2), paths, scored, 0.95)
    assert "The difference may be chance." in sentence
    # 4.8 of 8 objects
    assert f"0.600 ({binomtest(4, 8).proportion_ci(0.95, 'exact').low:.3f}" not in sentence
    assert "0.600 (0.2" in sentence


def test_referred_images_are_not_in_the_accuracy():
    scored = _scored([True] * 10, columns=3)
    scored.decided[[1, 2, 7]] = 2
    paths = _paths(range(5), 1) + _paths(range(100, 105), 1)
    sentence = relatives_sentence(PATTERN, _paths(range(5), 1), paths, scored, 0.95)
    assert sentence.count("1.000 (") == 2


def test_only_objects_that_were_trained_on():
    paths = _paths(range(5), 2)
    sentence = relatives_sentence(PATTERN, _paths(range(9), 1), paths, _scored([True] * 10), 0.95)
    assert sentence.startswith("By their file names, all 10 test images show objects that the network was trained on: ")


@pytest.mark.parametrize("training", [_paths(range(50, 60), 2), ["ant/without-number.jpg"]])
def test_nothing_is_said_without_relatives(training):
    assert relatives_sentence(PATTERN, training, _paths(range(5), 2), _scored([True] * 10), 0.95) is None
