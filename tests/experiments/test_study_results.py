"""The tables and plots of a study."""

import optuna
import pytest

from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.study_results import results_text, write_plots
from udc_model.experiments.study_trials import ERRORS
from udc_model.experiments.tuning_plan import TuningPlan

RANGE = {"x": optuna.distributions.FloatDistribution(0, 1)}
ANY = [SearchRange.parse("train.learning_rate=uniform(0,1)")]


def add(study, x, **options):
    study.add_trial(optuna.trial.create_trial(params={"x": x}, distributions=RANGE, **options))


def test_a_retried_trial_is_one_row_with_the_name_of_its_experiment():
    study = optuna.create_study(study_name="s")
    add(study, 0.25, state=optuna.trial.TrialState.FAIL)
    add(study, 0.5, value=2.0)
    add(study, 0.25, value=1.0, system_attrs={"failed_trial": 0, "retry_history": [0]})
    header, first, second, note = results_text(study, TuningPlan("s", ANY, 2)).strip().splitlines()
    assert header.split() == ["experiment", "state", "validation/mean_cost", "x"]
    assert first.split() == ["s-0", "complete", "1.0", "0.25"]
    assert second.split() == ["s-1", "complete", "2.0", "0.50"]
    assert note.startswith("The first row is the best of 2 by validation/mean_cost: its value is too good by selection")


def test_the_only_trial_is_not_called_the_best():
    study = optuna.create_study(study_name="s")
    add(study, 0.5, value=2.0)
    add(study, 0.5, state=optuna.trial.TrialState.PRUNED)
    assert "best of" not in results_text(study, TuningPlan("s", ANY, 2))


def trade_offs():
    """Five trials, of which the first is the retry of a failed one, and the fourth is worse than the second."""
    study = optuna.create_study(study_name="s", directions=["minimize", "maximize"])
    add(study, 0.1, state=optuna.trial.TrialState.FAIL)
    add(study, 0.1, values=[0.1, 0.5], system_attrs={"failed_trial": 0, "retry_history": [0]},
        user_attrs={ERRORS: [0.02, None]})  # fmt: skip
    for x, values in ((0.3, [0.2, 0.8]), (0.4, [0.3, 0.9]), (0.5, [0.25, 0.7])):
        add(study, x, values=values, user_attrs={ERRORS: [0.02, 0.03]})
    add(study, 0.6, state=optuna.trial.TrialState.PRUNED)
    return study, TuningPlan("s", ANY, 5, ["mean_cost", "accuracy"])


def test_trials_that_another_one_betters_are_in_a_table_of_their_own():
    best, others, note = results_text(*trade_offs()).split("\n\n")
    assert best.splitlines()[1].split() == ["experiment", "state", "mean_cost", "accuracy", "x"]
    assert [line.split()[0] for line in best.splitlines()[2:]] == ["s-0", "s-2", "s-3"]
    assert [line.split()[:3] for line in others.splitlines()[2:]] == [
        ["s-4", "complete", "0.25"],
        ["s-5", "pruned", "-"],
    ]
    assert "no difference is proved" in note


@pytest.mark.parametrize("metrics", [1, 2, 3])
def test_plots_are_written_for_any_number_of_metrics(tmp_path, metrics, rng):
    directions = ["minimize", "maximize", "minimize"][:metrics]
    study = optuna.create_study(study_name="s", directions=directions)
    for number in range(12):
        add(study, number / 12, values=rng.uniform(size=metrics).tolist())
    names = ["mean_cost", "accuracy", "training/seconds"][:metrics]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_plots(study, TuningPlan("s", ANY, 12, names), tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(["importance.png", "history.png" if metrics == 1 else "trade_offs.png"])
    for name in files:  # equal plots are equal files
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
