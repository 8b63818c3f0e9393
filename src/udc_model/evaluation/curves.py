"""The tables behind the figures: ROC, precision-recall, reliability, cost curve, cost against referral rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.decisions.actions import REFER
from udc_model.decisions.decision import expected_costs, shift_prior
from udc_model.decisions.policy import Policy
from udc_model.evaluation.intervals import by_group, resample, share_interval
from udc_model.evaluation.metric_bounds import LargestGroup
from udc_model.evaluation.metrics import Scored, class_areas, equal_mass_bins
from udc_model.evaluation.score_sums import ScoreSums

Floats = NDArray[np.float64]
Decide = Callable[[float, Floats], NDArray[np.intp]]  # from the odds of the costliest class and the class frequencies
_GRID = np.linspace(0, 1, 201)


def class_curves(scored: Scored, classes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """ROC and precision-recall curve of each class against the rest, over all distinct probabilities.

    Points on a straight line between their neighbours are left out: there are at most about two per image of the class,
    not one per image of the split.

    Returns
    -------
    Two tables: ``class, false_positive_rate, true_positive_rate``, from (0, 0); ``class, recall, precision``, to recall
    0 with precision 1.
    """
    roc, pr = list[tuple[Floats, Floats]](), list[tuple[Floats, Floats]]()
    for bins in scored.score_sums:
        used = bins[bins.sum(axis=1) > 0]
        false, true = used[::-1].cumsum(axis=0).T
        run, rise = np.diff(false, prepend=0), np.diff(true, prepend=0)
        bends = np.concatenate([[True], run[:-1] * rise[1:] != run[1:] * rise[:-1], [True]])
        fpr, tpr = (np.concatenate([[0.0], x])[bends] / x[-1] for x in (false, true))
        roc.append((fpr, tpr))
        ends = np.ones(len(true), dtype=bool)  # first and last point of each recall
        ends[1:-1] = (np.diff(true)[:-1] != 0) | (np.diff(true)[1:] != 0)
        recall, precision = (np.concatenate([x[ends][::-1], [end]]) for x, end in ((true / true[-1], 0.0),
                             (true / (true + false), 1.0)))  # fmt: skip
        pr.append((recall, precision))
    return (_curve_table(classes, ("false_positive_rate", "true_positive_rate"), roc),
            _curve_table(classes, ("recall", "precision"), pr))  # fmt: skip


def _curve_table(classes: list[str], axes: tuple[str, str], curves: list[tuple[Floats, Floats]]) -> pd.DataFrame:
    """One table of the curves of all classes; a table of each class would take longer than the curves."""
    names = np.repeat(np.array(classes, dtype=object), [len(x) for x, _ in curves])
    columns = (np.concatenate(values) for values in zip(*curves, strict=True))
    return pd.DataFrame({"class": names} | dict(zip(axes, columns, strict=True)))


def mean_curves(
    scored: Scored, classes: list[str], resamples: int, confidence: float, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Mean ROC and precision-recall curves over classes with pointwise bootstrap bands, and the areas of each class.

    Returns
    -------
    Three tables: ``false_positive_rate, true_positive_rate, low, high``; ``recall, precision, low, high`` (precision is
    the highest at this recall or more); ``class, roc_auc, roc_auc_low, roc_auc_high, average_precision, …``. The
    intervals of the areas allow for an unseen group, as those of `metric_intervals`; the bands do not.
    """
    scores = ScoreSums.of(scored)
    positives = np.array([scored.image_weights[scored.targets == y].sum() for y in range(len(classes))])
    influence = LargestGroup.of(scored).of_class / positives

    def statistic(sums: Floats, unseen: Floats) -> dict[str, Floats]:
        tpr, precision = scores.mean_curves(sums, _GRID)
        seen = 1 / (1 + unseen[:, None] * influence)  # of the images, if an unseen group is added
        values = {"tpr": tpr, "precision": precision}
        for name, area in zip(("roc_auc", "average_precision"), scores.areas(sums), strict=True):
            values |= {name: area.T, f"{name}_low": area.T * seen, f"{name}_high": area.T * seen + 1 - seen}
        return values

    features = by_group(scores.terms.table(len(scored.targets)), scored.groups)
    resampled = resample(features, statistic, resamples, seed)
    binned = statistic(np.asarray(features.sum(axis=0)).reshape(-1, 1), np.zeros(1))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    band = {name: np.nanquantile(resampled[name], tails, axis=0) for name in ("tpr", "precision")}
    roc = {"false_positive_rate": _GRID, "true_positive_rate": binned["tpr"][0]}
    pr = {"recall": _GRID, "precision": binned["precision"][0]}
    table: dict[str, object] = {"class": classes}
    for name, exact in zip(("roc_auc", "average_precision"), class_areas(scored), strict=True):
        shift = exact - binned[name][0]
        low, high = (np.nanquantile(resampled[f"{name}_{end}"], tail, axis=0) + shift
                     for end, tail in zip(("low", "high"), tails, strict=True))  # fmt: skip
        table |= {name: exact, f"{name}_low": np.maximum(low, 0.0), f"{name}_high": np.minimum(high, 1.0)}
    return (
        pd.DataFrame(roc | {"low": band["tpr"][0], "high": band["tpr"][1]}),
        pd.DataFrame(pr | {"low": band["precision"][0], "high": band["precision"][1]}),
        pd.DataFrame(table),
    )


