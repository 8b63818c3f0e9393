"""Workers of `udc tune --storage` on a real PostgreSQL: a killed worker's trial is retried, none is lost or doubled.

The trials train nothing, except that of the last test. Those of `test_team.py` are real.
"""

import json
import subprocess
import sys

import optuna
import pytest

from udc_model.errors import UdcError
from udc_model.experiments.objectives import Outcome
from udc_model.experiments.opened_study import open_study
from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.shared_study import MAX_RETRIES, SharedStudy, check_address, connect
from udc_model.experiments.study_results import results_text
from udc_model.experiments.tuning_plan import TuningPlan

from ..pipeline.conftest import new_project, small_project  # noqa: F401
from .conftest import wait_until

TRIALS = 8

WORKER = """
import json, sys, time
from pathlib import Path
import optuna
from udc_model.experiments import shared_study
from udc_model.experiments.objectives import Outcome
from udc_model.experiments.shared_study import SharedStudy, connect, locked
optuna.logging.set_verbosity(optuna.logging.WARNING)
shared_study.HEARTBEAT, shared_study.GRACE = 0.2, 5
url, name, folder, is_victim = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "victim"
shared_study.HEARTBEAT = 1
storage, engine = connect(url)
shared_study.HEARTBEAT = 0.2
with locked(engine, name):
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
shared = SharedStudy(storage, engine, study, int(sys.argv[5]), lambda n: optuna.samplers.TPESampler(seed=n),
                     lambda trial: [trial.suggest_float("x", -1, 1)])
print("ready", flush=True)
sys.stdin.readline()
for claim in shared.trials():
    (folder / f"{claim.name}.{claim.trial.number}").write_text(json.dumps(claim.settings))
    while is_victim:  # until it is killed
        shared.holds(claim.trial)
        time.sleep(0.05)
    assert shared.holds(claim.trial)
    assert shared.tell(claim.trial, Outcome((claim.settings[0] ** 2,), (None,)))
"""


def value(*values):
    return Outcome(values, (None,) * len(values))


@pytest.fixture
def database(postgres, request):
    """The address of a new database."""
    name = f"tune_{abs(hash(request.node.name)) % 10**8}"
    postgres.create(name)
    return postgres.address(name)


