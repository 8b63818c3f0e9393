"""Floors of recall and ceilings of cost: their tests against exact ones, their guarantee, and their cost."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from udc_model.config import validate_params
from udc_model.decisions.actions import with_actions
from udc_model.decisions.decision import clopper_pearson_bound, decide
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.decisions.guarantees import (
    Floor,
    Sample,
    betting_p_value,
    check_ceiling,
    check_floor,
    cost_p_value,
    positives_needed,
    recall_p_value,
    recall_surcharge,
    referral_threshold,
    with_surcharges,
)
from udc_model.decisions.policy import Policy, fit_guarantee, fit_policy
from udc_model.errors import UdcError

COSTS = np.array([[0.0, 1.0, 4.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


def _population(rng, n, size=1):
    """Posteriors of three classes and targets drawn from them; the images of a group are alike."""
    p = rng.dirichlet([0.6, 0.6, 0.6], n // size).repeat(size, axis=0)
    u = rng.random((n // size, 1)).repeat(size, axis=0)
    u = np.where(rng.random((n, 1)) < 0.5, u, rng.random((n, 1)))
    return p, (p.cumsum(axis=1) > u).argmax(axis=1)


def _sample(rng, n, size=1):
    return Sample(*_population(rng, n, size), None if size == 1 else np.arange(n) // size)


def _decided(p, costs, floors, surcharge):
    return decide(p, with_surcharges(costs, floors, surcharge), "min_expected_cost")


@pytest.mark.parametrize(("floor", "confidence", "n"), [(0.95, 0.9, 45), (0.95, 0.95, 59), (0.9, 0.95, 29)])
def test_positives_needed_equals_published_numbers(floor, confidence, n):
    assert positives_needed(floor, confidence) == n
    assert clopper_pearson_bound(n, n, confidence) >= floor > clopper_pearson_bound(n - 1, n - 1, confidence)


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (11, 12), (12, 12), (190, 200)])
def test_recall_of_single_images_is_tested_exactly(hits, n):
    expected = binomtest(hits, n, 0.9, alternative="greater").pvalue
    values = np.repeat([1.0, 0.0], [hits, n - hits])
    assert recall_p_value(values, np.ones(n), 0.9) == pytest.approx(expected, rel=1e-9)


def test_betting_p_value_by_hand():
    """Stakes of 1, 1/2, …, 1/32 of the largest, the first with half of the money."""
    excess = np.array([-0.1, -0.1, 0.9])
    money = [np.prod(1 - stake * excess / 0.9) for stake in 1 / 2.0 ** np.arange(6)]
    assert money[0] == 0
    assert betting_p_value(excess, 0.9) == pytest.approx(min(1, 1 / (0.1 * sum(money[1:]))))
    assert betting_p_value(np.full(80, -0.1), 0.9) == pytest.approx(2 * 0.9**80, rel=0.1)  # the first stake wins most
    assert betting_p_value(np.array([0.5]), 0.0) == 0


def test_betting_test_of_groups_has_its_level(rng):
    """True recall at the floor; all images of a group are decided alike."""
    draws, groups = 2000, 60
    sizes = rng.integers(1, 7, (draws, groups)).astype(float)
    hits = sizes * (rng.random((draws, groups)) < 0.9)
    rejected = sum(recall_p_value(h, n, 0.9) <= 0.05 for h, n in zip(hits, sizes, strict=True))
    assert rejected <= binom.ppf(0.999, draws, 0.05)
    assert recall_p_value(sizes[0], sizes[0], 0.9) < 0.05


def test_too_few_images_or_groups_are_named():
    floor = Floor((1,), 0.95, 0.95, "venomous")
    with pytest.raises(UdcError, match=r"of venomous .* at least 59 of its images .* which has 20: 39 more are needed"):
        check_floor(np.ones(20), floor, False)
    check_floor(np.ones(59), floor, False)
    with pytest.raises(UdcError, match=r"at least 71 groups with its images in .* has 15: 56 more are needed"):
        check_floor(np.full(15, 6.0), floor, True)  # log(2 / 0.05) / log(1 / 0.95)
    check_floor(np.full(71, 6.0), floor, True)
    with pytest.raises(UdcError, match=r"at least 59 groups with its images"):
        check_floor(np.ones(15), floor, True)
    with pytest.raises(
        UdcError, match=r"at most 0\.2 at confidence 0\.95 needs at least (\d+) images .* has 10: .* 20"
    ):
        check_ceiling(np.ones(10), 0.2, 0.95, 0.0, 20.0, False)
    with pytest.raises(UdcError, match=r"is 0\.2, but the cheapest decision costs 0\.5"):
        check_ceiling(np.ones(10), 0.2, 0.95, 0.5, 20.0, False)


def test_number_of_groups_needed_is_the_smallest():
    for size, ceiling in ((1.0, 0.5), (6.0, 1.0)):
        with pytest.raises(UdcError) as error:
            check_ceiling(np.full(3, size), ceiling, 0.95, 0.0, 10.0, size > 1)
        needed = int(str(error.value).split("at least ")[1].split()[0])
        check_ceiling(np.full(needed, size), ceiling, 0.95, 0.0, 10.0, size > 1)
        with pytest.raises(UdcError):
            check_ceiling(np.full(needed - 1, size), ceiling, 0.95, 0.0, 10.0, size > 1)


def test_surcharge_of_single_images_is_that_of_the_order_statistic(rng):
    """As before groups, sets and several floors: the r-th smallest surcharge, r from Clopper and Pearson's bound."""
    sample, floor = _sample(rng, 300), Floor((1,), 0.9, 0.95, "b")
    p = sample.probabilities[sample.targets == 1]
    expected = p @ COSTS
    gap = expected[:, 1] - np.delete(expected, 1, axis=1).min(axis=1)
    smallest = np.sort(np.where(gap < 0, 0.0, gap / p[:, 1] * (1 + 1e-9) + 1e-12))
    hits = np.arange(1, len(p) + 1)
    r = int(hits[clopper_pearson_bound(hits, len(p), 0.95) >= 0.9][0])
    assert recall_surcharge(sample, COSTS, [floor]) == smallest[r - 1]


