"""Names of results: folders, CSV files, runs, registered models, git revisions; ambiguous and unknown names."""

import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest

from udc_model.errors import UdcError
from udc_model.experiments.names import resolve_name, resolve_run
from udc_model.tracking.provenance import dvc_hash
from udc_model.tracking.store import open_store
from udc_model.tracking.tags import EVALUATED, EXPERIMENT_NAME, OUTS


@pytest.fixture
def create_run(tmp_path, monkeypatch, empty_store):
    """A function that creates a run in a new store and returns its id; the current folder is a new git repository."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    shutil.copy(empty_store, tmp_path)
    experiment = open_store()
    client = mlflow.MlflowClient()

    def create(name, **tags):
        run = client.create_run(experiment, run_name=name, tags={EVALUATED: "true"} | tags)
        client.set_terminated(run.info.run_id)
        return run.info.run_id

    yield create
    mlflow.set_tracking_uri(None)


def commit_outputs(message, **outs):
    listed = "".join(f"\n    - path: {name}\n      md5: {md5}" for name, md5 in outs.items())
    Path("dvc.lock").write_text(f"schema: '2.0'\nstages:\n  train:\n    outs:{listed}\n")
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", message], check=True)


def test_a_folder_with_results_precedes_a_run_of_the_same_name(create_run, tmp_path):
    create_run("slow")
    (tmp_path / "slow").mkdir()
    assert resolve_name("slow").run is not None  # the folder has no results
    (tmp_path / "slow" / "evaluation").mkdir()
    assert resolve_name("slow").path is not None
    assert resolve_name("slow").run is None


def test_a_csv_file_is_a_path_even_if_it_is_missing(create_run):
    assert str(resolve_name("missing.csv").path) == "missing.csv"


def test_runs_are_found_by_id_name_and_experiment(create_run):
    run_id = create_run("fancy-name", **{EXPERIMENT_NAME: "slow"})
    for name in (run_id, "fancy-name", "slow"):
        assert resolve_run(name).info.run_id == run_id


def test_runs_are_found_by_registered_model(create_run):
    run_id = create_run("a")
    client = mlflow.MlflowClient()
    client.create_registered_model("spiders")
    version = client.create_model_version("spiders", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("spiders", "champion", version.version)
    assert resolve_run("models:/spiders/1").info.run_id == run_id
    assert resolve_run("models:/spiders@champion").info.run_id == run_id
    with pytest.raises(UdcError, match="models:/spiders/7"):
        resolve_run("models:/spiders/7")


def test_an_ambiguous_name_lists_the_ids(create_run):
    ids = {create_run("same"), create_run("same")}
    with pytest.raises(UdcError, match="2 runs have this name") as error:
        resolve_run("same")
    assert all(run_id in str(error.value) for run_id in ids)


def test_runs_without_evaluation_are_ignored_on_request(create_run):
    create_run("a", **{EVALUATED: "false"})
    assert resolve_run("a").info.run_name == "a"
    with pytest.raises(UdcError, match="no MLflow run with an evaluation"):
        resolve_name("a")


def test_a_revision_is_the_run_with_its_outputs_or_a_commit(create_run):
    run_id = create_run("a", **{f"{OUTS}model": "abc.dir"})
    commit_outputs("recorded", model="abc.dir")
    commit_outputs("not recorded", model="def.dir")
    assert resolve_run("HEAD~1").info.run_id == run_id
    assert resolve_name("HEAD").commit
    with pytest.raises(UdcError, match=r"no run in .* has these outputs"):
        resolve_run("HEAD")


def test_a_folder_is_the_run_with_its_outputs(create_run, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    run_id = create_run("a", **{f"{OUTS}model": dvc_hash(tmp_path / "model")})
    assert resolve_run(".").info.run_id == run_id
    (tmp_path / "model" / "config.json").write_text("{ }")
    with pytest.raises(UdcError, match=r"no run in .* has these outputs"):
        resolve_run(".")


def test_an_unknown_name_is_an_error(create_run):
    with pytest.raises(UdcError, match="nothing: is no file or folder, no MLflow run"):
        resolve_name("nothing")