def reliability(scored: Scored, before: Floats, bins: int, confidence: float) -> pd.DataFrame:
    """Confidence and accuracy in bins of equally many images, before and after calibration.

    Before calibration the images count as in the split. Those after it have the weights of ``scored``, since their
    probabilities are for the class frequencies of deployment.

    Parameters
    ----------
    before : (N, K) probabilities before calibration, for the frequencies of the split.

    Returns
    -------
    Columns ``calibration`` (before, after), ``confidence``, ``accuracy``, ``low``, ``high`` (interval by groups),
    ``images`` and ``weight``, their sum of weights.
    """
    return pd.concat([
        _reliability(replace(scored, probabilities=before, weights=None), bins, confidence, "before"),
        _reliability(scored, bins, confidence, "after"),
    ], ignore_index=True)  # fmt: skip


def _reliability(scored: Scored, bins: int, confidence: float, name: str) -> pd.DataFrame:
    """The rows of `reliability` for the probabilities of ``scored``."""
    rows = []
    is_right = scored.probabilities.argmax(axis=1) == scored.targets
    top = scored.probabilities.max(axis=1)
    for part in equal_mass_bins(top, bins):
        groups = None if scored.groups is None else scored.groups[part]
        weights = None if scored.weights is None else scored.weights[part]
        means = (np.average(values[part], weights=weights) for values in (top, is_right))
        ends = share_interval(is_right[part], groups, confidence, weights)
        rows.append((name, *means, *ends, len(part), scored.image_weights[part].sum()))
    return pd.DataFrame(rows, columns=["calibration", "confidence", "accuracy", "low", "high", "images", "weight"])


def costliest_class(costs: Floats) -> int:
    """The class with the highest mean cost of its mistakes, of a cost matrix (K, D)."""
    return int(mean_mistake_costs(costs).argmax())


def mean_mistake_costs(costs: Floats) -> Floats:
    """Mean cost (K,) of the mistakes of each class, of a cost matrix (K, D)."""
    k = len(costs)
    return np.asarray((costs[:, :k].sum(axis=1) - np.diag(costs)) / (k - 1))


def cost_curve(scored: Scored, policy: Policy, familiarity: NDArray[np.floating] | None = None) -> pd.DataFrame | None:
    """Normalised expected cost by class frequency (Drummond and Holte 2006), generalised to K classes.

    The frequency pi_d of the costliest class d varies; the other classes keep their proportions. The axis ``x`` is the
    costliest class's share of the cost at stake, ``pi_d c_d / sum_y pi_y c_y``, with c the mean cost of a class's
    mistakes. Costs are divided by that sum, the cost of deciding all images wrong. With two classes both axes are those
    of the paper.

    Parameters
    ----------
    familiarity : (N,) of the images; None if the policy decides by the probabilities alone.

    Returns
    -------
    Columns ``x``, ``policy`` (decides anew for each frequency), ``fixed_decisions``, ``argmax``, ``best_constant`` and
    ``costliest_class`` (its name). None if the mistakes of fewer than two classes have a cost.
    """
    mistake_costs, costliest = mean_mistake_costs(scored.outcome_costs), costliest_class(scored.outcome_costs)
    shares = np.bincount(scored.targets, minlength=len(mistake_costs)) / len(scored.targets)
    others = np.where(np.arange(len(mistake_costs)) == costliest, 0.0, shares)
    others /= others.sum()
    if mistake_costs[costliest] <= 0 or others @ mistake_costs <= 0:
        return None
    current_prior = shares if policy.deployment_prior is None else np.array(policy.deployment_prior)
    costs_of_image = scored.outcome_costs[scored.targets]
    rows = np.arange(len(costs_of_image))
    argmax = scored.probabilities.argmax(axis=1)
    if policy.decision == "min_expected_cost":
        decide = _decisions_by_odds(scored, others / current_prior, 1 / current_prior[costliest], costliest)
    else:
        decide = _decisions_by_prior(scored, policy, current_prior)
    points = []
    for x in np.linspace(0, 1, 101)[1:-1]:
        odds = x / (1 - x) * (others @ mistake_costs) / mistake_costs[costliest]
        prior = others / (1 + odds)
        prior[costliest] = odds / (1 + odds)
        weights = (prior / shares)[scored.targets]
        scale = prior @ mistake_costs
        decisions = (policy.with_unfamiliar(decide(odds, prior), familiarity), scored.decided, argmax)
        costs = [np.average(costs_of_image[rows, each], weights=weights) for each in decisions]
        points.append((x, *(cost / scale for cost in costs), (prior @ scored.outcome_costs).min() / scale))
    table = pd.DataFrame(points, columns=["x", "policy", "fixed_decisions", "argmax", "best_constant"])
    return table.assign(costliest_class=policy.classes[costliest])


