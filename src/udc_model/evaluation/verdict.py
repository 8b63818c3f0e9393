"""What an evaluation says to the person who decides: how many decisions are right, what they cost, against what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from udc_model.decisions.actions import REFER

Interval = tuple[float, float, float]  # value, low, high; NaN where undefined

UNIT = "per image, in the unit of the cost matrix"


@dataclass(frozen=True)
class Verdict:
    """Sentences about decisions. A sentence that compares was tested: it rests on an interval that excludes equality.

    Parameters
    ----------
    is_useful : True if the decisions are shown to cost less than the best constant decision, False if they are shown to
        cost more, None if neither is shown.
    warning : what makes the result worthless; empty if it is useful.
    counts : how many images are decided right and wrong, and of each action.
    cost : mean cost with interval, against the best constant decision.
    comparisons : against the best constant decision and against argmax.
    """

    is_useful: bool | None
    warning: str
    counts: str
    cost: str
    comparisons: tuple[str, ...]


def cost_text(value: float) -> str:
    """A cost with three significant digits, or as an integer from 1,000 on; a dash for NaN."""
    if value != value:
        return "–"
    rounded = f"{value:.3g}"
    return f"{value:,.0f}" if abs(float(rounded)) >= 1000 else rounded


def counts_text(images: int, right: int, actions: Mapping[str, int]) -> str:
    """How many images are decided right and wrong, and of each action, as a sentence without its full stop."""
    mistakes = images - right - sum(actions.values())
    wrong = {0: "no mistake", 1: "one mistake"}.get(mistakes, f"{mistakes:,} mistakes")
    parts = [f"{right:,} of {images:,} test images are decided right", wrong]
    for name, count in actions.items():
        if count:
            what = "are referred to a person" if name == REFER else f"are decided {name}"
            parts.append(f"{count:,} ({count / images:.1%}) {what}")
    return "; ".join(parts)


def verdict(
    metrics: Mapping[str, Interval], images: int, right: int, actions: Mapping[str, int], constant: str,
    is_argmax: bool, level: str,
) -> Verdict:  # fmt: skip
    """The verdict on the decisions of the test split.

    Parameters
    ----------
    metrics : of the split, with ``mean_cost``, ``normalised_cost``, ``constant_mean_cost`` and ``cost_saved``.
    images, right, actions : number of images, of those decided right, and of those decided as each action.
    constant : name of the best constant decision, as "always 4".
    is_argmax : whether the policy decides by argmax.
    level : of the intervals, as "95%".
    """
    cost, low, high = metrics["mean_cost"]
    ratio, ratio_low, ratio_high = metrics["normalised_cost"]
    share = f" ({ratio:.2%} of that)" if ratio == ratio else ""
    sentence = (f"Cost {cost_text(cost)} {UNIT} ({level} interval {cost_text(low)} to {cost_text(high)}), against "
                f"{cost_text(metrics['constant_mean_cost'][0])} for {constant}{share}")  # fmt: skip
    is_useful, warning, first = None, "", f"Cheaper than {constant}: shown at the {level} level."
    if ratio_high < 1:
        is_useful = True
    elif ratio_low > 1:
        is_useful, warning = False, f"Worse than {constant}, the best decision without a model: do not use this model."
    elif ratio_low == ratio_low:
        warning = f"Not shown to be better than {constant}, the best decision without a model: do not rely on it."
    elif metrics["constant_mean_cost"][0] < 0:
        warning = f"Not shown to be better than {constant}, which has a gain, so that no ratio of costs shows it."
    else:
        warning = f"{constant.capitalize()} costs nothing, so these costs need no model."
    comparisons = [first] if is_useful else []
    if not is_argmax:
        comparisons.append(_against_argmax(*metrics["cost_saved"], level))
    return Verdict(is_useful, warning, counts_text(images, right, actions), sentence, tuple(comparisons))


def _against_argmax(saved: float, low: float, high: float, level: str) -> str:
    what = "deciding for the most probable class (argmax)"
    if low > 0:
        return f"Cheaper by {cost_text(saved)} than {what}: shown at the {level} level."
    if high < 0:
        return f"Costlier by {cost_text(-saved)} than {what}: shown at the {level} level."
    if saved == low == high == 0:
        return f"Same decisions, or of the same cost, as {what}."
    return f"No difference in cost to {what} is shown ({level} interval {cost_text(low)} to {cost_text(high)})."
