"""When further trials of a search are not worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

from udc_model.experiments.study_trials import ERRORS
from udc_model.experiments.tuning_plan import TuningPlan

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_MIN_TRIALS = 10  # with fewer, the best of them says little about further ones


def expected_minimum(values: Sequence[float], count: int) -> float:
    """Expected lowest of ``count`` values drawn from all of them without replacement.

    An unbiased estimate of the best of ``count`` random trials (Tang et al. 2020, "Showing Your Work Doesn't Always
    Work", there of the maximum); it depends on all values, not on their order.
    """
    total = len(values)
    weights = (comb(total - rank, count - 1) / comb(total, count) for rank in range(1, total + 1))
    return sum(value * weight for value, weight in zip(sorted(values), weights, strict=True))


@dataclass(frozen=True)
class Outlook:
    """What further trials are expected to bring.

    Parameters
    ----------
    trials : their number.
    gain : expected improvement of the best value, 0 and above.
    error : standard error of the best value.
    """

    metric: str
    trials: int
    gain: float
    error: float

    @property
    def is_exhausted(self) -> bool:
        """Whether the gain is below the standard error: no evaluation of this size could show it."""
        return self.gain < self.error

    def __str__(self) -> str:
        """One line for people."""
        more = f"{self.trials} more are expected to improve {self.metric} by {self.gain:.2g} or less"
        if self.is_exhausted:
            return f"Further trials are unlikely to help: {more}, and its standard error is {self.error:.2g}.\n"
        return f"Further trials may help: {more}; its standard error is {self.error:.2g}.\n"


def outlook(trials: Sequence[FrozenTrial], plan: TuningPlan) -> Outlook | None:
    """What half as many trials again are expected to bring; None if that is not known.

    A search ends where the remaining improvement is below the statistical error of the metric (Makarova et al. 2022).
    Their bound of the improvement needs a Gaussian process of the metric. This one needs none: the expected lowest of n
    random values is convex in n, so that the next k trials bring at most what the last k of them have brought, which
    `expected_minimum` estimates. A sampler that learns can do better than random values.

    Not known are the improvement of several metrics, of fewer than ten completed trials, of a search that has tried all
    values, and of a metric without standard error.
    """
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if len(plan.metrics) > 1 or len(complete) < _MIN_TRIALS:
        return None
    if plan.num_choices is not None and len(complete) >= plan.num_choices:
        return None
    sign = 1 if plan.directions[0] == "minimize" else -1
    values = [sign * trial.values[0] for trial in complete]
    error = complete[values.index(min(values))].user_attrs.get(ERRORS, [None])[0]
    if error is None:
        return None
    further = len(values) // 2
    gain = expected_minimum(values, len(values) - further) - min(values)
    return Outlook(plan.metrics[0], further, max(0.0, gain), error)
