"""A store that was copied or moved: new artifacts are beside it, earlier runs and models open, nothing is written
elsewhere."""

import json
import logging
import shutil
import sqlite3
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import LoggedModelStatus

from udc_model.errors import UdcError
from udc_model.tracking.journal import pending_journals, wait_for_senders
from udc_model.tracking.relocation import former_folders, relocate
from udc_model.tracking.run import stage_run
from udc_model.tracking.sender import deliver_pending
from udc_model.tracking.store import open_store, relocate_store


@pytest.fixture
def work_in(monkeypatch):
    """A function that makes a folder the project of this process."""

    def change(folder):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DVC_ROOT", str(folder))
        mlflow.set_tracking_uri(None)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return folder

    yield change
    mlflow.set_tracking_uri(None)


@pytest.fixture
def project(tmp_path, work_in, empty_store):
    """The folder `a b` with a run, a model and a registered version in its store; its name is escaped in URIs."""
    folder = tmp_path / "a b"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    work_in(folder)
    experiment = open_store()
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment).info.run_id
    client.log_text(run_id, "first", "note.txt")
    model = client.create_logged_model(experiment, "classifier", run_id)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/weights.txt").write_text("first")
    client.log_model_artifacts(model.model_id, str(tmp_path / "weights"))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.create_registered_model("m")
    client.create_model_version("m", f"models:/{model.model_id}", run_id, model_id=model.model_id)
    return folder


def _runs():
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def _files(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def _text(run_id, name="note.txt"):
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copied", "copied from a read-only folder", "moved"])
def test_new_artifacts_are_in_the_new_folder_and_earlier_ones_open(project, tmp_path, work_in, kind):
    (first,) = _runs()
    new = tmp_path / "new é"
    if kind == "moved":
        shutil.move(project, new)
    else:
        shutil.copytree(project, new)
    if kind == "copied from a read-only folder":
        for path in (project, project / "mlflow.db"):
            path.chmod(0o555)
    before = _files(project)
    work_in(new)
    with stage_run("train", {}) as run:
        run.log_text("second", "note.txt")
    assert wait_for_senders(new)
    assert not pending_journals(new)
    open_store()
    (second,) = {run.info.run_id for run in _runs()} - {first.info.run_id}
    assert _files(project) == before
    assert project.exists() == (kind != "moved")
    if project.exists():
        project.chmod(0o755)
        shutil.rmtree(project)
    assert _text(first.info.run_id) == "first"
    assert _text(second) == "second"
    assert (new / f"mlartifacts/udc-model/{second}/artifacts/note.txt").is_file()
    client = mlflow.MlflowClient()
    version = Path(mlflow.artifacts.download_artifacts("models:/m/1"))
    assert (version / "weights.txt").read_text() == "first"
    assert client.get_model_version_download_uri("m", "1").startswith(new.as_uri())
    assert all(str(project.as_uri()) not in line for line in sqlite3.connect(new / "mlflow.db").iterdump())


def test_a_pending_journal_is_delivered_to_the_store_beside_it(project, tmp_path, work_in):
    new = tmp_path / "new"
    shutil.copytree(project, new)
    folder = new / ".udc/tracking/1-train-0"
    (folder / "files").mkdir(parents=True)
    header = {"kind": "open", "time": 1, "key": "k", "stage": "train", "root": str(project), "experiment": "udc-model",
              "uri": f"sqlite:///{project / 'mlflow.db'}", "outer": None, "tags": {}}  # fmt: skip
    end = {"kind": "end", "time": 2, "status": "FINISHED"}
    (folder / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in (header, end)))
    before = _files(project)
    work_in(new)
    assert deliver_pending(new) == (1, {})
    open_store()
    assert len(_runs()) == 2
    assert _files(project) == before


def test_artifacts_that_were_not_copied_stay_readable_until_they_are(project, tmp_path, work_in, caplog):
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(project / "mlflow.db", new)
    work_in(new)
    with caplog.at_level(logging.WARNING):
        open_store()
    assert "the artifacts of 2 earlier runs and models are in" in caplog.text
    assert "then run `udc relocate`" in caplog.text
    (run,) = _runs()
    assert _text(run.info.run_id) == "first"
    shutil.move(project / "mlartifacts", new / "mlartifacts")
    assert relocate_store().num_corrected == 3  # run, model, version
    assert _text(run.info.run_id) == "first"


def test_another_store_is_relocated_on_request_only(project, tmp_path, work_in, monkeypatch):
    new = tmp_path / "new"
    shutil.copytree(project, new)
    work_in(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new / 'mlflow.db'}")
    with pytest.raises(UdcError, match=r"its artifacts are in .*a b/mlartifacts, not beside it, .* run `udc relocate`"):
        open_store()
    assert relocate_store().num_corrected > 0
    open_store()


def test_a_store_reached_by_another_path_was_not_moved(project, tmp_path):
    (tmp_path / "link").symlink_to(project)
    assert former_folders(tmp_path / "link" / "mlflow.db") == set()
    assert former_folders(project / "mlflow.db") == set()
    assert relocate(project / "mlflow.db").num_corrected == 0


def test_only_a_sqlite_store_can_be_relocated(tmp_path, work_in, monkeypatch):
    work_in(tmp_path)
    with pytest.raises(UdcError, match=r"mlflow.db: is no SQLite store that exists"):
        relocate_store()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(UdcError, match=r"^http://127.0.0.1:9: is no SQLite store"):
        relocate_store()
