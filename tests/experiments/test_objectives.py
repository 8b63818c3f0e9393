"""What a search minimises or maximises, and the standard errors of its values."""

import pytest

from udc_model.config import CostParams, EvaluateParams, Params
from udc_model.errors import UdcError
from udc_model.experiments.objectives import (
    Measurement,
    Outcome,
    check_objectives,
    direction_of,
    outcome_of,
    read_measurements,
)


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("validation/mean_cost", "minimize"),
        ("mean_cost", "minimize"),
        ("validation/cost_saved", "maximize"),
        ("validation/accuracy", "maximize"),
        ("validation/referral_rate", "minimize"),
        ("validation/miss_rate/bar", "minimize"),
        ("validation/recall/gloss", "maximize"),  # not that of a loss
        ("training/seconds", "minimize"),
    ],
)
def test_direction_follows_from_the_metric_not_from_the_class(metric, direction):
    assert direction_of(metric) == direction


def test_any_metric_of_the_table_can_be_searched():
    measured = {
        "validation/mean_cost": Measurement(0.5, 0.1),
        "validation/recall/bar": Measurement(0.25),
        "validation/roc_auc": Measurement(None),
    }
    assert outcome_of(measured, ["recall/bar", "validation/mean_cost"]) == Outcome((0.25, 0.5), (None, 0.1))
    others = "start another --study with one of validation/mean_cost, validation/recall/bar$"
    for name, message in (("validation/roc_auc", "has no value for the images of this trial"),
                          ("validation/f2", "the trials have no such metric")):  # fmt: skip
        with pytest.raises(UdcError, match=f"^{name}: {message}; {others}"):
            outcome_of(measured, ["validation/mean_cost", name])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["validation/accuracy", "test/mean_cost"], "^test/mean_cost: .* use validation/mean_cost$"),
        (["training/epochs"], "^training/epochs: .* can use training/seconds only$"),
        (["mean_cost", "validation/mean_cost"], "^--metric: mean_cost is given twice$"),
        (["acuracy"], r"^--metric: no metric acuracy; did you mean accuracy\?$"),
        (["recall/b"], r"^--metric: no metric recall/b; did you mean recall/a\?$"),
        (["f2"], "^--metric: no metric f2; there are accuracy, .*action_rate/retest, .*, training/seconds$"),
    ],
)
def test_metrics_that_no_search_can_use(metrics, message):
    params = Params(evaluate=EvaluateParams(recall_of=["a"]), costs=CostParams(actions={"retest": 0.5}))
    check_objectives(["recall/a", "validation/action_rate/retest", "referral_rate", "training/seconds"], params)
    with pytest.raises(UdcError, match=message):
        check_objectives(metrics, params)


def test_standard_errors_follow_from_the_intervals(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text("metric,value,low,high\nmean_cost,0.1,0.05,0.246\nroc_auc,,,\nconstant_mean_cost,0.5,,\n")
    measured = read_measurements(table, 0.95)
    assert measured["validation/mean_cost"].value == 0.1
    assert measured["validation/mean_cost"].error == pytest.approx(0.05, rel=1e-4)  # 0.196 is 2 * 1.96 of them
    assert measured["validation/roc_auc"] == (None, None)
    assert measured["validation/constant_mean_cost"] == (0.5, None)
