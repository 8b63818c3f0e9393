"""When further trials are not worth it."""

from itertools import combinations
from statistics import mean

import optuna
import pytest

from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.stopping import expected_minimum, outlook
from udc_model.experiments.study_trials import ERRORS
from udc_model.experiments.tuning_plan import TuningPlan

ANY = [SearchRange.parse("train.learning_rate=log(1e-4,1e-1)")]


def trials(values, error):
    attributes = {} if error is None else {ERRORS: [error]}
    return [optuna.trial.create_trial(value=value, user_attrs=attributes) for value in values]


@pytest.mark.parametrize("count", range(1, 8))
def test_the_expected_minimum_is_that_of_all_subsets(rng, count):
    values = rng.normal(size=7).tolist()
    assert expected_minimum(values, count) == pytest.approx(mean(map(min, combinations(values, count))), abs=1e-12)


def test_the_expected_minimum_of_thousands_is_finite():
    assert 0 < expected_minimum([float(k) for k in range(3000)], 1500) < 2


@pytest.mark.parametrize(("error", "is_exhausted"), [(0.3, True), (0.01, False)])
@pytest.mark.parametrize(("metric", "sign"), [("validation/mean_cost", 1), ("validation/accuracy", -1)])
def test_an_improvement_below_the_standard_error_is_not_worth_it(rng, error, is_exhausted, metric, sign):
    values = sign * rng.uniform(size=20)
    expected = outlook(trials(values.tolist(), error), TuningPlan("s", ANY, 20, [metric]))
    assert (expected.trials, expected.error, expected.is_exhausted) == (10, error, is_exhausted)
    assert 0 < expected.gain < 0.2
    text = str(expected)
    assert text.startswith(
        "Further trials are unlikely to help: 10 more" if is_exhausted else "Further trials may help"
    )
    assert metric in text


def test_the_standard_error_is_that_of_the_best_trial():
    values = [0.1 * k for k in range(1, 11)]
    complete = [*trials(values[:3], 5.0), *trials([0.01], 7.0), *trials(values[3:], 5.0)]
    assert outlook(complete, TuningPlan("s", ANY, 20)).error == 7.0


def test_nothing_is_expected_where_nothing_is_known():
    plan, values = TuningPlan("s", ANY, 20), [1.0] * 10
    assert outlook(trials(values, 0.1), plan) is not None
    assert outlook(trials(values[1:], 0.1), plan) is None  # too few
    assert outlook(trials(values, None), plan) is None  # a metric without standard error
    pruned = optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED)
    assert outlook([*trials(values[1:], 0.1), pruned], plan) is None
    assert outlook(trials(values, 0.1), TuningPlan("s", ANY, 20, ["mean_cost", "accuracy"])) is None


def test_a_search_that_has_tried_all_values_expects_nothing():
    ranges = [SearchRange.parse(f"train.batch_size=choice({','.join(map(str, range(1, 12)))})"), SearchRange.parse(
        "train.epochs=3")]  # fmt: skip
    plan = TuningPlan("s", ranges, 20)
    assert outlook(trials([1.0] * 10, 0.1), plan) is not None
    assert outlook(trials([1.0] * 11, 0.1), plan) is None