def test_recall_floor_is_missed_at_most_at_its_level(rng):
    floor, draws = Floor((1,), 0.9, 0.9, "b"), 500
    p_all, y_all = _population(rng, 60_000)
    p_of_class = p_all[y_all == 1]
    missed = 0
    for _ in range(draws):
        surcharge = recall_surcharge(_sample(rng, 300), COSTS, [floor])
        missed += (_decided(p_of_class, COSTS, [floor], surcharge) == 1).mean() < floor.floor
    assert missed <= binom.ppf(0.999, draws, 0.1)
    assert missed >= binom.ppf(0.001, draws, 0.1 / 4)  # and the surcharge is no larger than needed


@pytest.mark.parametrize(
    ("floors", "size"),
    [
        ([Floor((1,), 0.85, 0.9, "b")], 6),
        ([Floor((0, 1), 0.9, 0.9, "a or b")], 1),
        ([Floor((0,), 0.5, 0.9, "a"), Floor((1,), 0.6, 0.9, "b")], 6),
    ],
)
def test_floors_of_groups_and_sets_hold(rng, floors, size):
    draws = 40
    p_all, y_all = _population(rng, 30_000, 6)
    missed = 0
    for _ in range(draws):
        decided = _decided(p_all, COSTS, floors, recall_surcharge(_sample(rng, 1800, size), COSTS, floors))
        missed += any(np.isin(decided[np.isin(y_all, f.classes)], f.classes).mean() < f.floor for f in floors)
    assert missed <= binom.ppf(0.999, draws, 0.1)


def test_floors_that_contradict_each_other_are_refused(rng):
    floors = [Floor((k,), 0.99, 0.95, name) for k, name in enumerate("abc")]
    with pytest.raises(UdcError, match=r"the recall of a \(0\.99\) and of .* cannot be proved together"):
        recall_surcharge(_sample(rng, 3000), COSTS, floors)


