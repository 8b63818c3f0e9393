"""Guarantees of decisions from the calibration split: floors of recall, and a ceiling of the mean cost.

Each decision of a fixed family is tested in a fixed order, until one cannot be proved; the last proved one is taken
(Learn then Test, Angelopoulos et al. 2021, arXiv:2110.01052; for one floor, whose recall never falls along the order,
also Bates et al. 2021, arXiv:2101.02703). The result violates the guarantee with a probability of at most
1 - confidence, whatever the model and the distribution of the images, if no group is larger than the largest of the
calibration split. The unit is the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, logsumexp

from udc_model.decisions.actions import ActionCosts, with_actions
from udc_model.decisions.decision import decide, expected_costs, with_surcharge
from udc_model.decisions.stored_policy import LARGEST_STORED_COST
from udc_model.errors import UdcError

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]
# Stakes of the betting test, as shares of the largest possible, and how much each counts.
_STAKES = np.array([1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32])
_SHARES = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
_SURCHARGES = np.append(np.geomspace(1e5, 1e-4, 91), 0.0)  # tried for several floors, in units of the largest cost
_THRESHOLDS = np.append(
    0.0, np.geomspace(1e-3, 1.0, 61)
)  # tried for a ceiling, from the cost of referral to the largest
_MOST_GROUPS = 10**7  # in a message


@dataclass(frozen=True)
class Floor:
    """A recall of ``floor`` of some classes: of their images, the share that is decided as any of them."""

    classes: tuple[int, ...]
    floor: float
    confidence: float
    name: str


@dataclass(frozen=True)
class Sample:
    """The calibration split: probabilities (N, K), targets (N,), and group indices (N,) or None."""

    probabilities: Floats
    targets: Indices
    groups: Indices | None = None

    def by_group(self, values: Floats, chosen: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """Sums (G,) by group of values of the chosen images; the values if each image is its own group."""
        if self.groups is None:
            return values
        return np.asarray(np.bincount(self._index[chosen], values, self._index.max() + 1), dtype=np.float64)

    @cached_property
    def _index(self) -> NDArray[np.intp]:
        assert self.groups is not None
        return np.asarray(np.unique(self.groups, return_inverse=True)[1])


def betting_p_value(excess: Floats, largest: float) -> float:
    """P-value of the hypothesis that the mean of (G,) independent values of at most ``largest`` is 0 or more.

    A player who stakes a share of the wealth against each value, ``1 - stake * excess / largest``, gains nothing on
    average if the hypothesis holds. The wealth of several players with fixed stakes reaches M with a probability of at
    most 1 / M (Markov; Waudby-Smith and Ramdas 2024).
    """
    if largest <= 0:
        return 0.0
    return float(min(1.0, np.exp(-logsumexp(_log_money(excess, largest), b=_SHARES))))


def _log_money(excess: Floats, largest: float) -> Floats:
    """Logarithm of the wealth of each player, (S,)."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-_STAKES[:, None] * (excess / largest)).sum(axis=1))


def recall_p_value(hits: Floats, positives: Floats, floor: float) -> float:
    """P-value of the hypothesis that a recall is below ``floor``, of (G,) hits among positives of each group.

    Exact (binomial, as Clopper and Pearson 1934) if no group has two positives, otherwise by `betting_p_value`.
    """
    if positives.max(initial=0) <= 1:
        right, n = hits.sum(), positives.sum()
        return float(betainc(right, n - right + 1, floor)) if right else 1.0
    excess = positives - hits - (1 - floor) * positives
    return betting_p_value(excess, floor * float(positives.max()))


def cost_p_value(costs: Floats, sizes: Floats, ceiling: float, highest: float) -> float:
    """P-value of the hypothesis that a mean cost is above ``ceiling``, of (G,) sums of costs and sizes of groups.

    Parameters
    ----------
    highest : the highest cost of an image.
    """
    return betting_p_value(costs - ceiling * sizes, (highest - ceiling) * float(sizes.max(initial=0)))


def recall_surcharge(sample: Sample, costs: Floats, floors: Sequence[Floor]) -> float:
    """The surcharge on deciding images of the floors' classes as other classes, for which all floors are proved.

    Of all decisions with a fixed recall, the one of least expected cost minimises the expected cost under a matrix with
    a surcharge on missing the class (Lagrange multiplier). A larger one never lowers the recall of a single floor, so
    the smallest proved one is an order statistic of the samples' smallest surcharges. Several floors have one common
    surcharge, and compete for images: they are tested together, from the largest surcharge down.

    Parameters
    ----------
    costs : (K, D), rows true.

    Raises
    ------
    UdcError
        There are too few groups to prove a floor, or the model cannot reach it.
    """
    for floor in floors:
        check_floor(sample.by_group(*_positives(sample, floor)), floor, sample.groups is not None)
    return _single_floor(sample, costs, floors[0]) if len(floors) == 1 else _several_floors(sample, costs, floors)


