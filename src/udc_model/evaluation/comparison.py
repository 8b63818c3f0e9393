"""Compare two sets of decisions on the same images: difference in cost and accuracy, intervals and paired tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import binomtest, permutation_test

from udc_model.data.packed import group_indices
from udc_model.errors import UdcError
from udc_model.evaluation.intervals import bca_intervals, by_group

Floats = NDArray[np.float64]
_FLIPS = 9999  # random sign changes of the paired test; all sign changes if there are no more
_FLIPS_OF_MANY, _MANY = 999, 10_000  # sign changes for more pairs than this; the level is exact for any number
_BATCH = 10**7  # signs in memory at a time
_SHOWN = 10  # images of each kind in the text


@dataclass(frozen=True)
class Difference:
    """One metric of A and B, ``b - a`` with its interval, and the p-value of the paired test (None if not tested)."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Result of `compare_predictions`; ``changed`` lists the images that only A or only B decides right."""

    images: int
    confidence: float
    differences: list[Difference]
    only_a_right: int
    only_b_right: int
    mcnemar_p: float
    changed: list[dict[str, Any]]

    @property
    def sentence(self) -> str:
        """The conclusion about cost in one sentence."""
        cost = self.differences[0]
        level = f"{self.confidence:.0%} interval"
        if cost.high < 0:
            return f"B is cheaper by {-cost.difference:.4f} per image, {level} {-cost.high:.4f} to {-cost.low:.4f}"
        if cost.low > 0:
            return f"A is cheaper by {cost.difference:.4f} per image, {level} {cost.low:.4f} to {cost.high:.4f}"
        if not self.changed and cost.difference == 0:
            return "A and B cost the same on every image"
        less = "less" if cost.difference < 0 else "more"
        return (f"No difference in cost is shown: B costs {abs(cost.difference):.4f} {less} per image, {level} of "
                f"B - A {cost.low:.4f} to {cost.high:.4f}")  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All fields and the sentence, for JSON."""
        return {"answer": self.sentence} | asdict(self)

    def to_text(self) -> str:
        """The sentence, a table, McNemar's test and the first images that only one side decides right."""
        lines = [
            self.sentence + ".",
            "",
            f"{'metric':<15}{'A':>9}{'B':>9}{'B - A':>9}   {self.confidence:.0%} interval",
        ]
        for row in self.differences:
            p = "" if row.p_value is None else f"   p = {row.p_value:.4f} (paired sign flips)"
            interval = f"{row.low:.4f} to {row.high:.4f}"
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
    a: pd.DataFrame, b: pd.DataFrame, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two predictions tables of the same images, paired by image; resampling and tests use groups as units.

    Accuracy is the share of all images that are decided right; a referred image is not.

    The p-value of the cost is that of `paired_test`. McNemar's (1947) exact test compares the error rates.

    Raises
    ------
    UdcError
        The tables differ in images, true classes, costs or weights.
    """
    b = _aligned(a, b)
    weights = a["weight"].to_numpy()
    groups = group_indices(list(a["group"]))
    right_a, right_b = ((t["true"] == t["predicted"]).to_numpy() for t in (a, b))
    pairs = {
        "mean_cost": (a["cost_paid"].to_numpy(), b["cost_paid"].to_numpy()),
        "accuracy": (right_a.astype(float), right_b.astype(float)),
    }
    columns = [weights * (values_b - values_a) for values_a, values_b in pairs.values()]
    features = by_group(sparse.csr_matrix(np.column_stack([*columns, weights])), groups)

    def statistic(sums: Floats) -> dict[str, Floats]:
        return {name: sums[i] / sums[-1] for i, name in enumerate(pairs)}

    intervals = bca_intervals(features, statistic, resamples, confidence, seed)
    p_value = paired_test(features[:, 0].toarray().ravel(), seed)
    differences = []
    for name, values in pairs.items():
        mean_a, mean_b = (float(np.average(value, weights=weights)) for value in values)
        p = p_value if name == "mean_cost" else None
        differences.append(Difference(name, mean_a, mean_b, mean_b - mean_a, *intervals[name], p))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    changed = pd.DataFrame({
        "path": a["path"], "true": a["true"], "a": a["predicted"], "b": b["predicted"], "cost_a": a["cost_paid"],
        "cost_b": b["cost_paid"], "right": np.where(right_a, "A", "B"),
    })[right_a != right_b]  # fmt: skip
    by_size = changed.assign(size=(changed["cost_a"] - changed["cost_b"]).abs()).sort_values(
        ["size", "path"], ascending=[False, True]
    )
    return Comparison(
        len(a), confidence, differences, only_a, only_b,
        float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        [{str(k): v for k, v in row.items()} for row in by_size.drop(columns="size").to_dict("records")],
    )  # fmt: skip


def cost_test(a: pd.DataFrame, b: pd.DataFrame, seed: int = 0) -> tuple[float, float]:
    """Mean cost of B minus that of A, and the p-value of `paired_test`; the tables are as for `compare_predictions`."""
    b = _aligned(a, b)
    weights = a["weight"].to_numpy()
    differences = weights * (b["cost_paid"].to_numpy() - a["cost_paid"].to_numpy())
    by_unit = by_group(sparse.csr_matrix(differences[:, None]), group_indices(list(a["group"])))
    return float(differences.sum() / weights.sum()), paired_test(by_unit.toarray().ravel(), seed)


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


def paired_test(differences: Floats, seed: int = 0) -> float:
    """Two-sided p-value of the hypothesis that (G,) paired differences are symmetric about 0, by sign flips.

    Fisher 1935. The level is exact if A and B are exchangeable.
    """
    differences = differences[differences != 0]
    n = len(differences)
    if n < 2:
        return 1.0
    result = permutation_test(
        (differences,), np.sum, permutation_type="samples", vectorized=True, rng=seed, batch=max(1, _BATCH // n),
        n_resamples=_FLIPS if n <= _MANY else _FLIPS_OF_MANY,
    )  # fmt: skip
    return float(result.pvalue)
