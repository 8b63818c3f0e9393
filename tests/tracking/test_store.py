"""The MLflow store: concurrent creation, its place in the main repository, and credentials in messages."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run, RunData, RunInfo

from udc_model.errors import UdcError, without_credentials
from udc_model.tracking.lookup import description
from udc_model.tracking.run import flatten
from udc_model.tracking.store import EXPERIMENT, experiment_name, open_store, reason_of, repository_root, tracking_uri

OPEN = """
import mlflow
from udc_model.tracking.store import open_store
experiment = open_store()
with mlflow.start_run(experiment_id=experiment):
    mlflow.log_metric("x", 1.0)
print(experiment, mlflow.get_experiment(experiment).artifact_location)
"""


@pytest.mark.slow
def test_four_processes_create_the_store_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folders = [tmp_path / f"temporary{i}" for i in range(4)]
    for folder in folders:
        folder.mkdir()
    running = [
        subprocess.Popen([sys.executable, "-c", OPEN], cwd=folder, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for folder in folders
    ]  # fmt: skip
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0, 0], outputs
    assert len({stdout for stdout, _ in outputs}) == 1
    assert (tmp_path / "mlartifacts").as_uri() in outputs[0][0]
    assert all(not stderr for _, stderr in outputs), outputs


def test_repository_root_is_the_closest_dvc_folder_or_dvc_root(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert repository_root() == tmp_path
    assert tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    assert repository_root() == Path("/elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    assert tracking_uri() == "http://tracker"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:secret@host:5000/path", "https://host:5000/path"),
        ("at ssh://ada:p@ss/w@host/x: refused", "at ssh://host/x: refused"),
        ("ssh://git@host/x", "ssh://host/x"),
        ("http://me:123@host:1/", "http://host:1/"),
        *(
            (text, text)
            for text in (
                "sqlite:////home/a@b/mlflow.db",
                "file:///a:b@c",
                "https://host/r.git@v1",
                "http://host:5000/#/x@y",
                "a // b @ c",
            )
        ),
    ],
)
def test_addresses_lose_their_credentials_only(text, expected):
    assert without_credentials(text) == expected


def test_messages_contain_no_credentials(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UdcError) as error:
        open_store()
    assert "http://127.0.0.1:9 cannot be used" in str(error.value)
    assert "secret" not in str(error.value)


def test_the_description_of_a_run_contains_no_credentials():
    run = Run(RunInfo("r", "0", "u", "FINISHED", 0, 1, "active", "sftp://me:secret@host/folder"), RunData())
    assert description(run)["artifacts"] == "sftp://host/folder"
    assert "secret" not in str(description(run))


def test_an_empty_name_of_the_experiment_is_none(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    assert experiment_name() == EXPERIMENT


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


@pytest.mark.parametrize(("contents", "reason"), [
    (b"no database, but long enough to be read as one" * 100, "file is not a database"),
    (None, "unable to open database file"),
])  # fmt: skip
def test_a_store_that_cannot_be_read_is_one_line_at_once(tmp_path, contents, reason):
    store = tmp_path / "mlflow.db"
    store.mkdir() if contents is None else store.write_bytes(contents)
    with pytest.raises(UdcError) as error:
        open_store(f"sqlite:///{store}")
    assert str(error.value) == f"the MLflow store sqlite:///{store} cannot be used: {reason}"


def test_the_reason_of_an_error_of_the_data_base_is_its_line():
    lines = ("(raised as a result of Query-invoked autoflush; consider …)",
             "(sqlite3.OperationalError) attempt to write a readonly database", "[SQL: INSERT …]")  # fmt: skip
    assert reason_of(RuntimeError("\n".join(lines))) == "attempt to write a readonly database"
    assert reason_of(RuntimeError("https://ann:secret@host refused\nmore")) == "https://host refused"
    assert reason_of(RuntimeError()) == "RuntimeError"


def test_the_artifacts_of_an_experiment_are_in_the_project_whatever_its_name_is(
    tmp_path, monkeypatch, request, empty_store
):
    folders = {"udc-model": "udc-model", "Käfer 100%": "Käfer 100%", "/Shared/exp": "%2FShared%2Fexp",
               "../x": "%2E%2E%2Fx", "..": "%2E%2E"}  # fmt: skip
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(empty_store, project)
    store = f"sqlite:///{project / 'mlflow.db'}"
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # MLflow sets it too
    request.addfinalizer(lambda: mlflow.set_tracking_uri(None))
    for name, folder in folders.items():
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        experiment = open_store(store)
        assert open_store(store) == experiment
        with mlflow.start_run(experiment_id=experiment) as run:
            mlflow.log_text("result", "a/b.txt")
        (file,) = (project / "mlartifacts" / folder).rglob("b.txt")
        assert file.read_text() == "result"
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/a/b.txt") == "result"
    assert [path.name for path in tmp_path.iterdir()] == ["project"]