def _positives(sample: Sample, floor: Floor) -> tuple[Floats, NDArray[np.bool_]]:
    is_positive = np.isin(sample.targets, floor.classes)
    return np.ones(int(is_positive.sum())), is_positive


def _single_floor(sample: Sample, costs: Floats, floor: Floor) -> float:
    ones, is_positive = _positives(sample, floor)
    p, classes = sample.probabilities[is_positive], list(floor.classes)
    expected = expected_costs(p, costs)
    gap = expected[:, classes].min(axis=1) - np.delete(expected, classes, axis=1).min(axis=1)
    with np.errstate(divide="ignore"):
        # slightly above the tie, at which the first decision is taken
        smallest = np.where(gap < 0, 0.0, gap / p[:, classes].sum(axis=1) * (1 + 1e-9) + 1e-12)
    positives, candidates = sample.by_group(ones, is_positive), np.sort(smallest)

    def is_proved(count: int) -> bool:
        hits = sample.by_group((smallest <= candidates[count]).astype(float), is_positive)
        return recall_p_value(hits, positives, floor.floor) <= 1 - floor.confidence + 1e-12

    low, high = 0, len(candidates) - 1  # all right is proved, see check_floor
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_proved(middle) else (middle + 1, high)
    surcharge = float(candidates[low])
    if not surcharge <= LARGEST_STORED_COST:  # infinite, or not a number, if a probability is 0
        raise UdcError(
            f"evaluate.recall_floor: the model gives some images of {floor.name} a probability of {floor.name} so "
            f"close to 0 that no surcharge up to {LARGEST_STORED_COST:g} reaches the floor; set evaluate.calibration, "
            "or train longer"
        )
    return surcharge


def _several_floors(sample: Sample, costs: Floats, floors: Sequence[Floor]) -> float:
    scale = float(np.abs(costs).max()) or 1.0
    of_any = np.isin(sample.targets, [k for floor in floors for k in floor.classes])
    p, targets = sample.probabilities[of_any], sample.targets[of_any]
    groups = None if sample.groups is None else sample.groups[of_any]
    tests = [_FloorTest(Sample(p, targets, groups), floor, costs.shape[1]) for floor in floors]
    base = expected_costs(p, costs)
    added = expected_costs(p, with_surcharges(np.zeros_like(costs), floors, 1.0))
    proved = None
    for surcharge in _SURCHARGES * scale:
        decided = (base + surcharge * added).argmin(axis=1)
        failed = [test.floor for test in tests if not test.is_proved(decided)]
        if failed and proved is None:
            names = " and of ".join(f"{floor.name} ({floor.floor:g})" for floor in failed)
            raise UdcError(f"evaluate.recall_floor: the recall of {names} cannot be proved together with the other "
                           "floors, because the model confuses their classes; lower a floor, or state one floor for "
                           "all these classes")  # fmt: skip
        if failed:
            break
        proved = surcharge
    assert proved is not None
    return float(proved)


class _FloorTest:
    """The test of one floor for many decisions of the same images."""

    def __init__(self, sample: Sample, floor: Floor, outcomes: int) -> None:
        self.sample, self.floor = sample, floor
        ones, self.is_positive = _positives(sample, floor)
        self.positives = sample.by_group(ones, self.is_positive)
        self.is_hit = np.isin(np.arange(outcomes), floor.classes).astype(float)

    def is_proved(self, decided: Indices) -> bool:
        hits = self.sample.by_group(self.is_hit[decided[self.is_positive]], self.is_positive)
        return recall_p_value(hits, self.positives, self.floor.floor) <= 1 - self.floor.confidence + 1e-12


def with_surcharges(costs: Floats, floors: Sequence[Floor], surcharge: float) -> Floats:
    """The cost matrix (K, D) with the surcharge of each floor on deciding its classes as any other."""
    for floor in floors:
        costs = with_surcharge(costs, floor.classes, surcharge)
    return costs


