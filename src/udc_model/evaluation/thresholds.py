"""Reliability where decisions are made: the probability of a class near the threshold at which it changes them.

The calibration error is about the most probable class over all images. A decision by cost depends on whether the
probability of a costly class is right near its threshold, as 0.02, where the most probable class is another one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.decisions.decision import expected_costs
from udc_model.decisions.rows import by_rows
from udc_model.evaluation.intervals import share_interval
from udc_model.evaluation.metrics import Scored

Floats = NDArray[np.float64]

NEAR = 5.0  # an image is near a threshold if its odds are at most this many times larger or smaller
_CLASSES = 6  # at most, those with the most cost at stake


def odds_by_threshold(probabilities: Floats, costs: Floats, k: int) -> tuple[Floats, Floats]:
    """The threshold on the probability of class ``k`` for each image, and the odds of the class divided by its odds.

    The threshold is the probability from which the class changes the decision of least expected cost, if it rises from
    0 and the other classes keep their proportions.

    Parameters
    ----------
    probabilities : (N, K)
    costs : (K, D) whose least expected value is the decision, rows true.

    Returns
    -------
    (N,) each; 1 and 0 for an image whose decision the class never changes.
    """
    rest = np.delete(probabilities, k, axis=1)
    of_rest = np.maximum(rest.sum(axis=1), np.finfo(float).tiny)
    expected = (rest / of_rest[:, None]) @ np.delete(costs, k, axis=0)
    first = expected.argmin(axis=1)  # the decision without the class
    behind = expected - expected.min(axis=1, keepdims=True)
    gain = costs[k, first][:, None] - costs[k]  # of another decision, if the class is true
    odds = np.divide(behind, gain, out=np.full_like(behind, np.inf), where=gain > 0).min(axis=1)
    threshold = np.where(np.isfinite(odds), odds / (1 + np.where(np.isfinite(odds), odds, 0.0)), 1.0)
    ratio = np.divide(probabilities[:, k] / of_rest, odds, out=np.full(len(odds), np.inf), where=odds > 0)
    return threshold, ratio


def threshold_reliability(
    scored: Scored, classes: list[str], decision_costs: Floats, confidence: float
) -> pd.DataFrame:
    """Mean probability and observed share of costly classes among the images just below and just above the threshold.

    Parameters
    ----------
    decision_costs : (K, D) whose least expected value is the decision.

    Returns
    -------
    Columns ``class``, ``side`` (below, above), ``threshold`` and ``probability`` (means), ``share`` (observed)
    with ``low`` and ``high`` (interval by groups), and ``images``. The classes with the most cost at stake come first:
    share of the class times mean cost of its mistakes. A side without images near the threshold has no row.
    """
    rows, expected = [], expected_costs(scored.probabilities, decision_costs)
    for k in _costly_classes(scored):
        images = np.flatnonzero(_may_be_near(scored.probabilities, expected, decision_costs, k))
        threshold, ratio = odds_by_threshold(scored.probabilities[images], decision_costs, k)
        for side, is_near in (("below", (ratio >= 1 / NEAR) & (ratio < 1)), ("above", (ratio >= 1) & (ratio <= NEAR))):
            if is_near.any():
                near = images[is_near]
                weights = scored.image_weights[near]
                means = [np.average(x, weights=weights) for x in (threshold[is_near], scored.probabilities[near, k])]
                is_class = scored.targets[near] == k
                share = np.average(is_class, weights=weights)
                ends = _interval(scored, near, is_class, confidence)
                rows.append((classes[k], side, *means, share, *ends, len(near)))
    return pd.DataFrame(rows, columns=["class", "side", "threshold", "probability", "share", "low", "high", "images"])


def _may_be_near(probabilities: Floats, expected: Floats, costs: Floats, k: int) -> NDArray[np.bool_]:
    """Whether larger odds of class ``k`` change a decision (N,): true of all images near its threshold.

    It takes a fifth of the time of `odds_by_threshold`. Its differences of expected costs are inaccurate if nearly all
    of the probability is that of the class, but then the image is far above the threshold.

    Parameters
    ----------
    expected : (N, D) expected costs of ``probabilities``.
    """
    largest = 1.01 * NEAR  # a little more than needed, for rounding

    def of_rows(p: Floats, of_decisions: Floats) -> Floats:
        of_class = p[:, k, None] * costs[k]
        rest = of_decisions - of_class
        of_class *= largest
        first = rest.argmin(axis=1)
        rest += of_class
        return np.asarray(rest.argmin(axis=1) != first, dtype=np.float64)

    return np.asarray(by_rows(of_rows, probabilities, expected), dtype=np.bool_)


def _costly_classes(scored: Scored) -> list[int]:
    """Indices of the classes whose mistakes cost something, those with the most cost at stake first."""
    k = scored.num_classes
    classes = scored.outcome_costs[:, :k]
    mistakes = (classes.sum(axis=1) - np.diag(classes)) / (k - 1) - np.diag(classes)
    at_stake = mistakes * np.bincount(scored.targets, scored.image_weights, k)
    return [int(y) for y in np.argsort(-at_stake, kind="stable")[:_CLASSES] if at_stake[y] > 0]


def _interval(
    scored: Scored, chosen: NDArray[np.intp], is_class: NDArray[np.bool_], confidence: float
) -> tuple[float, float]:
    """The interval of the share of a class among images (M,) of the split; the unit is the group."""
    groups = None if scored.groups is None else scored.groups[chosen]
    weights = None if scored.weights is None else scored.weights[chosen]
    return share_interval(is_class, groups, confidence, weights)
