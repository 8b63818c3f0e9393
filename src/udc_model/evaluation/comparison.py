"""Two sets of decisions about the same images: which is cheaper, by how much, and how sure that is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import binomtest

from udc_model.data.packed import group_indices
from udc_model.errors import UdcError
from udc_model.evaluation.intervals import bca_intervals, by_group

Floats = NDArray[np.float64]
_FLIPS = 9999  # random sign changes behind the paired test
_SHOWN = 10  # images of each kind in the text


@dataclass(frozen=True)
class Difference:
    """One metric of A and B, ``b - a`` with its interval, and the p-value of the paired test (None where there is
    none)."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare_predictions` found; ``changed`` has a row for each image that is right on one side only."""

    images: int
    confidence: float
    differences: list[Difference]
    only_a_right: int
    only_b_right: int
    mcnemar_p: float
    changed: list[dict[str, Any]]

    @property
    def sentence(self) -> str:
        """The answer."""
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
        """All of it, for JSON."""
        return {"answer": self.sentence} | asdict(self)

    def to_text(self) -> str:
        """The answer, a table, McNemar's test and the first images that changed sides."""
        lines = [
            self.sentence + ".",
            "",
            f"{'metric':<15}{'A':>9}{'B':>9}{'B - A':>9}   {self.confidence:.0%} interval",
        ]
        for row in self.differences:
            p = "" if row.p_value is None else f"   p = {row.p_value:.4f} (paired sign flips)"
            interval = f"{row.low:.4f} to {row.high:.4f}"
            lines.append(f"{row.metric:<15}{row.a:>9.4f}{row.b:>9.4f}{row.difference:>9.4f}   {interval:<18}{p}")
        lines += ["", f"McNemar (accuracy alone): {self.only_a_right} of {self.images} images only A decides right, "
                      f"{self.only_b_right} only B; p = {self.mcnemar_p:.4f}"]  # fmt: skip
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
    """Compare two predictions tables of the same images, paired by image; groups are resampled whole.

    Accuracy is here the share of all images that is decided right; a referred one is not.

    The paired test of the cost flips the sign of each group's difference at random: its level is exact where A and B
    are exchangeable. McNemar's (1947) exact test compares error rates only.

    Raises
    ------
    UdcError
        The tables are of other images, other labels, or other prices.
    """
    b = _aligned(a, b)
    weights = a["weight"].to_numpy()
    groups = group_indices(list(a["group"]))
    right_a, right_b = ((t["true"] == t["predicted"]).to_numpy() for t in (a, b))
    pairs = {
        "mean_cost": (a["cost"].to_numpy(), b["cost"].to_numpy()),
        "accuracy": (right_a.astype(float), right_b.astype(float)),
    }
    columns = [weights * (own_b - own_a) for own_a, own_b in pairs.values()]
    features = by_group(sparse.csr_matrix(np.column_stack([*columns, weights])), groups)

    def statistic(sums: Floats) -> dict[str, Floats]:
        return {name: sums[i] / sums[-1] for i, name in enumerate(pairs)}

    intervals = bca_intervals(features, statistic, resamples, confidence, seed)
    p_value = paired_test(features[:, 0].toarray().ravel(), seed)
    differences = []
    for i, (name, (own_a, own_b)) in enumerate(pairs.items()):
        mean_a, mean_b = (float(np.average(own, weights=weights)) for own in (own_a, own_b))
        p = p_value if i == 0 else None
        differences.append(Difference(name, mean_a, mean_b, mean_b - mean_a, *intervals[name], p))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    changed = pd.DataFrame({
        "path": a["path"], "true": a["true"], "a": a["predicted"], "b": b["predicted"], "cost_a": a["cost"],
        "cost_b": b["cost"], "right": np.where(right_a, "A", "B"),
    })[right_a != right_b]  # fmt: skip
    dearest = changed.assign(size=(changed["cost_a"] - changed["cost_b"]).abs()).sort_values(
        ["size", "path"], ascending=[False, True]
    )
    return Comparison(
        len(a), confidence, differences, only_a, only_b,
        float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        [{str(k): v for k, v in row.items()} for row in dearest.drop(columns="size").to_dict("records")],
    )  # fmt: skip


def _aligned(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """B in the order of A; :class:`UdcError` unless both are of the same images, labels, prices and weights."""
    if a["path"].duplicated().any() or b["path"].duplicated().any():
        raise UdcError("a table names an image twice; both must be the predictions.csv of one split")
    only_a, only_b = sorted(set(a["path"]) - set(b["path"])), sorted(set(b["path"]) - set(a["path"]))
    if only_a or only_b:
        shown = ", ".join((only_a + only_b)[:5])
        raise UdcError(f"the tables are not of the same images: {len(only_a)} are in A only, {len(only_b)} in B only "
                       f"({shown}, …)")  # fmt: skip
    b = b.set_index("path").loc[a["path"]].reset_index()
    for column, what in (("sha256", "the same name but other contents"), ("true", "another true class")):
        differs = (a[column].to_numpy() != b[column].to_numpy()).nonzero()[0]
        if len(differs):
            raise UdcError(f"the tables are not of the same images: {len(differs)} have {what} "
                           f"({', '.join(a['path'].iloc[differs[:5]])}, …)")  # fmt: skip
    if not np.allclose(a["weight"], b["weight"]):
        raise UdcError("the tables count the images differently (costs.prior); decide one of them again with the prior "
                       "of the other (udc decide)")  # fmt: skip
    prices = pd.concat([a, b]).groupby(["true", "predicted"])["cost"].agg(["min", "max"])
    apart = prices[~np.isclose(prices["min"], prices["max"])]
    if len(apart):
        first = apart.reset_index().iloc[0]
        raise UdcError(
            f"the tables have other prices: {first['true']} decided as {first['predicted']} costs {first['min']:g} in "
            f"one and {first['max']:g} in the other; decide one of them again with the prices of the other (udc decide)"
        )
    return b


def paired_test(differences: Floats, seed: int = 0) -> float:
    """Two-sided p-value that (G,) paired differences are symmetric about 0, by random sign flips (Fisher 1935)."""
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    rng = np.random.default_rng(seed)
    observed = abs(differences.sum()) * (1 - 1e-12)  # equal sums in another order are no larger
    larger = 0
    for start in range(0, _FLIPS, 1000):
        signs = rng.integers(0, 2, (min(1000, _FLIPS - start), len(differences))) * 2 - 1
        larger += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + larger) / (1 + _FLIPS)
