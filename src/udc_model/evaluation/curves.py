"""The tables behind the pictures: ROC, precision-recall, reliability, cost curve, cost against referral."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from udc_model.decisions.decision import clopper_pearson_bound, constant_costs, expected_costs, shift_prior
from udc_model.decisions.policy import Policy
from udc_model.evaluation.intervals import areas, by_group, resample, score_table
from udc_model.evaluation.metrics import Scored, equal_mass_bins

Floats = NDArray[np.float64]
_GRID = np.linspace(0, 1, 201)


def roc_curves(scored: Scored, classes: list[str]) -> pd.DataFrame:
    """The ROC curve of each class against the rest: ``class``, ``false_positive_rate``, ``true_positive_rate``."""
    parts = []
    for k, name in enumerate(classes):
        fpr, tpr, _ = roc_curve(scored.targets == k, scored.probabilities[:, k], sample_weight=scored.weights)
        parts.append(pd.DataFrame({"class": name, "false_positive_rate": fpr, "true_positive_rate": tpr}))
    return pd.concat(parts, ignore_index=True)


def precision_recall_curves(scored: Scored, classes: list[str]) -> pd.DataFrame:
    """The precision-recall curve of each class against the rest: ``class``, ``recall``, ``precision``."""
    parts = []
    for k, name in enumerate(classes):
        own = scored.probabilities[:, k]
        precision, recall, _ = precision_recall_curve(scored.targets == k, own, sample_weight=scored.weights)
        parts.append(pd.DataFrame({"class": name, "recall": recall, "precision": precision}))
    return pd.concat(parts, ignore_index=True)


def mean_curves(
    scored: Scored, classes: list[str], resamples: int, confidence: float, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """ROC and precision-recall, means over classes, with pointwise bootstrap bands, and each class's areas.

    Returns
    -------
    ``false_positive_rate, true_positive_rate, low, high``; ``recall, precision, low, high`` (the best precision at no
    less recall); ``class, roc_auc, roc_auc_low, roc_auc_high, average_precision, …``. Percentile intervals.
    """
    features, bins = score_table(scored)
    k = len(classes)

    def statistic(sums: Floats) -> dict[str, Floats]:
        scores = sums.reshape(k, bins, 2, -1)
        tpr, precision = _interpolated(scores)
        auc, average_precision = areas(scores)
        return {"tpr": tpr, "precision": precision, "auc": auc.T, "ap": average_precision.T}

    features = by_group(features, scored.groups)
    drawn = resample(features, statistic, resamples, seed)
    point = statistic(np.asarray(features.sum(axis=0)).reshape(-1, 1))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    band = {name: np.nanquantile(values, tails, axis=0) for name, values in drawn.items()}
    roc = {"false_positive_rate": _GRID, "true_positive_rate": point["tpr"][0]}
    pr = {"recall": _GRID, "precision": point["precision"][0]}
    targets, p, weights = scored.targets, scored.probabilities, scored.weights
    exact = {
        "roc_auc": [roc_auc_score(targets == j, p[:, j], sample_weight=weights) for j in range(k)],
        "average_precision": [average_precision_score(targets == j, p[:, j], sample_weight=weights) for j in range(k)],
    }
    table: dict[str, object] = {"class": classes}
    for name, short in (("roc_auc", "auc"), ("average_precision", "ap")):
        moved = np.array(exact[name]) - point[short][0]
        table |= {name: exact[name], f"{name}_low": band[short][0] + moved, f"{name}_high": band[short][1] + moved}
    return (
        pd.DataFrame(roc | {"low": band["tpr"][0], "high": band["tpr"][1]}),
        pd.DataFrame(pr | {"low": band["precision"][0], "high": band["precision"][1]}),
        pd.DataFrame(table),
    )


def _interpolated(scores: Floats) -> tuple[Floats, Floats]:
    """True positive rate and precision on the grid, (B, 201) each, means over classes of (K, bins, 2, B)."""
    falling = scores[:, ::-1].cumsum(axis=1)
    false, found = falling[:, :, 0], falling[:, :, 1]
    k, _, b = found.shape
    tpr, precision = np.zeros((b, len(_GRID))), np.zeros((b, len(_GRID)))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = found / found[:, -1:]
        fallout = false / false[:, -1:]
        # read from the right: the best precision at this recall or more
        best = np.maximum.accumulate(np.nan_to_num(found / (found + false))[:, ::-1], axis=1)[:, ::-1]
    for i in range(b):
        for j in range(k):
            x = np.concatenate([[0.0], fallout[j, :, i]])
            tpr[i] += np.interp(_GRID, x, np.concatenate([[0.0], recall[j, :, i]])) / k
            place = np.searchsorted(recall[j, :, i], _GRID, side="left").clip(max=best.shape[1] - 1)
            precision[i] += best[j, place, i] / k
    return tpr, precision


def reliability(scored: Scored, before: Floats, bins: int, confidence: float) -> pd.DataFrame:
    """Confidence against accuracy in bins of equal mass, ``before`` and ``after`` calibration.

    Columns ``calibration`` (before, after), ``confidence``, ``accuracy``, ``low``, ``high`` (Clopper-Pearson) and
    ``images``.
    """
    rows = []
    for name, p in (("before", before), ("after", scored.probabilities)):
        right = p.argmax(axis=1) == scored.targets
        top = p.max(axis=1)
        for part in equal_mass_bins(top, bins):
            n, hits = len(part), int(right[part].sum())
            low, above = clopper_pearson_bound(np.array([hits, n - hits]), n, (1 + confidence) / 2)
            rows.append((name, top[part].mean(), hits / n, low, 1 - above, n))
    return pd.DataFrame(rows, columns=["calibration", "confidence", "accuracy", "low", "high", "images"])


def costliest_class(costs: Floats) -> int:
    """The class whose mistakes cost most, mean over wrong classes of (K, D)."""
    return int(_mean_prices(costs).argmax())


def _mean_prices(costs: Floats) -> Floats:
    k = len(costs)
    return np.asarray((costs[:, :k].sum(axis=1) - np.diag(costs)) / (k - 1))


def cost_curve(scored: Scored, policy: Policy) -> pd.DataFrame | None:
    """Normalised expected cost against the odds of the dear class (Drummond and Holte 2006), generalised to K classes.

    ``x`` is the dear class's share of the money at stake, ``pi_d c_d / sum_y pi_y c_y`` with c the mean price of a
    class's mistakes; the other classes keep their proportions. Costs are divided by that sum, the cost of deciding all
    wrong; with two classes both axes are the paper's. Columns ``x``, ``this_rule`` (told of the frequencies, and
    deciding anew), ``as_decided``, ``argmax``, ``constant`` (the cheapest constant answer). None where the mistakes of
    at most one class cost anything.
    """
    prices, dear = _mean_prices(scored.outcome_costs), costliest_class(scored.outcome_costs)
    shares = np.bincount(scored.targets, minlength=len(prices)) / len(scored.targets)
    others = np.where(np.arange(len(prices)) == dear, 0.0, shares)
    others /= others.sum()
    if prices[dear] <= 0 or others @ prices <= 0:
        return None
    present = shares if policy.deployment_prior is None else np.array(policy.deployment_prior)
    own = scored.outcome_costs[scored.targets]
    argmax = scored.probabilities.argmax(axis=1)
    rows = []
    for x in np.linspace(0, 1, 101)[1:-1]:
        odds = x / (1 - x) * (others @ prices) / prices[dear]
        prior = others / (1 + odds)
        prior[dear] = odds / (1 + odds)
        weights = (prior / shares)[scored.targets]
        told = policy.decide(shift_prior(scored.probabilities, present, np.maximum(prior, 1e-12)))
        scale = prior @ prices
        costs = [np.average(own[np.arange(len(own)), d], weights=weights) for d in (told, scored.decided, argmax)]
        constant = constant_costs(scored.targets, scored.outcome_costs, weights).min()
        rows.append((x, *(c / scale for c in costs), constant / scale))
    return pd.DataFrame(rows, columns=["x", "this_rule", "as_decided", "argmax", "constant"])


def referral_curve(scored: Scored, refer: float | None) -> pd.DataFrame:
    """What remains to pay when the images of largest expected cost are handed to a person.

    Columns ``referral_rate``, ``cost_of_decided`` (mean price of the images still decided) and, where ``refer`` is
    given, ``cost_with_referral`` (mean over all images, referral paid).
    """
    k = scored.num_classes
    weights = scored.counted
    expected = expected_costs(scored.probabilities, scored.outcome_costs[:, :k])
    price = scored.outcome_costs[scored.targets, expected.argmin(axis=1)]
    order = np.argsort(-expected.min(axis=1), kind="stable")
    left = np.append((weights * price)[order][::-1].cumsum()[::-1], 0.0)  # money after the first n are referred
    kept = np.append(weights[order][::-1].cumsum()[::-1], 0.0)
    n = np.unique(np.round(np.linspace(0, len(order) - 1, 201)).astype(int))
    table = {"referral_rate": 1 - kept[n] / kept[0], "cost_of_decided": left[n] / kept[n]}
    if refer is not None:
        table["cost_with_referral"] = (left[n] + (kept[0] - kept[n]) * refer) / kept[0]
    return pd.DataFrame(table)
