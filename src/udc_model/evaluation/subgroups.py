"""Cost, recall and calibration by subgroup of the images, with intervals that hold for all subgroups together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.data.sources.records import printable
from udc_model.evaluation.curves import mean_mistake_costs
from udc_model.evaluation.evidence import costly_mistakes
from udc_model.evaluation.intervals import (
    difference_draws,
    interval_of,
    least_p_value,
    mean_draws,
    needed_draws,
    share_interval,
    sum_by_group,
    two_sided_p_value,
)
from udc_model.evaluation.metrics import Scored, escape_class
from udc_model.evaluation.paired_test import holm
from udc_model.evaluation.verdict import cost_text

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
SUBGROUPS = "subgroups.csv"


@dataclass(frozen=True)
class Subgroup:
    """The images of one subgroup: ``division`` is the column or pattern, ``name`` its value.

    Attributes
    ----------
    images : (N,) whether an image is in the subgroup.
    others : (N,) whether an image is in another subgroup of the same division.
    """

    division: str
    name: str
    images: Mask
    others: Mask

    @property
    def partition(self) -> frozenset[bytes]:
        """What its comparison with the others compares; the two subgroups of a division of two have the same."""
        return frozenset((self.images.tobytes(), self.others.tobytes()))


def subgroup_table(
    scored: Scored, subgroups: Mapping[str, Sequence[str]], recall_of: Sequence[tuple[int, str]],
    classes: Sequence[str], confidence: float,
) -> pd.DataFrame:  # fmt: skip
    """One row for each subgroup of each division, the highest mean cost first.

    The intervals of a column hold for all subgroups together (Bonferroni). The p-values compare the mean cost of a
    subgroup with that of the other images of its division; they are adjusted for the number of comparisons by Holm
    (1979). The unit is the group.

    Parameters
    ----------
    subgroups : (N,) subgroup of each image by division, ``""`` for none.
    recall_of : index and name of the classes whose recall is reported; if there are none, that of the class whose
        mistakes cost most, unless several classes do.
    confidence : level of the intervals.

    Returns
    -------
    Columns ``division``, ``subgroup``, ``images``, ``groups``, ``costly_mistakes``; ``mean_cost``, ``right`` (share
    decided right), ``calibration_gap`` (mean confidence minus accuracy of the most probable class) and
    ``recall/CLASS``, each with ``_low`` and ``_high``; ``cost_of_others``, ``difference`` (NaN without other images),
    its ``p_value`` (NaN too if there are so many comparisons that none could be below the level) and ``comparisons``,
    their number.
    """
    found = _subgroups(subgroups)
    level = 1 - (1 - confidence) / max(len(found), 1)
    reported = recall_of or _costliest(scored.outcome_costs, classes)
    comparisons: dict[frozenset[bytes], list[int]] = {}
    for i, each in enumerate(found):
        if each.others.any():
            comparisons.setdefault(each.partition, []).append(i)
    needed = (1 - confidence) / max(len(comparisons), 1)  # of the smallest p-value, to be below the level by Holm
    rows: list[dict[str, Any]] = [
        _figures(scored, each, reported, level) | _comparison(scored, each, level, needed) for each in found
    ]
    table = pd.DataFrame(rows)
    first = np.array([rows[places[0]]["p_value"] for places in comparisons.values()])
    adjusted = np.where(np.isnan(first), np.nan, holm(np.nan_to_num(first, nan=1.0).tolist()))
    for places, p_value in zip(comparisons.values(), adjusted.tolist(), strict=True):
        table.loc[places, "p_value"] = p_value
    table["comparisons"] = len(comparisons)
    return table.sort_values(["mean_cost", "division", "subgroup"], ascending=[False, True, True], ignore_index=True)


def _costliest(costs: Floats, classes: Sequence[str]) -> list[tuple[int, str]]:
    """Index and name of the class whose mistakes cost most; empty if several classes do."""
    means = mean_mistake_costs(costs)
    highest = np.flatnonzero(np.isclose(means, means.max()))
    return [(k, classes[k]) for k in highest.tolist()] if len(highest) == 1 else []


def _subgroups(subgroups: Mapping[str, Sequence[str]]) -> list[Subgroup]:
    found = []
    for division, values in subgroups.items():
        names = np.array(values, dtype=object)
        for name in sorted(set(values) - {""}):
            images = np.asarray(names == name, dtype=bool)
            found.append(Subgroup(division, name, images, np.asarray((names != "") & ~images, dtype=bool)))
    return found


def _figures(scored: Scored, subgroup: Subgroup, recall_of: Sequence[tuple[int, str]], level: float) -> dict[str, Any]:
    is_in = subgroup.images
    groups = None if scored.groups is None else scored.groups[is_in]
    weights, paid = scored.image_weights[is_in], scored.cost_paid[is_in]
    right = scored.decided[is_in] == scored.targets[is_in]
    p = scored.probabilities[is_in]
    gap = p.max(axis=1) - (p.argmax(axis=1) == scored.targets[is_in])
    figures: dict[str, Any] = {
        "division": subgroup.division,
        "subgroup": subgroup.name,
        "images": int(is_in.sum()),
        "groups": int(is_in.sum()) if groups is None else len(np.unique(groups)),
        "costly_mistakes": int(costly_mistakes(scored)[is_in].sum()),
    }
    means = {"mean_cost": (paid, (float(scored.outcome_costs.min()), float(scored.outcome_costs.max()))),
             "calibration_gap": (gap, (1 / scored.num_classes - 1, 1.0))}  # fmt: skip
    for name, (values, bounds) in means.items():
        draws = mean_draws(sum_by_group(weights * values, groups), sum_by_group(weights, groups), *bounds,
                           draws=needed_draws(level))  # fmt: skip
        figures |= _with_interval(name, float(np.average(values, weights=weights)), interval_of(draws, level))
    figures |= _share("right", right, groups, level)
    for k, name in recall_of:
        is_class = scored.targets[is_in] == k
        of_class = None if groups is None else groups[is_class]
        figures |= _share(f"recall/{escape_class(name)}", right[is_class], of_class, level)
    return figures


def _share(name: str, is_hit: Mask, groups: NDArray[np.integer] | None, level: float) -> dict[str, float]:
    """A share with its interval; NaN without images."""
    if not len(is_hit):
        return _with_interval(name, float("nan"), (float("nan"), float("nan")))
    return _with_interval(name, float(is_hit.mean()), share_interval(is_hit, groups, level))


def _with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _comparison(scored: Scored, subgroup: Subgroup, level: float, needed: float) -> dict[str, float]:
    """Mean cost of the other images, the difference to it, and the p-value of equal expected costs, not adjusted.

    Parameters
    ----------
    level : of one of all intervals.
    needed : the p-value is NaN if none of at most this is possible.
    """
    if not subgroup.others.any():
        return dict.fromkeys(("cost_of_others", "difference", "p_value"), float("nan"))
    weights, paid = scored.image_weights, scored.cost_paid
    here, others = (
        (sum_by_group(weights * paid * mask, scored.groups), sum_by_group(weights * mask, scored.groups))
        for mask in (subgroup.images, subgroup.others)
    )
    bounds = float(scored.outcome_costs.min()), float(scored.outcome_costs.max())
    draws = difference_draws((here[0], others[0]), (here[1], others[1]), *bounds, draws=needed_draws(level))
    p_value = two_sided_p_value(draws) if least_p_value(draws) <= needed else float("nan")
    cost = float(others[0].sum() / others[1].sum())
    return {"cost_of_others": cost, "difference": float(here[0].sum() / here[1].sum()) - cost, "p_value": p_value}


def subgroup_sentences(table: pd.DataFrame, confidence: float) -> list[str]:
    """What is shown about the costs of subgroups at the level ``1 - confidence``, one sentence each, without full stop.

    A subgroup is said to cost more or less than the others only if the test shows it.
    """
    shown = table[table["p_value"] <= 1 - confidence + 1e-12]
    sentences = []
    for row in shown.to_dict("records"):
        comparisons = row["comparisons"]
        corrected = f", corrected for {comparisons} comparisons" if comparisons > 1 else ""
        more = "more" if row["difference"] > 0 else "less"
        name, cost, others = f"{row['division']} {row['subgroup']}", row["mean_cost"], row["cost_of_others"]
        sentences.append(f"{printable(name)} costs {more} than the rest: {cost_text(cost)} against {cost_text(others)} "
                         f"per image (p = {row['p_value']:.2g}{corrected})")  # fmt: skip
    tested = table["p_value"].dropna()
    if not sentences and len(tested):
        sentences = [f"no subgroup is shown to differ in cost from the rest (smallest p = {tested.min():.2g})"]
    untested = table["p_value"].isna() & table["difference"].notna()
    if untested.any():
        sentences.append(f"the costs of {untested.sum()} subgroups are not compared with the rest: of so many, no "
                         "difference could be shown; use columns with fewer values in data.subgroups")  # fmt: skip
    return sentences or ["no subgroup can be compared: each column has one value in this split"]


def read_sentences(folder: Path, confidence: float) -> list[str]:
    """`subgroup_sentences` of an evaluated split; none if its data has no subgroups."""
    path = folder / SUBGROUPS
    return subgroup_sentences(read_subgroup_table(path), confidence) if path.is_file() else []


def read_subgroup_table(path: Path) -> pd.DataFrame:
    """The contents of a file with the table of `subgroup_table`; a subgroup may have a name like ``NA``."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    numbers = [column for column in table if column not in ("division", "subgroup")]
    return table.assign(**{str(column): pd.to_numeric(table[column]) for column in numbers})
