"""The data with which the report recomputes decisions under other costs in the browser (what_if.html.j2).

The page decides from probabilities that are rounded to 16 bits. `rounded_probabilities` computes the same ones, so that
what the page shows can be checked in Python: the decisions are those of `Policy.decide` for them.
"""

from __future__ import annotations

import base64
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from numpy.typing import NDArray

from udc_model.config import CostParams
from udc_model.decisions.familiarity import evenly_spaced
from udc_model.decisions.policy import Policy
from udc_model.evaluation.metrics import Scored, rate_metric

Floats = NDArray[np.float64]

MOST_VALUES = 3_000_000  # probabilities in the page: 8 MB
MOST_CLASSES = 300  # of a page; a cost matrix of more classes is not edited by hand
_LARGEST_ROOT = 2**16 - 1
_SCRIPTS = ("what_if_decisions.js", "what_if_intervals.js", "what_if_page.js")  # one after the other in the page


def rounded_roots(probabilities: Floats) -> NDArray[np.uint16]:
    """Square roots of probabilities (N, K), in units of 1 / 65,535 and rounded to whole ones.

    A probability p gets an error of at most ``1.6e-5 sqrt(p)``. Rounded themselves, probabilities below 1e-5 would be
    0, but they decide where a mistake costs 10,000 times as much as another one.
    """
    return np.asarray(np.rint(np.sqrt(probabilities) * _LARGEST_ROOT), dtype=np.uint16)


def rounded_probabilities(probabilities: Floats) -> Floats:
    """The probabilities (N, K) from which the page decides, up to a factor of each row, which changes no decision.

    They are multiples of 2**-32, so that sums of them times whole costs are exact, here and in the browser.
    """
    return np.asarray(np.square(rounded_roots(probabilities), dtype=np.float64) / 2**32)


def sampled_rows(targets: NDArray[np.integer], classes: int, most: int) -> NDArray[np.intp]:
    """At most ``most`` of N images, ascending: of each class the same number, evenly spaced, or all if it has fewer.

    Parameters
    ----------
    targets : (N,) class indices.
    classes : number of classes.
    """
    if len(targets) <= most:
        return np.arange(len(targets))
    counts = np.bincount(targets, minlength=classes)
    of_class = bisect_right(range(int(counts.max()) + 1), most, key=lambda each: np.minimum(counts, each).sum()) - 1
    rows = [np.flatnonzero(targets == y) for y in range(classes)]
    return np.sort(np.concatenate([each[evenly_spaced(len(each), of_class)] for each in rows]))