def start_worker(url, folder, role, trials=TRIALS):
    return subprocess.Popen([sys.executable, "-c", WORKER, url, "s", str(folder), role, str(trials)], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.slow
def test_a_killed_workers_trial_is_retried_and_none_is_lost_or_doubled(database, tmp_path):
    victim, *others = workers = [start_worker(database, tmp_path, role) for role in ("victim", "a", "b", "c")]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n", worker.stderr.read()
        victim.stdin.write("\n")
        victim.stdin.flush()
        wait_until(lambda: list(tmp_path.iterdir()), "the victim takes no trial")
        (claimed,) = tmp_path.iterdir()
        victim.kill()
        for worker in others:
            worker.stdin.write("\n")
            worker.stdin.flush()
        for worker in others:
            assert worker.wait(timeout=120) == 0, worker.stderr.read()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    trials = optuna.load_study(study_name="s", storage=database).trials
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == TRIALS
    assert [trial.state.name for trial in trials if trial.state.name != "COMPLETE"] == ["FAIL"]  # the victim's
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == TRIALS + 1
    (first, again) = [path for path in tmp_path.iterdir() if path.stem == claimed.stem]  # one trial ran twice,
    assert first.read_text() == again.read_text()  # with the same values
    assert len({trial.params["x"] for trial in complete}) == TRIALS  # no two trials have the same values
    recorded = {json.loads(path.read_text())[0] for path in tmp_path.iterdir()}
    assert min(trial.value for trial in complete) == min(value**2 for value in recorded)


@pytest.fixture
def shared(database):
    """A worker's view of a new study."""
    storage, engine = connect(database)
    study = optuna.create_study(storage=storage, study_name="s")
    return SharedStudy(storage, engine, study, 2, optuna.samplers.RandomSampler,
                       lambda trial: [f"x={trial.suggest_float('x', 0, 1)}"])  # fmt: skip


@pytest.mark.slow
def test_a_trial_that_always_fails_is_given_up(shared):
    names = []
    for claim in shared.trials():
        names.append(claim.name)
        if claim.name == "s-0":
            shared.release(claim.trial)
        else:
            assert shared.tell(claim.trial, value(1.0))
    assert names == ["s-0"] * (MAX_RETRIES + 1) + [f"s-{MAX_RETRIES + 1}"]


@pytest.mark.slow
def test_a_worker_that_was_stopped_for_too_long_does_not_store_its_result(shared):
    claims = shared.trials()
    claim = next(claims)
    assert shared.holds(claim.trial)
    shared.release(claim.trial)  # as another worker does
    shared._last_beat = 0.0
    assert not shared.holds(claim.trial)
    assert not shared.tell(claim.trial, value(1.0))
    again = next(claims)
    assert (again.name, again.settings) == (claim.name, claim.settings)
    assert shared.tell(again.trial, value(1.0))
    assert shared.tell(again.trial, value(1.0))  # the answer to the first attempt was lost


@pytest.mark.slow
def test_two_workers_search_two_metrics_and_a_third_with_others_is_refused(database):
    """One of the trials is retried; all workers see the same Pareto-optimal trials."""
    ranges = [SearchRange.parse("train.learning_rate=uniform(0.1,0.9)")]
    plan = TuningPlan("s", ranges, 4, ["validation/mean_cost", "training/seconds"], storage=database)
    workers = []
    for _ in range(2):
        storage, engine = connect(database)
        workers.append(SharedStudy(storage, engine, open_study(plan, storage), plan.trials,
                                   lambda count: optuna.samplers.TPESampler(seed=count), plan.settings))  # fmt: skip
    with pytest.raises(UdcError, match=r"^study s exists, with other .* \(validation/mean_cost, training/seconds: "):
        open_study(TuningPlan("s", ranges, 4, ["validation/mean_cost", "validation/accuracy"]), storage)
    first, second = (worker.trials() for worker in workers)
    workers[0].release(next(first).trial)
    costs = {"s-0": (0.3, 1.0), "s-2": (0.1, 9.0), "s-3": (0.3, 2.0), "s-4": (0.2, 3.0)}
    names = []
    for claims, worker in ((second, workers[1]), (first, workers[0])) * 2:
        claim = next(claims)
        names.append(claim.name)
        assert worker.tell(claim.trial, value(*costs[claim.name]))
    assert sorted(names) == sorted(costs)
    assert [next(claims, None) for claims in (first, second)] == [None, None]
    for worker in workers:
        best, others, _ = results_text(worker.study, plan).split("\n\n")
        assert [line.split()[:4] for line in best.splitlines()[2:]] == [
            ["s-2", "complete", "0.1", "9.0"], ["s-4", "complete", "0.2", "3.0"], ["s-0", "complete", "0.3", "1.0"],
        ]  # fmt: skip
        assert [line.split()[0] for line in others.splitlines()[2:]] == ["s-3"]


@pytest.mark.slow
def test_a_study_that_is_enough_ends_when_the_running_trials_have_ended(shared):
    shared.limit, shared.is_enough = 9, lambda trials: any(trial.values == [0.0] for trial in trials)
    claims = shared.trials()
    assert shared.tell(next(claims).trial, value(1.0))
    running = next(claims)
    assert shared.tell(next(claims).trial, value(0.0))
    assert shared._claim() == (None, 1)  # one waits for the other's
    assert shared.tell(running.trial, value(2.0))
    assert next(claims, None) is None


@pytest.mark.slow
def test_a_trial_whose_worker_died_before_its_first_heartbeat_becomes_stale(shared, monkeypatch):
    shared.study.ask()  # and the worker dies
    monkeypatch.setattr("udc_model.experiments.shared_study.HEARTBEAT", 0.2)
    shared._judges_from, shared.storage.grace_period = 0.0, 1
    claims = shared.trials()
    assert shared.tell(next(claims).trial, value(1.0))
    last = next(claims)
    assert last.name == "s-0"
    assert shared.tell(last.trial, value(1.0))
    assert next(claims, None) is None


@pytest.mark.slow
def test_a_worker_waits_while_the_database_is_away(shared, postgres, monkeypatch, caplog):
    monkeypatch.setattr("udc_model.experiments.shared_study.HEARTBEAT", 0.2)
    claims = shared.trials()
    claim = next(claims)
    postgres.kill()
    shared._last_beat = 0.0
    assert shared.holds(claim.trial)  # nothing is known
    assert "cannot be reached" in caplog.text
    postgres.start()
    monkeypatch.setattr("udc_model.experiments.shared_study._PATIENCE", 60)
    assert shared.tell(claim.trial, value(1.0))
    assert shared.tell(next(claims).trial, value(2.0))
    assert next(claims, None) is None
    assert [trial.value for trial in shared.study.trials] == [1.0, 2.0]
    assert postgres.password not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:Secret Word@host/name",
        "postgresql+psycopg://host/name?user=me&password=SecretWord",
        "mysql://me:SecretWord@host/name",
        "Secret Word",
    ],
)
def test_addresses_with_a_password_in_sight_are_refused_without_showing_it(url):
    with pytest.raises(UdcError, match=r"^--storage: ") as caught:
        check_address(url)
    assert "Secret" not in str(caught.value)


def test_an_address_without_a_password_in_sight_is_accepted():
    for url in (
        "postgresql+psycopg://me:Secret%2FWord@host:5432/name?sslmode=verify-full",
        "postgresql+psycopg://me:Secret/Word@host/name",
        "postgresql+psycopg://me@host/name",
    ):
        check_address(url)


@pytest.mark.slow
def test_a_wrong_password_is_an_error_without_it(database, postgres):
    wrong = database.replace("Secret", "Other")
    with pytest.raises(UdcError, match=r"cannot be used: .*password authentication failed") as caught:
        connect(wrong)
    assert "Other" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.pipeline
def test_the_command_runs_a_trial_and_records_the_study_without_the_password(
    database,
    postgres,
    small_project,  # noqa: F811
):
    project = small_project()
    command = ["udc", "tune", "-S", "train.learning_rate=log(1e-4,1e-1)", "--trials", "1", "--study", "s", "--storage",
               database]  # fmt: skip
    done = project.run(*command)
    assert "complete" in done.stdout
    runs = project.runs()
    (study,) = [run for run in runs if run.data.tags.get("study") == "s"]
    (trial,) = [run for run in runs if run.info.run_name == "s-0"]
    assert (study.info.status, trial.info.status) == ("FINISHED", "FINISHED")
    assert trial.data.tags["mlflow.parentRunId"] == study.info.run_id
    assert study.data.metrics["study/best"] == trial.data.metrics["validation/mean_cost"]
    assert study.data.tags["best experiment"] == "s-0"
    files = [path for path in (*project.root.glob("*.db"), *(project.root / ".udc").rglob("*"),
                               *(project.root / "mlartifacts").rglob("*")) if path.is_file()]  # fmt: skip
    secrets = (postgres.password, postgres.password.replace("%", "%25"))
    assert not [path for path in files for secret in secrets if secret.encode() in path.read_bytes()]
    assert not [secret for secret in secrets if secret in done.stdout + done.stderr]
