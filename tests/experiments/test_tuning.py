"""Studies of one process, whose trials train nothing: resuming, stopping, pruning, several metrics."""

import json
import logging
import subprocess

import optuna
import pytest

from udc_model.errors import UdcError
from udc_model.experiments import tuning
from udc_model.experiments.objectives import Measurement, outcome_of
from udc_model.experiments.opened_study import new_sampler
from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.tuning import _locked, tune
from udc_model.experiments.tuning_plan import TuningPlan

RATE = "train.learning_rate=uniform(0.001,1)"


class FakeTrial:
    """A trial whose metrics are functions of its learning rate."""

    error, curve, kill_at, failing = 0.001, {}, None, ()

    def __init__(self, name, settings, place, attempt):
        self.name, self.rate = name, float(settings[0].partition("=")[2])
        self.names.append(name)

    def run(self, should_prune):
        if self.name == self.kill_at:
            raise KeyboardInterrupt
        if self.name in self.failing:
            raise UdcError("the loss is not finite")
        curve = self.curve.get(self.name, {})
        return not any(should_prune(dict(list(curve.items())[:k])) for k in range(1, len(curve) + 1))

    def outcome(self, metrics, confidence):
        measured = {
            "validation/mean_cost": Measurement((self.rate - 0.3) ** 2, self.error),
            "validation/accuracy": Measurement(1 - self.rate),
            "training/seconds": Measurement(100 * self.rate),
        }
        return outcome_of(measured, metrics)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The class of the trials; the current folder is a repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UDC_SENDER", "off")
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "params.yaml").write_text("train: {learning_rate: 0.1, monitor: log_loss, batch_size: 8}\n")
    fake = type("Fake", (FakeTrial,), {"names": []})
    monkeypatch.setattr(tuning, "TrialProcess", fake)
    return fake


def plan(*metrics, trials=6, setting=RATE, **options):
    return TuningPlan("s", [SearchRange.parse(setting)], trials, metrics or ("validation/mean_cost",), **options)


def study(root):
    return optuna.load_study(study_name="s", storage=f"sqlite:///{root / '.udc/studies/s/study.db'}")


