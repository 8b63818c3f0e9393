"""The table of a study."""

import optuna

from udc_model.experiments.study_results import trials_table


def test_a_retried_trial_is_one_row_with_the_number_of_its_experiment():
    study = optuna.create_study(direction="minimize")
    range_of = {"x": optuna.distributions.FloatDistribution(0, 1)}
    values = {"params": {"x": 0.25}, "distributions": range_of}
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, **values))
    study.add_trial(optuna.trial.create_trial(value=2.0, params={"x": 0.5}, distributions=range_of))
    retry = {"failed_trial": 0, "retry_history": [0]}
    study.add_trial(optuna.trial.create_trial(value=1.0, system_attrs=retry, **values))
    header, first, second, note = trials_table(study, "validation/mean_cost").strip().splitlines()
    assert header.split() == ["trial", "state", "validation/mean_cost", "x"]
    assert first.split() == ["0", "complete", "1.0", "0.25"]
    assert second.split() == ["1", "complete", "2.0", "0.50"]
    assert "best of 2" in note