@dataclass(frozen=True)
class WhatIf:
    """What the page needs of N stored images of a split, and the policy that decided them.

    Parameters
    ----------
    policy, costs : as recorded.
    class_sizes : (K,) images of each class in the split.
    rows : (N,) indices of the stored images in the split.
    probabilities : (N, K) calibrated, under the class frequencies of training.
    targets, decided : (N,) true classes, and recorded decisions as indices of the policy's outcomes.
    groups : (N,) group indices; None if each image is its own group.
    is_unfamiliar : (N,)
    """

    policy: Policy
    costs: CostParams
    class_sizes: NDArray[np.integer]
    rows: NDArray[np.integer]
    probabilities: Floats
    targets: NDArray[np.integer]
    decided: NDArray[np.integer]
    groups: NDArray[np.integer] | None
    is_unfamiliar: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        policy: Policy,
        costs: CostParams,
        scored: Scored,
        logits: NDArray[np.floating],
        distances: NDArray[np.floating] | None = None,
        most_values: int = MOST_VALUES,
    ) -> WhatIf | None:
        """The data of a scored split; None for more than `MOST_CLASSES`.

        Parameters
        ----------
        costs : the section of the parameters that the policy was fitted with.
        logits : (N, K) of the images.
        distances : (N,) to the training images; None for a policy without familiarity.
        most_values : probabilities that are stored; images beyond them are left out by `sampled_rows`.
        """
        k = len(policy.classes)
        if k > MOST_CLASSES:
            return None
        rows = sampled_rows(scored.targets, k, most_values // k)
        familiarity = policy.familiarity_of(distances)
        flags = np.zeros(len(scored.targets), dtype=bool) if familiarity is None else policy.is_unfamiliar(familiarity)
        groups = None if scored.groups is None else np.unique(scored.groups[rows], return_inverse=True)[1]
        sizes = np.bincount(scored.targets, minlength=k)
        is_shifted = policy.training_prior is not None and policy.deployment_prior is not None
        p = policy.training_probabilities(logits[rows]) if is_shifted else scored.probabilities[rows]
        return cls(policy, costs, sizes, rows, p, scored.targets[rows], scored.decided[rows], groups, flags[rows])

    def to_html(
        self,
        metrics: Mapping[str, tuple[float, float, float]],
        recalls: Sequence[Mapping[str, Any]],
        confidence: float,
    ) -> str:
        """The part of the report: controls, data and scripts.

        Parameters
        ----------
        metrics : value and interval of the recorded metrics of the split.
        recalls : rows of ``per_class.csv``, in the order in which classes are shown.
        confidence : level of the intervals.
        """
        values = self._values(metrics, recalls) | {"confidence": confidence}
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        data = text.replace("<", "\\u003c")  # no name of a class ends the element
        template, script = _template_and_script()
        return template.render(images=len(self.rows), data=data, roots=self._roots, script=script)

    @cached_property
    def _roots(self) -> str:
        return _base64(rounded_roots(self.probabilities))

    def _values(
        self, metrics: Mapping[str, tuple[float, float, float]], recalls: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What the scripts read, by the names in what_if_decisions.js."""
        policy = self.policy
        return {
            "classes": policy.classes,
            "order": [policy.classes.index(row["class"]) for row in recalls],
            "recorded": {
                "costs": _matrix(np.array(policy.class_costs)),
                "refer": policy.refer,
                "actions": [[name, costs] for name, costs in policy.actions.items()],
                "refersUnfamiliar": policy.refers_unfamiliar,
                "prior": self.costs.prior,
                "decision": policy.decision,
            },
            "entries": [[entry.true, entry.predicted, entry.cost] for entry in self.costs.entries],
            "guarantee": policy.guarantee,
            "fitted": {"floors": _surcharges(policy), "threshold": (policy.cost_ceiling or {}).get("threshold")},
            "trainingPrior": policy.training_prior,
            "isReweighted": policy.learned_prior is not None and policy.training_prior is not None,
            "canReferUnfamiliar": policy.familiarity is not None and policy.familiarity.is_resolved,
            "meanCost": _numbers(metrics["mean_cost"]),
            "rates": [[name, _numbers(metrics[rate_metric(name)])] for name in policy.action_names],
            "recalls": [_numbers([row[name] for name in ("recall", "recall_low", "recall_high")]) for row in recalls],
            "classSizes": self.class_sizes.tolist(),
            "rows": None if len(self.rows) == self.class_sizes.sum() else self.rows.tolist(),
            "unfamiliar": np.flatnonzero(self.is_unfamiliar).tolist(),
            "groups": None if self.groups is None else self.groups.tolist(),
            "targets": _base64(self.targets.astype(np.uint16)),
            "decided": _base64(self.decided.astype(np.uint16)),
        }


@cache
def _template_and_script() -> tuple[Template, str]:
    loader = PackageLoader("udc_model.evaluation", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    folder = resources.files("udc_model.evaluation")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return environment.get_template("what_if.html.j2"), script


def _surcharges(policy: Policy) -> list[tuple[list[int], float]]:
    """Of each recall floor, its classes and the fitted surcharge on deciding their images as others."""
    stated = policy.recall_floor or []
    floors = [stated] if isinstance(stated, dict) else stated
    names = [[floor["class"]] if isinstance(floor["class"], str) else floor["class"] for floor in floors]
    return [([policy.classes.index(name) for name in of_floor], floor["surcharge"])
            for of_floor, floor in zip(names, floors, strict=True)]  # fmt: skip


def _base64(values: NDArray[np.uint16]) -> str:
    return base64.b64encode(values.astype("<u2").tobytes()).decode()


def _matrix(costs: Floats) -> list[list[float]]:
    """The costs as lists, of integers if all are whole: the JSON of a large matrix is then half as long."""
    return list((costs.astype(np.int64) if (costs == np.rint(costs)).all() else costs).tolist())


def _numbers(values: Sequence[float]) -> list[float | None]:
    """The numbers; None for NaN, which JSON does not have."""
    return [None if math.isnan(value) else float(value) for value in values]