def logged(root):
    """What the last run of the study logged: the lines of its journal, and the names of its artifacts."""
    folder = sorted((root / ".udc/tracking").glob("*-tune-*"))[-1]
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return lines, {path.name for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_trial_is_resumed_under_its_number(fake, tmp_path):
    fake.kill_at = "s-2"
    with pytest.raises(KeyboardInterrupt):
        tune(plan())
    fake.kill_at = None
    tune(plan())
    assert fake.names == ["s-0", "s-1", "s-2", "s-2", "s-3", "s-4", "s-5"]
    assert [trial.state.name for trial in study(tmp_path).trials] == ["COMPLETE"] * 6
    text = tune(plan())
    assert len(fake.names) == 7  # nothing remains to be run
    header, best, *_ = text.splitlines()
    assert header.split() == ["experiment", "state", "validation/mean_cost", "train.learning_rate"]
    assert best.split()[0] == f"s-{study(tmp_path).best_trial.number}"


def test_a_failed_trial_is_not_repeated_and_ends_the_search_only_if_none_succeeds(fake, tmp_path):
    fake.failing = ("s-0", "s-2", "s-5", "s-6", "s-7")
    with pytest.raises(UdcError, match="not finite"):  # all may fail
        tune(plan(trials=10))
    assert fake.names == ["s-0"]
    with pytest.raises(UdcError, match="not finite"):  # three one after the other
        tune(plan(trials=10))
    assert fake.names == [f"s-{k}" for k in range(8)]
    tune(plan(trials=10))
    assert fake.names == [f"s-{k}" for k in range(10)]
    failed = [f"s-{trial.number}" for trial in study(tmp_path).trials if trial.state.name == "FAIL"]
    assert failed == list(fake.failing)


def test_a_grid_ends_with_its_last_combination(fake, tmp_path):
    tune(plan(trials=20, setting="train.learning_rate=choice(0.1,0.2,0.4)", sampler="grid"))
    rates = [trial.params["train.learning_rate"] for trial in study(tmp_path).trials]
    assert sorted(rates) == ["0.1", "0.2", "0.4"]


def test_the_run_of_a_study_has_each_value_and_the_best_so_far(fake, tmp_path):
    tune(plan())
    lines, files = logged(tmp_path)
    points = [line["metrics"] for line in lines if "study/value" in line.get("metrics", {})]
    values = [point["study/value"] for point in points]
    assert values == [trial.value for trial in study(tmp_path).trials]
    assert [point["study/best"] for point in points] == [min(values[: k + 1]) for k in range(6)]
    assert {"trials.txt", "best_params.json", "history.png", "importance.png"} <= files


def test_several_metrics_give_the_pareto_optimal_trials(fake, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    text = tune(plan("validation/mean_cost", "training/seconds", trials=12, sampler="random"))
    assert "trials are not pruned: Optuna compares curves for one metric only" in caplog.text
    best, others = text.split("\n\n")[:2]
    rates = {trial.number: trial.params["train.learning_rate"] for trial in study(tmp_path).trials}
    # below the rate of least cost, less time costs more; above it, more time costs more
    closest = min((rate for rate in rates.values() if rate > 0.3), key=lambda rate: rate - 0.3)
    optimal = {n for n, rate in rates.items() if rate <= 0.3}
    if all(0.3 - rates[n] > closest - 0.3 for n in optimal):
        optimal |= {n for n, rate in rates.items() if rate == closest}
    assert {line.split()[0] for line in best.splitlines()[2:]} == {f"s-{n}" for n in optimal}
    assert {line.split()[0] for line in others.splitlines()[2:]} == {f"s-{n}" for n in set(rates) - optimal}
    lines, files = logged(tmp_path)
    assert {"trials.txt", "best_params.json", "trade_offs.png", "importance.png"} <= files
    names = next(line["tags"] for line in lines if "Pareto-optimal experiments" in line.get("tags", {}))
    assert set(names["Pareto-optimal experiments"].split(", ")) == {f"s-{n}" for n in optimal}
    points = [line["metrics"] for line in lines if "study/training/seconds" in line.get("metrics", {})]
    assert [point["study/training/seconds"] for point in points] == [100 * rate for rate in rates.values()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_metric_is_maximised_beside_one_that_is_minimised(fake, tmp_path, sampler):
    tune(plan("accuracy", "training/seconds", trials=8, sampler=sampler))
    best = study(tmp_path).best_trials  # the lowest rate is best in both
    assert [trial.params for trial in best] == [
        min((t.params for t in study(tmp_path).trials), key=lambda p: p["train.learning_rate"])
    ]


@pytest.mark.parametrize("other", [("validation/mean_cost", "training/seconds"), ("validation/accuracy",)])
def test_a_study_is_not_resumed_with_other_metrics(fake, other):
    tune(plan(trials=1))
    with pytest.raises(UdcError, match=r"^study s exists, with other ranges or other metrics \(validation/mean_cost: "):
        tune(plan(*other))


def test_a_study_of_before_is_not_resumed_in_the_other_direction(fake, tmp_path):
    (tmp_path / ".udc/studies/s").mkdir(parents=True)
    old = optuna.create_study(study_name="s", storage=f"sqlite:///{tmp_path / '.udc/studies/s/study.db'}",
                              direction="maximize")  # fmt: skip
    for name, value in (("ranges", {"train.learning_rate": ["uniform", "0.001", "1"]}),
                        ("metric", "validation/referral_rate"), ("key", "k")):  # fmt: skip
        old.set_user_attr(f"udc.{name}", value)
    with pytest.raises(UdcError, match=r"validation/referral_rate: maximize"):
        tune(plan("validation/referral_rate"))


@pytest.mark.parametrize(("error", "num_trials"), [(1.0, 10), (1e-9, 14)])
def test_stop_ends_a_study_when_further_trials_are_unlikely_to_help(fake, tmp_path, error, num_trials):
    fake.error = error
    text = tune(plan(trials=14, stop=True, sampler="random"))
    assert len(study(tmp_path).trials) == num_trials
    assert ("unlikely to help: 5 more" in text) == (error == 1.0)
    tune(plan(trials=14, stop=True, sampler="random"))
    assert len(study(tmp_path).trials) == num_trials
    assert "Further trials" in tune(plan(trials=14))  # without the option, only the line


def test_stop_needs_one_metric(fake):
    with pytest.raises(UdcError, match=r"^--stop: .* one --metric only"):
        tune(plan("validation/mean_cost", "training/seconds", stop=True))


def test_a_poor_curve_is_pruned_by_the_monitor_that_the_trials_have(fake, tmp_path):
    def curve(value):
        return {epoch: {"training/validation_accuracy": value} for epoch in range(1, 4)}

    fake.curve = {f"s-{k}": curve(0.9) for k in range(5)} | {"s-5": curve(0.1), "s-6": curve(0.95)}
    ranges = [SearchRange.parse(RATE), SearchRange.parse("train.monitor=accuracy")]
    tune(TuningPlan("s", ranges, 7))
    assert [trial.state.name for trial in study(tmp_path).trials][5:] == ["PRUNED", "COMPLETE"]


def test_a_study_is_run_by_one_process(tmp_path):
    lock = tmp_path / "lock"
    with _locked(lock, "s"), pytest.raises(UdcError, match="another udc tune is running it"), _locked(lock, "s"):
        pass
    with _locked(tmp_path / "lock", "s"):
        pass


@pytest.mark.parametrize("metrics", [("mean_cost",), ("mean_cost", "training/seconds")])
def test_a_grid_can_be_completed(fake, tmp_path, metrics):
    grid = plan(*metrics, trials=3, setting="train.learning_rate=choice(0.1,0.2,0.3)", sampler="grid")
    text = tune(grid)  # optuna's own sampler raises an error at the last one
    assert {trial.params["train.learning_rate"] for trial in study(tmp_path).trials} == {"0.1", "0.2", "0.3"}
    assert text.count("complete") == 3


def test_a_grid_needs_choices(fake):
    with pytest.raises(UdcError, match="a grid needs choice"):
        new_sampler(plan(sampler="grid"), 0)


def test_the_address_of_the_data_base_is_not_shown():
    assert "secret" not in repr(TuningPlan("s", [], 1, storage="postgresql+psycopg://me:secret@host/name"))
