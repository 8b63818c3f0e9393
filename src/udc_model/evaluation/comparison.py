"""Compare two sets of decisions on the same images: difference in cost and accuracy, intervals and paired tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import binomtest

from udc_model.data.packed import group_indices
from udc_model.errors import UdcError
from udc_model.evaluation.evidence import few_mistakes
from udc_model.evaluation.intervals import interval_of, mean_draws, needed_draws, sum_by_group, two_sided_p_value
from udc_model.evaluation.paired_test import paired_test

Floats = NDArray[np.float64]
_SHOWN = 10  # images of each kind in the text
_POWER = 0.8  # with which `more_images` would show a difference


@dataclass(frozen=True)
class Difference:
    """One metric of A and B, ``b - a`` with its interval (None where none is valid), and the p-value of the tests."""

    metric: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Result of `compare_predictions`.

    Parameters
    ----------
    more_images : about how many more images would show a difference in cost of the observed size; None if there is no
        difference, or its interval is unknown.
    warnings : why the numbers say little, one sentence each.
    changed : the images that only A or only B decides right.
    """

    images: int
    confidence: float
    differences: list[Difference]
    only_a_right: int
    only_b_right: int
    mcnemar_p: float
    more_images: int | None
    warnings: list[str]
    changed: list[dict[str, Any]]

    @property
    def cheaper(self) -> str | None:
        """``A`` or ``B`` if it is shown to cost less at the level 1 - confidence, else None."""
        cost = self.differences[0]
        if cost.p_value is None or cost.p_value > 1 - self.confidence + 1e-12 or cost.difference == 0:
            return None
        return "A" if cost.difference > 0 else "B"

    @property
    def sentence(self) -> str:
        """The conclusion about cost in one sentence."""
        cost = self.differences[0]
        if not self.changed and cost.difference == 0:
            return "A and B cost the same on every image: under these costs they decide alike"
        less = "less" if cost.difference < 0 else "more"
        observed = f"B costs {abs(cost.difference):.4f} {less} per image"
        if cost.p_value is None or cost.low is None or cost.high is None:
            return (f"{observed}; whether this is chance is not tested, because no policy.json beside the tables "
                    "states what other mistakes would cost; compare evaluation folders or runs")  # fmt: skip
        p = f"p = {cost.p_value:.2g}"
        level = f"{self.confidence:.0%} interval"
        if self.cheaper == "B":
            return (f"B is cheaper by {-cost.difference:.4f} per image, {level} {-cost.high:.4f} to {-cost.low:.4f} "
                    f"({p})")  # fmt: skip
        if self.cheaper == "A":
            return f"A is cheaper by {cost.difference:.4f} per image, {level} {cost.low:.4f} to {cost.high:.4f} ({p})"
        more = (
            "" if self.more_images is None else f"; about {self.more_images:,} more images would show one of this size"
        )
        return (f"No difference in cost is shown: {observed}, {level} of B - A {cost.low:.4f} to {cost.high:.4f} "
                f"({p}){more}")  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All fields, the sentence and which of both is cheaper, for JSON."""
        return {"answer": self.sentence, "cheaper": self.cheaper} | asdict(self)

    def to_text(self) -> str:
        """The sentence, a table, McNemar's test and the first images that only one side decides right."""
        lines = [
            self.sentence + ".",
            *(f"Note: {warning}" for warning in self.warnings),
            "",
            f"{'metric':<15}{'A':>9}{'B':>9}{'B - A':>9}   {self.confidence:.0%} interval",
        ]
        for row in self.differences:
            p = "" if row.p_value is None else f"   p = {row.p_value:.4f} (paired)"
            interval = "-" if row.low is None or row.high is None else f"{row.low:.4f} to {row.high:.4f}"
            lines.append(f"{row.metric:<15}{row.a:>9.4f}{row.b:>9.4f}{row.difference:>9.4f}   {interval:<18}{p}")
        lines += ["", f"McNemar's test of accuracy: of {self.images} images, {self.only_a_right} are right in A only, "
                      f"{self.only_b_right} in B only; p = {self.mcnemar_p:.4f}"]  # fmt: skip
        for side in ("A", "B"):
            rows = [row for row in self.changed if row["right"] == side]
            if rows:
                lines += ["", f"only {side} is right:"]
                lines += [f"  {r['path']}: {r['true']}, A {r['a']} ({r['cost_a']:g}), B {r['b']} ({r['cost_b']:g})"
                          for r in rows[:_SHOWN]]  # fmt: skip
                lines += [f"  … and {len(rows) - _SHOWN} more (--json lists all)"] if len(rows) > _SHOWN else []
        return "\n".join(lines) + "\n"


