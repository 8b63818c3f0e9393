"""What a search of ``udc tune`` consists of."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.config import Params, load_params
from udc_model.errors import UdcError
from udc_model.experiments.objectives import Direction, check_objectives, direction_of
from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.settings import check_settings
from udc_model.experiments.shared_study import check_address
from udc_model.tracking.provenance import absent_from_copies

if TYPE_CHECKING:
    from optuna import Trial


@dataclass(frozen=True)
class TuningPlan:
    """The arguments of ``udc tune``.

    Parameters
    ----------
    trials : number of them in all, at most; see `limit`.
    metrics : names in ``evaluation/validation/metrics.csv`` after their split, or
        :data:`~udc_model.experiments.objectives.SECONDS`. With several, the search is for the best trade-offs.
    prune : end trials with a poor validation curve early; optuna prunes for one metric only.
    stop : end the study when further trials are not expected to help, see `udc_model.experiments.stopping`.
    storage : address of the database of a study that several workers share.
    """

    study: str
    ranges: Sequence[SearchRange]
    trials: int
    metrics: Sequence[str] = ("validation/mean_cost",)
    sampler: str = "tpe"
    prune: bool = True
    stop: bool = False
    storage: str | None = field(default=None, repr=False)  # may have a password

    @property
    def directions(self) -> list[Direction]:
        """Of the metrics."""
        return [direction_of(name) for name in self.metrics]

    @property
    def can_prune(self) -> bool:
        """Whether trials are pruned."""
        return self.prune and len(self.metrics) == 1

    @property
    def num_choices(self) -> int | None:
        """Number of different trials; None if a range is not a choice."""
        if any(each.kind not in ("choice", "value") for each in self.ranges):
            return None
        return math.prod(len(set(each.arguments)) for each in self.ranges)

    @property
    def limit(self) -> int:
        """Number of trials in all: a grid has no more than its combinations, which a sampler would repeat."""
        if self.sampler == "grid" and self.num_choices is not None:
            return min(self.trials, self.num_choices)
        return self.trials

    def settings(self, trial: Trial) -> list[str]:
        """The values of a trial for DVC's option ``-S``; draws those that it does not have."""
        return [f"{each.name}={each.suggest(trial)}" for each in self.ranges]

    def check(self) -> Params:
        """The parameters that all trials share.

        Raises
        ------
        UdcError
            An argument is wrong, or a trial could fail because of its parameters or data.
        """
        if self.stop and len(self.metrics) > 1:
            raise UdcError("--stop: whether further trials help is judged for one --metric only")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.study):
            raise UdcError(
                f"{self.study}: the name of a study may have letters, digits, '_', '.' and '-' only, as DVC experiments"
            )
        if self.storage is not None:
            check_address(self.storage)
        params = _check_ranges(self.ranges)
        check_objectives(self.metrics, params)
        return params


def _check_ranges(ranges: Sequence[SearchRange]) -> Params:
    """The parameters with the values of one trial; :class:`UdcError` if the lowest or highest values are wrong."""
    params = load_params()
    extremes = [search_range.extremes for search_range in ranges]
    for k in range(max(map(len, extremes), default=0)):
        values = zip(ranges, extremes, strict=True)
        params = check_settings([f"{each.name}={texts[min(k, len(texts) - 1)]}" for each, texts in values])
        if params.data.source != "digits" and (absent := absent_from_copies(Path(params.data.path))):
            raise UdcError(f"data.path: trials run in a copy of the repository, which would lack the images: {absent}")
    return params