def test_surcharge_of_a_floor_already_reached_is_zero(rng):
    sample, floors = _sample(rng, 2000), [Floor((1,), 0.3, 0.95, "b")]
    surcharge = recall_surcharge(sample, 1 - np.eye(3), floors)
    assert surcharge < 1e-6
    argmax = sample.probabilities.argmax(axis=1)
    assert (_decided(sample.probabilities, 1 - np.eye(3), floors, surcharge) == argmax).all()
    assert recall_surcharge(sample, 1 - np.eye(3), [*floors, Floor((0,), 0.3, 0.95, "a")]) == 0


@pytest.mark.parametrize("margin", [22.0, 1000.0])  # a probability of 1e-19, and of 0
def test_a_floor_that_needs_a_surcharge_too_large_to_be_stored_is_refused(margin):
    targets = np.repeat([0, 1], 500)
    logits = np.where(np.eye(2)[targets], margin, -margin)
    logits[:50] *= -1  # 10 % of class a are missed with certainty
    evaluate = {"calibration": "none", "decision": "recall_floor", "recall_floor": {"class": "a", "floor": 0.95}}
    params = validate_params({"evaluate": evaluate, "costs": {"preset": "uniform"}}, "test")
    with pytest.raises(UdcError, match=r"a so close to 0 that no surcharge .*; set evaluate\.calibration"):
        fit_policy(params.evaluate, params.costs, ["a", "b"], TrainingFrequencies([1, 1]), logits, targets)


def test_recall_floor_decisions_cost_least_for_their_recall(rng):
    sample = _sample(rng, 4000)
    p, y, floors = sample.probabilities, sample.targets, [Floor((1,), 0.8, 0.95, "b")]
    decided = _decided(p, COSTS, floors, recall_surcharge(sample, COSTS, floors))
    needed = int((decided[y == 1] == 1).sum())
    # the alternative: a threshold on the probability of the class, least expected cost among the others
    order = np.sort(p[y == 1, 1])[::-1]
    rest = np.array([0, 2])[decide(p, COSTS[:, [0, 2]], "min_expected_cost")]
    by_threshold = np.where(p[:, 1] >= order[needed - 1], 1, rest)
    expected = (p @ COSTS)[np.arange(len(p))[:, None], np.column_stack([decided, by_threshold])].mean(axis=0)
    assert expected[0] <= expected[1] + 1e-9


@pytest.mark.parametrize("size", [1, 6])
def test_cost_ceiling_holds_and_refers_fewer_images(rng, size):
    refer, ceiling, draws = 0.3, 0.36, 40
    costs = with_actions(COSTS, refer, {})
    p_all, y_all = _population(rng, 30_000, 6)
    chow = decide(p_all, costs, "min_expected_cost")
    broken, referred = 0, []
    for _ in range(draws):
        sample = _sample(rng, 2400, size)
        threshold = referral_threshold(sample, COSTS, refer, {}, ceiling, 0.9)
        decided = decide(p_all, with_actions(COSTS, threshold, {}), "min_expected_cost")
        broken += costs[y_all, decided].mean() > ceiling
        referred.append((decided == 3).mean())
    assert broken <= binom.ppf(0.999, draws, 0.1)
    assert np.mean(referred) < (chow == 3).mean() - 0.02


def test_cost_ceiling_that_is_not_reached_is_refused(rng):
    with pytest.raises(
        UdcError, match=r"0\.2 at confidence 0\.95 is not proved: the 1,800 images .* raise the ceiling"
    ):
        referral_threshold(_sample(rng, 1800), COSTS, 0.3, {}, 0.2, 0.95)
    sample = _sample(rng, 600)
    with pytest.raises(UdcError, match=r"is not proved: .* about [\d,]+ images like these would"):
        referral_threshold(sample, COSTS, 0.3, {}, 0.27, 0.95)
    assert cost_p_value(np.zeros(5), np.ones(5), 4.0, 4.0) == 0  # no image can cost more