def compare_predictions(
    a: pd.DataFrame, b: pd.DataFrame, outcome_costs: Floats | None = None, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two predictions tables of the same images, paired by image; intervals and tests use groups as units.

    Accuracy is the share of all images that are decided right; one with an action is not. McNemar's (1947) exact test
    compares the error rates; with groups it is `paired_test` of each group's difference of right images.

    The p-value of the cost is the larger one of two. `paired_test` assumes nothing about the costs, but that chance
    exchanges A and B; it would call B cheaper that saves a little often and loses much so rarely that no image shows
    it. The second one inverts the interval of the mean difference, which allows for an unseen group with the largest
    difference that the costs permit.

    Parameters
    ----------
    outcome_costs : (K, D), the cost of all decisions by true class, which bounds the difference of an image; None if
        unknown: then the cost has no interval and no p-value.

    Raises
    ------
    UdcError
        The tables differ in images, true classes, costs or weights.
    """
    b = _aligned(a, b)
    weights, groups = a["weight"].to_numpy(dtype=float), group_indices(list(a["group"]))
    right_a, right_b = ((t["true"] == t["predicted"]).to_numpy() for t in (a, b))
    paid_a, paid_b = (t["cost_paid"].to_numpy(dtype=float) for t in (a, b))
    cost, more_images = _cost_difference(paid_a, paid_b, weights, groups, outcome_costs, confidence, seed)
    accuracy = _difference("accuracy", right_a.astype(float), right_b.astype(float), weights)
    sums, sizes = sum_by_group(weights * (right_b.astype(float) - right_a), groups), sum_by_group(weights, groups)
    low, high = interval_of(mean_draws(sums, sizes, -1.0, 1.0, seed), confidence)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    warnings = []
    if outcome_costs is not None and (paid_a != paid_b).any():
        class_costs = outcome_costs[:, : len(outcome_costs)]
        for side, table, right, paid in (("A", a, right_a, paid_a), ("B", b, right_b, paid_b)):
            is_mistake = ~right & table["predicted"].isin(set(a["true"])).to_numpy()  # not an action
            found = few_mistakes(paid, is_mistake, class_costs, weights, groups, confidence)
            warnings += [f"{side} has {warning}" for warning in found]
    return Comparison(
        len(a), confidence, [cost, replace(accuracy, low=low, high=high)], only_a, only_b,
        _mcnemar(right_a, right_b, groups, seed), more_images, warnings, _changed(a, b, right_a, right_b),
    )  # fmt: skip


def _mcnemar(
    right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], groups: NDArray[np.integer] | None, seed: int
) -> float:
    """P-value of equal error rates; the images of a group change together."""
    differences = right_b.astype(float) - right_a
    if groups is not None:
        return paired_test(sum_by_group(differences, groups), seed)
    changed = int(np.count_nonzero(differences))
    return float(binomtest(int((differences < 0).sum()), changed).pvalue) if changed else 1.0


def _difference(metric: str, a: Floats, b: Floats, weights: Floats) -> Difference:
    mean_a, mean_b = float(np.average(a, weights=weights)), float(np.average(b, weights=weights))
    return Difference(metric, mean_a, mean_b, mean_b - mean_a, None, None)


def _cost_difference(
    a: Floats, b: Floats, weights: Floats, groups: NDArray[np.integer] | None, outcome_costs: Floats | None,
    confidence: float, seed: int, comparisons: int = 1,
) -> tuple[Difference, int | None]:  # fmt: skip
    """The difference in mean cost with interval and p-value, and about how many more images would show it."""
    cost = _difference("mean_cost", a, b, weights)
    if outcome_costs is None:
        return cost, None
    largest = max(float(np.ptp(outcome_costs, axis=1).max()), float(np.abs(b - a).max(initial=0.0)))
    sums, sizes = sum_by_group(weights * (b - a), groups), sum_by_group(weights, groups)
    draws = mean_draws(sums, sizes, -largest, largest, seed, needed_draws(1 - (1 - confidence) / comparisons))
    low, high = interval_of(draws, confidence)
    if not (a != b).any():
        return replace(cost, low=low, high=high, p_value=1.0), None
    p_value = max(paired_test(sums, seed), two_sided_p_value(draws))
    more = None
    if p_value > 1 - confidence and cost.difference:
        needed = images_needed(cost.difference, sums, sizes, largest, confidence)
        more = _two_digits(max(needed - len(a), 1))
    return replace(cost, low=low, high=high, p_value=p_value), more


def cost_test(
    a: pd.DataFrame, b: pd.DataFrame, outcome_costs: Floats | None, confidence: float = 0.95, seed: int = 0,
    comparisons: int = 1,
) -> Difference:  # fmt: skip
    """The difference in mean cost of `compare_predictions`, without the rest.

    Parameters
    ----------
    comparisons : how many p-values are adjusted together; with many, each has to be exact enough.
    """
    b = _aligned(a, b)
    paid_a, paid_b, weights = (x.to_numpy(dtype=float) for x in (a["cost_paid"], b["cost_paid"], a["weight"]))
    groups = group_indices(list(a["group"]))
    return _cost_difference(paid_a, paid_b, weights, groups, outcome_costs, confidence, seed, comparisons)[0]


def images_needed(difference: float, sums: Floats, sizes: Floats, largest: float, confidence: float) -> float:
    """About how many images show a mean difference of this size, with a power of 80 %, at the level 1 - confidence.

    The half width of the interval at N images is ``z s / sqrt(N) + e m / N``: s is the standard deviation per image of
    what the data shows, and the second term allows for an unseen group of the largest size and difference, m together,
    with ``e = log(2 / (1 - confidence))``.
    """
    spread = float(np.sqrt(((sums - difference * sizes) ** 2).sum() / sizes.sum()))
    z = ndtri((1 + confidence) / 2) + ndtri(_POWER)
    unseen = np.log(2 / (1 - confidence)) * largest * sizes.max()
    root = (z * spread + np.sqrt((z * spread) ** 2 + 4 * unseen * abs(difference))) / (2 * abs(difference))
    return float(root**2)


def _two_digits(value: float) -> int:
    """Rounded to two significant digits."""
    return int(float(f"{value:.1e}"))


def _changed(
    a: pd.DataFrame, b: pd.DataFrame, right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """The images that only A or only B decides right, the largest difference in cost first."""
    changed = pd.DataFrame({
        "path": a["path"], "true": a["true"], "a": a["predicted"], "b": b["predicted"], "cost_a": a["cost_paid"],
        "cost_b": b["cost_paid"], "right": np.where(right_a, "A", "B"),
    })[right_a != right_b]  # fmt: skip
    by_size = changed.assign(size=(changed["cost_a"] - changed["cost_b"]).abs()).sort_values(
        ["size", "path"], ascending=[False, True]
    )
    return [{str(k): v for k, v in row.items()} for row in by_size.drop(columns="size").to_dict("records")]


def _aligned(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """B in the order of A; :class:`UdcError` unless both have the same images, true classes, costs and weights."""
    if a["path"].duplicated().any() or b["path"].duplicated().any():
        raise UdcError("a table lists an image twice; both must be the predictions.csv of one split")
    only_a, only_b = sorted(set(a["path"]) - set(b["path"])), sorted(set(b["path"]) - set(a["path"]))
    if only_a or only_b:
        shown = ", ".join((only_a + only_b)[:5])
        raise UdcError(f"the tables have different images: {len(only_a)} are in A only, {len(only_b)} in B only "
                       f"({shown}, …)")  # fmt: skip
    b = b.set_index("path").loc[a["path"]].reset_index()
    for column, what in (("sha256", "the same name but other contents"), ("true", "another true class")):
        differs = (a[column].to_numpy() != b[column].to_numpy()).nonzero()[0]
        if len(differs):
            raise UdcError(f"the tables have different images: {len(differs)} have {what} "
                           f"({', '.join(a['path'].iloc[differs[:5]])}, …)")  # fmt: skip
    if not np.allclose(a["weight"], b["weight"]):
        raise UdcError("the tables weight the images differently (costs.prior); name the results instead of their "
                       "tables, and decide both under one: `udc compare A B --costs A`")  # fmt: skip
    costs = pd.concat([a, b]).groupby(["true", "predicted"])["cost_paid"].agg(["min", "max"])
    differing = costs[~np.isclose(costs["min"], costs["max"])]
    if len(differing):
        first = differing.reset_index().iloc[0]
        raise UdcError(
            f"the tables have different costs: {first['true']} decided as {first['predicted']} costs {first['min']:g} "
            f"in one and {first['max']:g} in the other; name the results instead of their tables, and decide both "
            "under the costs of one: `udc compare A B --costs A`"
        )
    return b
