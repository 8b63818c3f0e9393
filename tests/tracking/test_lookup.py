"""The run that `mlflow run` opened, after DVC restored all outputs: it may be gone, and its store may fail."""

import shutil

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from udc_model.errors import UdcError
from udc_model.tracking import lookup
from udc_model.tracking.lookup import RESTORED, tag_restored
from udc_model.tracking.store import open_store


@pytest.fixture
def client(tmp_path, empty_store, monkeypatch):
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    yield mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)


def test_a_run_is_tagged_with_the_one_that_it_repeats(client, monkeypatch):
    experiment = open_store()
    repeated, opened = (client.create_run(experiment) for _ in range(2))
    monkeypatch.setattr(lookup, "runs_with_outputs", lambda *_: [repeated])
    tag_restored(opened.info.run_id)
    assert client.get_run(opened.info.run_id).data.tags[RESTORED] == repeated.info.run_id


def test_a_run_that_does_not_exist_any_more_is_not_tagged(client):
    tag_restored("0" * 32)
    assert not client.search_runs([open_store()])


def test_a_store_that_fails_is_one_line(client, monkeypatch):
    def fail(*_):
        raise MlflowException("no route to host")

    run = client.create_run(open_store())
    monkeypatch.setattr(mlflow.MlflowClient, "get_run", fail)
    with pytest.raises(UdcError, match=f"^MLFLOW_RUN_ID {run.info.run_id}: no route to host$"):
        tag_restored(run.info.run_id)