def test_policies_state_and_store_their_guarantee(rng, tmp_path):
    logits = rng.normal(0, 1.5, (900, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (p.cumsum(axis=1) > rng.random((900, 1))).argmax(axis=1)
    for evaluate, phrase in (
        ({"decision": "recall_floor", "recall_floor": {"class": ["a", "c"], "floor": 0.9}},
         "recall of a or c at least 0.9 at confidence 0.95"),
        ({"decision": "recall_floor", "recall_floor": [{"class": "a", "floor": 0.5}, {"class": "b", "floor": 0.4}]},
         "recall of a at least 0.5 at confidence 0.95 and recall of b at least 0.4 at confidence 0.95"),
        ({"decision": "cost_ceiling", "cost_ceiling": {"ceiling": 0.4}}, "mean cost at most 0.4 at confidence 0.95"),
    ):  # fmt: skip
        params = validate_params({"evaluate": evaluate, "costs": {"refer": 0.3, "preset": "uniform"}}, "test")
        policy = fit_policy(
            params.evaluate, params.costs, ["a", "b", "c"], TrainingFrequencies([1, 1, 1]), logits, targets
        )
        (tmp_path / "policy.json").write_text(policy.to_json())
        assert Policy.load(tmp_path / "policy.json") == policy
        assert policy.guarantee == phrase
        decided = policy.apply(logits).decided
        floors = params.evaluate.recall_floors
        for floor in floors:
            classes = ["abc".index(name) for name in floor.classes]
            assert np.isin(decided[np.isin(targets, classes)], classes).mean() >= floor.floor
        if not floors:
            assert policy.outcome_costs[targets, decided].mean() <= 0.4
            chow = decide(policy.probabilities(logits), policy.outcome_costs, "min_expected_cost")
            assert (decided == 3).sum() < (chow == 3).sum()


def test_policy_files_of_one_floor_are_unchanged(tmp_path):
    floor = {"class": "b", "floor": 0.9, "confidence": 0.95, "surcharge": 9.0}
    text = json.dumps({"classes": ["a", "b"], "class_costs": [[0, 1], [1, 0]], "decision": "recall_floor",
                       "calibration": {"method": "none"}, "recall_floor": floor})  # fmt: skip
    (tmp_path / "policy.json").write_text(text)
    policy = Policy.load(tmp_path / "policy.json")
    p = np.array([[0.89, 0.11], [0.93, 0.07]])
    assert policy.decide(p).tolist() == [1, 0]  # costs of 1 and 10: the threshold is 1 / 11
    assert policy.guarantee == "recall of b at least 0.9 at confidence 0.95"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decision": "recall_floor", "recall_floor": [{"class": ["a", "z"], "floor": 0.9, "confidence": 0.95,
                                                        "surcharge": 1.0}]}, "'z' is none of the classes"),
        ({"decision": "recall_floor", "recall_floor": []}, "recall_floor"),
        ({"decision": "cost_ceiling"}, "cost_ceiling: is set exactly if decision is cost_ceiling"),
        ({"decision": "cost_ceiling", "cost_ceiling": {"ceiling": 0.2, "confidence": 0.95, "threshold": 0.4}},
         "refer: must be a number"),
    ],
)  # fmt: skip
def test_damaged_guarantees_in_policy_files(tmp_path, fields, message):
    values = {"classes": ["a", "b"], "class_costs": [[0, 1], [1, 0]], "calibration": {"method": "none"}} | fields
    (tmp_path / "policy.json").write_text(json.dumps(values))
    with pytest.raises(UdcError, match=message):
        Policy.load(tmp_path / "policy.json")


def test_a_guarantee_is_fitted_again_under_other_costs(rng):
    """As `udc compare A B --costs A` does."""
    sample = _sample(rng, 1200, 6)
    logits = np.log(sample.probabilities)
    floors = [{"class": "b", "floor": 0.8, "confidence": 0.9}]
    policy = Policy(["a", "b", "c"], COSTS.tolist(), "recall_floor", recall_floor=floors)
    first = fit_guarantee(policy, logits, sample.targets, sample.groups)
    second = fit_guarantee(replace(policy, class_costs=(10 * COSTS).tolist()), logits, sample.targets, sample.groups)
    assert second.recall_floor[0]["surcharge"] == pytest.approx(10 * first.recall_floor[0]["surcharge"])
    ceiling = Policy(["a", "b", "c"], COSTS.tolist(), "cost_ceiling", cost_ceiling={"ceiling": 1.0, "confidence": 0.9})
    with pytest.raises(UdcError, match=r"^evaluate\.cost_ceiling: needs costs\.refer"):
        fit_guarantee(ceiling, logits, sample.targets, sample.groups)
