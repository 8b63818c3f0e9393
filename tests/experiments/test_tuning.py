"""Search ranges of `udc tune`, and the lock of a study."""

import pytest

from udc_model.errors import UdcError
from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.study_results import _selection
from udc_model.experiments.tuning import TuningPlan, _locked, _metric, _sampler


@pytest.mark.parametrize(
    ("setting", "kind", "arguments"),
    [
        ("train.learning_rate=log(1e-4, 1e-2)", "log", ("1e-4", "1e-2")),
        ("learning_rate=uniform(0,1)", "uniform", ("0", "1")),
        ("train.epochs=int(1,9)", "int", ("1", "9")),
        ("train.optimizer=choice(adamw,sgd)", "choice", ("adamw", "sgd")),
        ("train.epochs=3", "value", ("3",)),
    ],
)
def test_search_ranges_are_parsed(setting, kind, arguments):
    search_range = SearchRange.parse(setting)
    assert (search_range.kind, search_range.arguments) == (kind, arguments)
    assert search_range.name.startswith("train.")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs", "must be name=value"),
        ("train.epochs=int(1)", "takes two numbers"),
        ("train.epochs=int(9,1)", "the first number must be smaller"),
        ("train.learning_rate=log(0,1)", "the first number must be smaller and above 0"),
        ("train.optimizer=choice(adamw,)", "is empty"),
    ],
)
def test_malformed_search_ranges_are_errors(setting, message):
    with pytest.raises(UdcError, match=message):
        SearchRange.parse(setting)


@pytest.mark.parametrize(
    ("metric", "direction"), [("validation/mean_cost", "minimize"), ("validation/accuracy", "maximize")]
)
def test_direction_follows_from_the_metric(metric, direction):
    assert TuningPlan("s", [], 1, metric).direction == direction


def test_any_metric_of_the_table_can_be_searched():
    metrics = {"mean_cost": 0.5, "recall/bar": 0.25, "roc_auc": None}
    assert _metric(metrics, "validation/recall/bar") == 0.25
    for name in ("validation/roc_auc", "validation/f2"):
        with pytest.raises(
            UdcError, match=f"^{name}: the trials have no such metric; it can be validation/mean_cost, "
        ):
            _metric(metrics, name)


def test_a_study_is_run_by_one_process(tmp_path):
    lock = tmp_path / "lock"
    with _locked(lock, "s"), pytest.raises(UdcError, match="another udc tune is running it"), _locked(lock, "s"):
        pass
    with _locked(tmp_path / "lock", "s"):
        pass


def test_the_best_trial_is_not_called_proved():
    rows = [{"validation/mean_cost": value} for value in (0.1, 0.2, 0.3, None)]
    text = _selection(rows, "validation/mean_cost")
    assert text.startswith("The first row is the best of 3 by validation/mean_cost: its value is too good by selection")
    assert _selection(rows[-2:], "validation/mean_cost") == ""


def test_a_grid_can_be_completed():
    import optuna

    plan = TuningPlan("s", [SearchRange.parse("train.optimizer=choice(adamw,sgd)")], 2, sampler="grid")
    study = optuna.create_study(sampler=_sampler(plan, 0))
    for _ in range(plan.trials):
        trial = study.ask()
        plan.ranges[0].suggest(trial)
        study.tell(trial, 1.0)  # optuna's own sampler raises an error at the last one
    assert {trial.params["train.optimizer"] for trial in study.trials} == {"adamw", "sgd"}


def test_the_address_of_the_data_base_is_not_shown():
    assert "secret" not in repr(TuningPlan("s", [], 1, storage="postgresql+psycopg://me:secret@host/name"))
