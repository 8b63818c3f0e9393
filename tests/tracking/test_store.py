"""The MLflow store: concurrent creation, its place in the main repository, and credentials in messages."""

import subprocess
import sys
from pathlib import Path

import pytest

from udc_model.errors import UdcError, without_credentials
from udc_model.tracking.run import flatten
from udc_model.tracking.store import open_store, repository_root, tracking_uri

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


def test_messages_contain_no_credentials(monkeypatch):
    assert without_credentials("https://me:secret@host:5000/path") == "https://host:5000/path"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UdcError) as error:
        open_store()
    assert "http://127.0.0.1:9 cannot be used" in str(error.value)
    assert "secret" not in str(error.value)


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}
