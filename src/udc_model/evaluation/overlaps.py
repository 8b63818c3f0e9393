"""Pairs of classes that the network cannot tell apart, and shortcuts that decide nearly as well as it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.decisions.decision import clopper_pearson_bound

_LEAST_SHARE = 0.25  # of each class that is taken for the other one, at the lower limit; one half is guessing
_ERROR = 0.05  # probability that any pair is named although fewer are mistaken
_MOST_LISTED = 5
_NEAR = 0.05  # difference of two balanced accuracies that counts as near


@dataclass(frozen=True)
class Overlap:
    """Two classes, and the share of each, among its images decided as one of the two, that is decided as the other."""

    first: str
    second: str
    first_as_second: float
    second_as_first: float


def overlapping_pairs(
    classes: Sequence[str], labels: NDArray[np.int64], decided: NDArray[np.intp], units: NDArray[np.intp] | None
) -> list[Overlap]:
    """Find the pairs of classes that are mistaken for each other in both directions, the most mistaken first.

    A pair is named if both shares exceed a quarter at the lower limit of their intervals (Clopper and Pearson 1934),
    which hold for all pairs together. Images that the network was not trained on are needed.

    Parameters
    ----------
    labels, decided : (N,) true class, and most probable class.
    units : (N,) group of each image; a group counts as one image. None if each is one.
    """
    n_classes = len(classes)
    error = _ERROR / max(1, n_classes * (n_classes - 1))
    confused = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(confused, (labels, decided), 1)
    found = []
    for a, b in combinations(range(n_classes), 2):
        if confused[a, b] and confused[b, a]:
            shares = [_share(labels, decided, units, true, other, error) for true, other in ((a, b), (b, a))]
            if min(least for _, least in shares) >= _LEAST_SHARE:
                found.append(Overlap(classes[a], classes[b], shares[0][0], shares[1][0]))
    return sorted(found, key=lambda pair: -min(pair.first_as_second, pair.second_as_first))


def _share(
    labels: NDArray[np.int64],
    decided: NDArray[np.intp],
    units: NDArray[np.intp] | None,
    true: int,
    other: int,
    error: float,
) -> tuple[float, float]:
    """The share of a class decided as another one, among those decided as one of the two, and its lower limit."""
    chosen = (labels == true) & np.isin(decided, (true, other))
    share = float((decided[chosen] == other).mean())
    n = int(chosen.sum()) if units is None else len(np.unique(units[chosen]))
    return share, float(clopper_pearson_bound(share * n, n, 1 - error))


def overlap_sentences(pairs: Sequence[Overlap]) -> list[str]:
    """A sentence for each of the first pairs, and one for the others."""
    sentences = [
        f"{pair.first} and {pair.second} may be one class, or need a rule for labelling: of their images that are "
        f"taken for one of the two, {pair.first_as_second:.0%} of {pair.first} are taken for {pair.second}, and "
        f"{pair.second_as_first:.0%} of {pair.second} for {pair.first}."
        for pair in pairs[:_MOST_LISTED]
    ]
    more = len(pairs) - _MOST_LISTED
    return sentences + ([f"{more} more pairs of classes overlap like that."] if more > 0 else [])


def shortcut_sentence(shortcuts: Sequence[Mapping[str, Any]], balanced_accuracy: float | None) -> list[str]:
    """A sentence about the shortcuts that decide nearly as well as the network, if there are some.

    Parameters
    ----------
    shortcuts : those in ``dataset.json``.
    balanced_accuracy : of the network, on the test split.
    """
    if balanced_accuracy is None:
        return []
    near = {str(each["trait"]): float(each["balanced_accuracy"]) for each in shortcuts
            if each["balanced_accuracy"] >= balanced_accuracy - _NEAR}  # fmt: skip
    if not near:
        return []
    traits = ", ".join(f"the {trait} {value:.2f}" for trait, value in sorted(near.items(), key=lambda item: -item[1]))
    return [f"The network has a balanced accuracy of {balanced_accuracy:.2f}. Traits that should not matter reach "
            f"nearly as much without it: {traits}. The network may have learned them."]  # fmt: skip
