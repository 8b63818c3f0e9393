"""A project recorded by version 0.1.0: its journals, run, results and checkpoints are still usable."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import mlflow
import pytest
import yaml

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parents[1] / "recorded" / "version_0.1.0.tar.xz"
REMOVED = {"loss": ("reads",), "train": ("reads", "policy")}  # parameters of 0.1.0 that do not exist any more


@pytest.fixture(scope="module")
def project(project_at, tmp_path_factory):
    """The recorded project, whose journals are addressed to a SQLite store in it."""
    root = tmp_path_factory.mktemp("version_0_1_0")
    with tarfile.open(RECORDED) as archive:
        # the archive is this repository's own; Python before 3.11.4 has no filters
        archive.extractall(root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    for journal in (root / ".udc" / "tracking").glob("*/journal.jsonl"):
        text = journal.read_text(encoding="utf-8")
        assert "http://127.0.0.1:9" in text
        journal.write_text(text.replace("http://127.0.0.1:9", f"sqlite:///{root / 'mlflow.db'}"), encoding="utf-8")
    project = project_at(root)
    project.has_senders = True
    project.run("git", "config", "user.name", "Test")
    project.run("git", "config", "user.email", "test@example.org")
    return project


@pytest.fixture(scope="module")
def run(project):
    """The delivered run of the first result."""
    assert "3 journal(s) delivered" in project.udc("sync").stdout
    killed, finished = sorted(project.runs(), key=lambda run: run.info.status, reverse=True)
    assert (killed.info.status, finished.info.status) == ("KILLED", "FINISHED")
    return finished


def test_sync_delivers_journals(project, run):
    metrics = json.loads((project.root / "metrics.json").read_text())
    for split in ("test", "validation"):
        assert {name: run.data.metrics[f"{split}/{name}"] for name in metrics[split]} == metrics[split]
    assert "epoch/train_loss" in run.data.metrics
    assert "train/best_epoch" in run.data.metrics
    assert run.data.params["loss.reads"] == "loss"
    assert len(run.inputs.dataset_inputs) == 1
    artifacts = {item.path for item in project.client().list_artifacts(run.info.run_id)}
    assert {"evaluation", "model", "training", "images", "params.yaml", "report.html", "metrics.json"} <= artifacts
    assert not list((project.root / ".udc/tracking").glob("*/journal.jsonl"))


def test_delivered_model_names_the_loader_of_its_code(project, run):
    project.client()
    model = mlflow.models.get_model_info(f"models:/{run.outputs.model_outputs[0].model_id}")
    assert model.flavors["python_function"]["loader_module"] == "udc_model.serving"
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model.model_id}"))
    assert (folder / "code/udc_model/serving.py").is_file()


def test_show_compare_and_promote_accept_the_run(project, run):
    shown = json.loads(project.udc("show", "HEAD", "--json").stdout)
    assert shown["run"] == run.info.run_id
    compared = json.loads(project.udc("compare", run.info.run_id, ".", "--json").stdout)
    assert compared["differences"][0]["difference"] == 0
    assert "version 1 is champion" in project.udc("promote", run.info.run_name, "--as", "shapes").stdout
    assert "it is the champion already" in project.udc("promote", "models:/shapes/1", "--as", "shapes").stdout


def test_reproduce_runs_the_old_pipeline(project, run):
    """With the code of the old commit; on other hardware the result may differ, and then the report says why."""
    assert "can be reproduced" in project.udc("reproduce", "--check", run.info.run_id).stdout
    done = project.udc("reproduce", run.info.run_id, check=False)
    assert re.match(f"(identical|different): run {run.info.run_id} ", done.stdout), done.stderr
    if done.returncode:
        changes = done.stdout.partition("changed since the run:\n")[2]
        assert re.search(
            r"^  (kernels|threads|precision|device|instructions|host|python|torch|numpy)", changes, re.MULTILINE
        )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["predict", "data/samples"], ["export", "model.onnx"], ["summary"], ["decide"]])
def test_commands_work_in_the_old_folder_or_name_the_problem(project, command):
    done = project.udc(*command, check=False)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == (1 if done.returncode else 0)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_stages_name_removed_parameters(project, command):
    done = project.udc(command, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for section, names in REMOVED.items():
        for name in names:
            assert f"{section}.{name}" in done.stderr


def test_the_project_is_updated_and_runs(project, run):
    """New code, new dvc.yaml, removed parameters deleted: the pipeline runs, and old checkpoints are not used."""
    path = project.root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, names in REMOVED.items():
        for name in names:
            del params[section][name]
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    shutil.rmtree(project.root / "src")
    shutil.copytree(ROOT / "src", project.root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", ".gitignore", "data/corrections.csv"):
        (project.root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project.root / name)
    done = project.run("dvc", "repro")
    assert "Traceback" not in done.stderr
    newest = project.runs()[-1]
    assert newest.info.run_id != run.info.run_id
    assert newest.info.status == "FINISHED"
    assert json.loads(project.udc("compare", run.info.run_id, newest.info.run_id, "--json").stdout)["differences"]
    # the killed training run had these parameters and other code
    project.set_params(train={"epochs": 100, "learning_rate": 0.001})
    done = project.run("dvc", "repro", "train")
    assert "Traceback" not in done.stderr
    assert project.runs()[-1].info.status == "FINISHED"