def _decisions_by_prior(scored: Scored, policy: Policy, current_prior: Floats) -> Decide:
    """A function from odds and class frequencies to the decisions (N,) of any policy."""

    def decide(_: float, prior: Floats) -> NDArray[np.intp]:
        return policy.decide(shift_prior(scored.probabilities, current_prior, np.maximum(prior, 1e-12)))

    return decide


def _decisions_by_odds(scored: Scored, ratio: Floats, ratio_of_k: float, k: int) -> Decide:
    """The same as `_decisions_by_prior` for decisions of least expected cost, 10 times as fast with 300 classes.

    Expected costs are straight lines in the odds of class ``k``, whose slopes depend on the cost of missing ``k``
    alone. Of the decisions with the same slope, one is the cheapest at all odds, so few decisions remain.

    Parameters
    ----------
    ratio : (K,) new frequency of each class, at odds of 1, divided by the current one; 0 for ``k``.
    ratio_of_k : the same for ``k``.
    """
    costs, rows = scored.outcome_costs, np.arange(len(scored.targets))
    start = expected_costs(scored.probabilities * ratio, costs)
    slopes = np.unique(costs[k])
    least, decision = np.empty((len(rows), len(slopes))), np.empty((len(rows), len(slopes)), dtype=np.intp)
    for column, slope in enumerate(slopes):
        members = np.flatnonzero(costs[k] == slope)
        best = start[:, members].argmin(axis=1)
        decision[:, column], least[:, column] = members[best], start[rows, members[best]]
    of_class = ratio_of_k * scored.probabilities[:, k]

    def decide(odds: float, _: Floats) -> NDArray[np.intp]:
        expected = least + (odds * of_class)[:, None] * slopes
        is_least = expected == expected.min(axis=1, keepdims=True)
        return np.asarray(np.where(is_least, decision, len(costs[k])).min(axis=1))  # of ties the first

    return decide


def referral_curve(scored: Scored) -> pd.DataFrame:
    """Cost if the images of largest expected cost are referred, by referral rate, and the others decided otherwise.

    Returns
    -------
    Columns ``referral_rate``, ``cost_of_decided`` (mean cost of the images that are not referred) and, if referral is
    available, ``cost_with_referral`` (mean cost of all images).
    """
    names = [*[None] * scored.num_classes, *scored.action_names]
    others = scored.outcome_costs[:, [name != REFER for name in names]]
    weights = scored.image_weights
    expected = expected_costs(scored.probabilities, others)
    cost = others[scored.targets, expected.argmin(axis=1)]
    order = np.argsort(-expected.min(axis=1), kind="stable")
    # cost and weight of the images that are decided if the first n are referred
    decided_cost = np.append((weights * cost)[order][::-1].cumsum()[::-1], 0.0)
    decided_weight = np.append(weights[order][::-1].cumsum()[::-1], 0.0)
    n = np.unique(np.round(np.linspace(0, len(order) - 1, 201)).astype(int))
    total = decided_weight[0]
    table = {"referral_rate": 1 - decided_weight[n] / total, "cost_of_decided": decided_cost[n] / decided_weight[n]}
    if REFER in names:
        refer = scored.outcome_costs[:, names.index(REFER)]
        # what referral of a class costs more than that of the first class is summed for itself: 0 if all cost the same
        more = np.append(0.0, (weights * (refer - refer[0])[scored.targets])[order].cumsum())
        table["cost_with_referral"] = (decided_cost[n] + (total - decided_weight[n]) * refer[0] + more[n]) / total
    return pd.DataFrame(table)
