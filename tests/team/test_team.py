"""Two users, two clones and one server, whose parts are away or killed at random moments: nothing is lost or doubled.

``UDC_TEAM_OUTAGES=20`` makes twenty outages instead of three, and lets two users train, compare, reproduce, promote and
search.
"""

import importlib.util
import os
import random
import subprocess
import sys

import mlflow
import psutil
import pytest

from udc_model.experiments import promotion
from udc_model.tracking.journal import pending_journals, read_entries, wait_for_senders
from udc_model.tracking.run import stage_run
from udc_model.tracking.sender import deliver_pending

from ..pipeline.conftest import Project, new_project, small_project  # noqa: F401
from ..tracking.test_outage import EPOCHS, WRITER, check_run, step
from .conftest import wait_until

pytestmark = pytest.mark.slow

OUTAGES = int(os.environ.get("UDC_TEAM_OUTAGES", "3"))
BY_HAND = pytest.mark.skipif(OUTAGES <= 3, reason="training runs take minutes: UDC_TEAM_OUTAGES=20")


@pytest.fixture
def client(team, monkeypatch):
    """An MLflow client of the first user."""
    for name, value in team.env("anna").items():
        monkeypatch.setenv(name, value)
    yield mlflow.MlflowClient(team.uri)
    mlflow.set_tracking_uri(None)


def start_writer(team, user, folder, experiment):
    (folder / "package").mkdir(parents=True)
    (folder / "package/code.py").write_text("x = 1\n")
    env = (
        os.environ | team.env(user) | {"DVC_ROOT": str(folder), "PYTHONPATH": "", "MLFLOW_EXPERIMENT_NAME": experiment}
    )
    return subprocess.Popen([sys.executable, "-c", WRITER], cwd=folder, env=env, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def sync(team, user, folder, experiment):
    env = os.environ | team.env(user) | {"DVC_ROOT": str(folder), "MLFLOW_EXPERIMENT_NAME": experiment}
    return subprocess.run([sys.executable, "-m", "udc_model.cli", "sync"], cwd=folder, env=env, capture_output=True,
                          text=True)  # fmt: skip


def count_points(folder):
    """The metric points in the journals of a folder."""
    journals = pending_journals(folder)
    return sum(len(entry.get("metrics", ())) for each in journals for entry, _ in read_entries(each))


def test_parts_of_the_server_are_away_at_random_moments(team, client, tmp_path):
    rng = random.Random(OUTAGES)
    moments = sorted(rng.choices(range(EPOCHS), k=OUTAGES))
    folders = {user: tmp_path / user for user in team.users}
    writers = {user: start_writer(team, user, folder, "outages") for user, folder in folders.items()}
    done = []
    for epoch in range(EPOCHS):
        for writer in writers.values():
            step(writer)
        done += [team.disturb(rng, rng.uniform(0.2, 2)) for moment in moments if moment == epoch]
    for user, writer in writers.items():
        _, stderr = writer.communicate(timeout=120)
        assert writer.returncode == 0, f"{done}: {stderr}"  # no stage fails
        assert team.users[user] not in stderr
    wait_until(team.postgres.is_ready, "PostgreSQL does not answer")
    wait_until(team.mlflow.is_ready, "MLflow does not answer")
    for user, folder in folders.items():
        wait_for_senders(folder)
        synced = sync(team, user, folder, "outages")
        assert synced.returncode == 0, f"{done}: {synced.stderr}"
        assert not pending_journals(folder)
    runs = client.search_runs([client.get_experiment_by_name("outages").experiment_id])
    assert len(runs) == len(folders), done
    for run in runs:
        assert run.info.status == "FINISHED", done
        check_run(client, run)


def test_counts_of_the_server_are_those_of_the_journals(team, client, tmp_path, monkeypatch):
    """Two stages of two users record at the same time, without a sender; `udc sync` delivers both."""
    monkeypatch.setenv("UDC_SENDER", "off")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "counts")
    monkeypatch.chdir(tmp_path)
    recorded = {}
    for user in team.users:
        (tmp_path / user).mkdir()
        for name, value in (team.env(user) | {"DVC_ROOT": str(tmp_path / user)}).items():
            monkeypatch.setenv(name, value)
        with stage_run("train", {"kind": user}) as run:
            for epoch in range(EPOCHS):
                run.log_metrics({"loss": epoch, "cost": -epoch}, step=epoch)
        recorded[user] = count_points(tmp_path / user)
        contents = [path.read_bytes() for path in (tmp_path / user).rglob("*") if path.is_file()]
        assert not [secret for secret in team.secrets for content in contents if secret.encode() in content]
        num_delivered, errors = deliver_pending(tmp_path / user)
        assert (num_delivered, errors) == (1, {})
    runs = client.search_runs([client.get_experiment_by_name("counts").experiment_id])
    stored = {run.data.tags["kind"]: sum(len(client.get_metric_history(run.info.run_id, name))
                                         for name in run.data.metrics) for run in runs}  # fmt: skip
    assert stored == recorded == dict.fromkeys(team.users, 2 * EPOCHS)