def referral_threshold(
    sample: Sample, class_costs: Floats, refer: float, actions: ActionCosts, ceiling: float, confidence: float
) -> float:
    """The largest expected cost at which an image is still decided, for which the mean cost is at most ``ceiling``.

    The order begins with the decision of least expected cost, which refers an image if all else costs more than
    referral, and refers fewer images with each step. The other actions keep their costs.

    Parameters
    ----------
    class_costs : (K, K), rows true.
    refer, actions : cost of referral, and costs of the other actions.

    Raises
    ------
    UdcError
        The ceiling is not proved for the decision of least expected cost.
    """
    costs = with_actions(class_costs, refer, actions)
    highest = float(costs.max())
    sizes = sample.by_group(np.ones(len(sample.targets)))
    check_ceiling(sizes, ceiling, confidence, float(costs.min()), highest, sample.groups is not None)
    proved = None
    for threshold in refer + _THRESHOLDS * max(highest - refer, 0.0):
        decided = decide(sample.probabilities, with_actions(class_costs, threshold, actions), "min_expected_cost")
        paid = sample.by_group(costs[sample.targets, decided])
        if cost_p_value(paid, sizes, ceiling, highest) > 1 - confidence + 1e-12:
            if proved is None:
                raise UdcError(_unproved_ceiling(paid, sizes, ceiling, confidence, highest, sample.groups is not None))
            break
        proved = threshold
    assert proved is not None
    return float(proved)


def _unproved_ceiling(
    paid: Floats, sizes: Floats, ceiling: float, confidence: float, highest: float, has_groups: bool
) -> str:
    mean, units = paid.sum() / sizes.sum(), "groups" if has_groups else "images"
    needed = _units_needed(paid - ceiling * sizes, (highest - ceiling) * float(sizes.max()), confidence)
    more = f"about {needed:,} {units} like these would" if needed and mean < ceiling else "raise the ceiling"
    return (f"evaluate.cost_ceiling: a mean cost of at most {ceiling:g} at confidence {confidence:g} is not proved: "
            f"the {len(sizes):,} {units} of the calibration split cost {mean:.4g} per image with the decisions of "
            f"least expected cost; {more}")  # fmt: skip


def check_floor(positives: Floats, floor: Floor, has_groups: bool) -> None:
    """Raise :class:`UdcError` if a floor could not be proved even with every image of (G,) positives decided right."""
    positives = positives[positives > 0]
    if len(positives) and recall_p_value(positives, positives, floor.floor) <= 1 - floor.confidence + 1e-12:
        return
    n, units = len(positives), "groups with its images" if has_groups else "of its images"
    if positives.max(initial=0) <= 1:
        needed = positives_needed(floor.floor, floor.confidence)
    else:
        excess = -(1 - floor.floor) * positives
        needed = _units_needed(excess, floor.floor * float(positives.max()), floor.confidence)
    raise UdcError(
        f"evaluate.recall_floor: a recall of {floor.floor:g} of {floor.name} at confidence {floor.confidence:g} needs "
        f"at least {needed} {units} in the calibration split, which has {n}: {needed - n} more are needed. Raise "
        "data.splits.calibration, or lower the floor or the confidence"
    )


def check_ceiling(
    sizes: Floats, ceiling: float, confidence: float, lowest: float, highest: float, has_groups: bool
) -> None:
    """Raise :class:`UdcError` if a ceiling could not be proved even if all groups of (G,) sizes cost the lowest."""
    if ceiling <= lowest:
        raise UdcError(f"evaluate.cost_ceiling.ceiling: is {ceiling:g}, but the cheapest decision costs {lowest:g}")
    if len(sizes) and cost_p_value(lowest * sizes, sizes, ceiling, highest) <= 1 - confidence + 1e-12:
        return
    n, units = len(sizes), "groups" if has_groups else "images"
    shown = sizes if n else np.ones(1)
    needed = _units_needed((lowest - ceiling) * shown, (highest - ceiling) * float(shown.max()), confidence)
    raise UdcError(
        f"evaluate.cost_ceiling: a mean cost of at most {ceiling:g} at confidence {confidence:g} needs at least "
        f"{needed} {units} in the calibration split, which has {n}: {needed - n} more are needed, if an image can "
        f"cost {highest:g}. Raise data.splits.calibration, the ceiling, or lower the confidence"
    )


def _units_needed(excess: Floats, largest: float, confidence: float) -> int:
    """The smallest number of groups, like (G,) those seen, for which `betting_p_value` reaches 1 - confidence; or 0."""
    per_group = _log_money(excess, largest) / len(excess)
    if per_group.max() <= 0:
        return 0
    needed = 1
    while needed < _MOST_GROUPS and logsumexp(per_group * needed, b=_SHARES) < -np.log(1 - confidence):
        needed = max(needed + 1, int(needed * 1.001))
    return needed


def positives_needed(floor: float, confidence: float) -> int:
    """The smallest number of samples that, all decided right, prove a recall of ``floor``: 59 for 95% at 95%."""
    return int(np.ceil(np.log(1 - confidence) / np.log(floor) - 1e-9))
