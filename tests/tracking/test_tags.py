"""Tags that code reads and searches: present names, names of recorded runs, and what MLflow's pages hide."""

import shutil

import mlflow
import pytest

from udc_model.tracking import tags
from udc_model.tracking.lookup import environment
from udc_model.tracking.tags import (
    BASELINE,
    DATA,
    EXPERIMENT_NAME,
    MODEL_SHA256,
    OUTS,
    read_tag,
    runs_with_tag,
    tags_below,
)


@pytest.fixture
def client(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path)
    yield mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(("name", "former"), [
    (MODEL_SHA256, "udc.model_sha256"), (EXPERIMENT_NAME, "dvc.exp_name"), (DATA, "dvc.data"),
    (BASELINE, "dvc.baseline"), (f"{OUTS}model", "udc.outs.model"), (f"{tags.DIRTY}.train", "udc.git_dirty.train"),
])  # fmt: skip
def test_former_names_are_read_and_present_ones_first(name, former):
    assert name.startswith("mlflow.")  # MLflow's pages show no such tags
    assert read_tag({former: "a"}, name) == "a"
    assert read_tag({former: "a", name: "b"}, name) == "b"
    assert read_tag({}, name) is None


def test_tags_below_a_prefix_have_both_names():
    assert tags_below({"udc.outs.model": "1", "mlflow.udc.outs.evaluation": "2", "x": "3"}, OUTS) == {
        "model": "1", "evaluation": "2",
    }  # fmt: skip


def test_a_search_finds_both_names_the_latest_first_on_every_page(client, monkeypatch):
    monkeypatch.setattr(tags, "_PAGE", 2)
    expected = []
    for k in range(5):
        name = "udc.model_sha256" if k % 2 else MODEL_SHA256
        expected.insert(0, client.create_run("0", start_time=k + 1, tags={name: "abc"}).info.run_id)
    client.create_run("0", tags={MODEL_SHA256: "other"})
    assert [run.info.run_id for run in runs_with_tag(client, ["0"], MODEL_SHA256, "abc")] == expected


def test_versions_and_hardware_of_a_run_of_version_0_2_0_are_in_its_tags(client):
    recorded = {"udc.host": "h", "udc.version.torch": "2.14.0", "device": "cpu", "threads": "4", "udc.seed": "1"}
    run = client.create_run("0", tags=recorded)
    assert environment(run) == {"torch": "2.14.0", "host": "h", "device": "cpu", "threads": "4"}