def test_both_users_see_that_a_new_model_has_no_champion(team, client, monkeypatch):
    """The server answers a question about a model that is not there with 403."""
    for user in team.users:
        for name, value in team.env(user).items():
            monkeypatch.setenv(name, value)
        promotion._create_model(client, "fresh")
        assert promotion._champion(client, "fresh") is None


def test_nobody_without_a_password_reads_the_runs(team):
    client = mlflow.MlflowClient(team.uri)
    with pytest.raises(mlflow.exceptions.MlflowException, match="You are not authenticated"):
        client.search_experiments()
    mlflow.set_tracking_uri(None)


@pytest.mark.pipeline
@BY_HAND
def test_two_users_compare_reproduce_and_promote_each_others_results(team, client, small_project, tmp_path):  # noqa: F811
    shared = {"MLFLOW_EXPERIMENT_NAME": "results", "UDC_SENDER": "on"}
    anna, ben = Project(small_project().root, has_senders=True), Project(tmp_path / "ben", has_senders=True)
    of_anna, of_ben = (team.env(user) | shared for user in ("anna", "ben"))
    anna.run("dvc", "remote", "add", "-q", "-d", "team", "s3://dvc")
    anna.run("dvc", "repro", "-q", **of_anna)
    anna.run("git", "add", "-A")
    anna.run("git", "commit", "-qm", "result")
    anna.run("dvc", "push", "-q", **of_anna)
    origin = tmp_path / "team.git"
    anna.run("git", "clone", "-q", "--bare", ".", str(origin))
    anna.run("git", "remote", "add", "origin", str(origin))
    subprocess.run(["git", "clone", "-q", str(origin), str(ben.root)], check=True)
    for name in ("name", "email"):
        ben.run("git", "config", f"user.{name}", "ben@example.org")
    ben.run("dvc", "pull", "-q", **of_ben)
    ben.run("udc", "run", "--temp", "--name", "wide", "-S", "model.resnet.embedding_size=24", **of_ben)
    ben.run("dvc", "exp", "push", "-q", "origin", "wide", **of_ben)
    anna.run("dvc", "exp", "pull", "-q", "origin", "wide", **of_anna)
    for project, env in ((anna, of_anna), (ben, of_ben)):
        wait_for_senders(project.root, 900)  # the S3 of the test takes up to a second for a file
        project.run("udc", "sync", **env)
    assert "costs" in anna.run("udc", "compare", "HEAD", "wide", **of_anna).stdout
    runs = client.search_runs([client.get_experiment_by_name("results").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    promotions = [project.start("udc", "promote", name, "--as", "team", **env)
                  for project, env, name in ((anna, of_anna, "HEAD"), (ben, of_ben, "wide"))]  # fmt: skip
    outputs = [process.communicate(timeout=200)[0] for process in promotions]
    # The status is 1 if the version became no champion, because it was compared with that of the other user.
    assert all("team version " in output for output in outputs), outputs
    assert [" is champion: " in output for output in outputs] == [process.returncode == 0 for process in promotions]
    versions = client.search_model_versions("name = 'team'")
    assert sorted(version.run_id for version in versions) == sorted(run.info.run_id for run in runs)
    aliases = client.get_registered_model("team").aliases
    assert set(aliases) == {"challenger", "champion"}
    for done in (anna.run("udc", "reproduce", "wide", **of_anna), ben.run("udc", "reproduce", "HEAD", **of_ben)):
        assert done.stdout.startswith("identical: ")
    for project in (anna, ben):
        files = [path for path in (project.root / ".udc").rglob("*") if path.is_file()] + [project.root / ".dvc/config"]
        assert not [secret for secret in team.secrets for path in files if secret.encode() in path.read_bytes()]


_TUNE = """
import sys
from udc_model.cli import main
from udc_model.experiments import shared_study
shared_study.HEARTBEAT, shared_study.GRACE = 2, 30
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.pipeline
@BY_HAND
def test_four_workers_in_two_clones_with_one_killed(team, client, new_project, tmp_path):  # noqa: F811
    import optuna

    small = {"data": {"source": "digits"}, "train": {"epochs": 1}, "costs": {"preset": "uniform"}}
    anna = new_project(**small, evaluate={"resamples": 100})
    subprocess.run(["git", "clone", "-q", str(anna.root), str(tmp_path / "ben")], check=True)
    clones = {"anna": anna, "ben": Project(tmp_path / "ben")}
    team.postgres.create("studies")
    storage, trials = team.postgres.address("studies"), 8
    for project in clones.values():
        project.run("git", "config", "user.name", "Test")
        project.run("git", "config", "user.email", "test@example.org")
    command = [sys.executable, "-c", _TUNE, "tune", "-S", "train.learning_rate=log(1e-4,1e-1)", "--trials", str(trials),
               "--study", "s", "--storage", storage]  # fmt: skip
    workers = [project.start(*command, **team.env(user), MLFLOW_EXPERIMENT_NAME="search", UDC_SENDER="on")
               for user, project in [*clones.items()] * 2]  # fmt: skip
    victim = workers[0]
    try:
        anna.wait_for(".udc/tracking/*-train-*", victim)  # a trial is being trained
        victim.kill()
        outputs = [worker.communicate(timeout=1500)[0] for worker in workers[1:]]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers[1:]] == [0] * 3, outputs
    assert not [secret for secret in team.secrets if secret in "".join(outputs)]
    for user, project in clones.items():
        wait_for_senders(project.root, 300)
        assert sync(team, user, project.root, "search").returncode == 0
    finished = [trial for trial in optuna.load_study(study_name="s", storage=storage).trials
                if trial.state.name in ("COMPLETE", "PRUNED")]  # fmt: skip
    assert len(finished) == trials
    assert len({trial.params["train.learning_rate"] for trial in finished}) == trials
    runs = client.search_runs([client.get_experiment_by_name("search").experiment_id])
    (study,) = [run for run in runs if run.data.tags.get("study") == "s"]
    assert study.info.status == "FINISHED"
    counted = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == study.info.run_id
               and run.data.tags.get("mlflow.udc.retried") is None]  # fmt: skip
    assert sorted(run.info.run_name for run in counted) == sorted({run.info.run_name for run in counted})
    assert len(counted) == trials
    costs = [run.data.metrics["validation/mean_cost"] for run in counted if "validation/mean_cost" in run.data.metrics]
    best = min(trial.value for trial in finished if trial.state.name == "COMPLETE")
    assert best == min(costs) == study.data.metrics["study/best"]


@pytest.mark.pipeline
@BY_HAND
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra [ray])")
def test_ray_starts_workers_of_a_search_and_replaces_a_killed_one(team, client, new_project):  # noqa: F811
    import optuna

    project = new_project(data={"source": "digits"}, train={"epochs": 1}, costs={"preset": "uniform"},
                          evaluate={"resamples": 100})  # fmt: skip
    team.postgres.create("on_ray")
    storage = team.postgres.address("on_ray")
    search = project.start("udc", "tune", "-S", "train.learning_rate=log(1e-4,1e-1)", "--trials", "4", "--study", "s",
                           "--storage", storage, "--engine", "ray", **team.env("anna"), OMP_NUM_THREADS="1",
                           MLFLOW_EXPERIMENT_NAME="on ray", UDC_SENDER="on")  # fmt: skip
    project.wait_for(".udc/tracking/*-train-*", search)  # a trial is being trained
    try:
        workers = [process for process in psutil.process_iter(["cmdline"])
                   if "ray::run_worker" in " ".join(process.info["cmdline"] or [])]  # fmt: skip
        assert len(workers) > 1
        workers[0].kill()
        output = search.communicate(timeout=2400)[0]  # another worker retries the trial after `shared_study.GRACE`
    finally:
        search.kill()
        search.wait()
    assert search.returncode == 0, output
    begun = [line.split()[1] for line in output.splitlines() if line.startswith("trial ")]
    assert sorted(set(begun)) == ["s-0", "s-1", "s-2", "s-3"], output
    assert len(begun) == 5, output  # the killed worker's again
    study = optuna.load_study(study_name="s", storage=storage)
    trials = [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len(trials) == len({trial.params["train.learning_rate"] for trial in trials}) == 4
    assert len({trial.user_attrs["udc.worker"][2] for trial in trials}) > 1  # processes
    wait_for_senders(project.root, 300)
    assert sync(team, "anna", project.root, "on ray").returncode == 0
    runs = client.search_runs([client.get_experiment_by_name("on ray").experiment_id])
    counted = [run.info.run_name for run in runs if run.data.tags.get("mlflow.udc.retried") is None]
    assert sorted(counted) == sorted(["s", *{name for name in counted if name != "s"}])
    assert len(counted) == 1 + len(trials)
