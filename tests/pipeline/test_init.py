"""Projects that ``udc init`` makes, with real commands: from images to a tracked and reproduced model."""

import json
import shutil

import pytest
import yaml

from udc_model.tracking.tags import COMMIT, DIRTY

pytestmark = pytest.mark.pipeline

SMALL = {"data": {"image_size": 16}, "train": {"epochs": 1, "batch_size": 12}, "evaluate": {"resamples": 100}}


def _git(project, *arguments):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    return project.run("git", *identity, *arguments).stdout.strip()


def test_images_to_a_recorded_model_in_an_empty_folder(project_at, tmp_path, shapes_at, empty_store):
    images = shapes_at(tmp_path / "images")
    project = project_at(tmp_path / "project")
    project.root.mkdir()
    home = {"HOME": str(tmp_path / "home")}
    output = project.run("udc", "init", "--images", str(images), **home).stdout
    assert "\nTrain, and record the result:\n  dvc repro\n" in output
    assert _git(project, "status", "--porcelain") == ""
    shutil.copy(empty_store, project.root)
    project.set_params(**SMALL)
    _git(project, "commit", "-qam", "small")
    project.run("dvc", "repro", "-q", **home)
    assert json.loads(project.run("dvc", "status", "--json").stdout) == {}
    assert (project.root / "evaluation/report.html").is_file()
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags[f"{COMMIT}.evaluate"] == _git(project, "rev-parse", "HEAD")
    assert project.udc("summary").stdout.endswith(
        "udc predict FILE                                  (decide another image)\n"
    )
    plan = project.run("dvc", "repro", "--dry", "--allow-missing").stdout  # what the workflow looks for
    assert "Running stage" not in plan

    # any other version of the package: DVC would run every stage again, and the stages refuse
    path = project.root / "udc.json"
    ours = path.read_text()
    for change in ({"version": "0.1.0"}, {"code": "0" * 16}):
        path.write_text(json.dumps(json.loads(ours) | change))
        changed = json.loads(project.run("dvc", "status", "--json").stdout)
        assert sorted(changed) == ["evaluate", "prepare", "resolve", "train"]
        assert "Running stage 'prepare'" in project.run("dvc", "repro", "--dry").stdout
        refused = project.udc("run", check=False)
        assert (refused.returncode, refused.stderr.startswith("error: udc.json: this project uses")) == (1, True)
    path.write_text(json.dumps(json.loads(ours) | {"files": {}}))  # what udc init wrote does not matter
    assert json.loads(project.run("dvc", "status", "--json").stdout) == {}


def test_a_project_in_a_folder_of_a_repository_is_reproduced(project_at, tmp_path, shapes_at, empty_store):
    top = project_at(tmp_path)
    _git(top, "init", "-q")
    _git(top, "commit", "-qm", "start", "--allow-empty")
    project = project_at(tmp_path / "models/shapes")
    shapes_at(project.root / "data/raw/shapes")
    assert "images: tracked by DVC now" in project.udc("init", "--images", "data/raw/shapes").stdout
    _git(top, "commit", "-qm", "project")
    shutil.copy(empty_store, project.root)
    project.set_params(**SMALL)  # not committed: the run has it as a patch
    project.run("dvc", "repro", "-q")
    (run,) = project.runs()
    deps = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]["prepare"]["deps"]
    assert {"data/raw/shapes", "data/corrections.csv"} <= {dep["path"] for dep in deps}
    reproduced = project.udc("reproduce", ".")
    assert reproduced.stdout.startswith(f"identical: run {run.info.run_id} is reproduced")

    # with another version installed, the result could only differ for an unknown reason
    pin = project.root / "udc.json"
    pin.write_text(json.dumps(json.loads(pin.read_text()) | {"version": "0.1.0"}))
    _git(top, "commit", "-qam", "another version")
    commit = _git(top, "rev-parse", "HEAD")
    project.client().set_tag(run.info.run_id, f"{COMMIT}.evaluate", commit)
    project.client().set_tag(run.info.run_id, f"{DIRTY}.evaluate", "false")
    refused = project.udc("reproduce", run.info.run_id, check=False)
    assert "is of udc-model 0.1.0 (code " in refused.stderr
    assert "reproduce where the other one is installed" in refused.stderr


@pytest.mark.slow
def test_make_lists_five_targets(project_at, tmp_path):
    project = project_at(tmp_path / "project")
    project.root.mkdir()
    project.udc("init")
    listed = project.run("make").stdout.splitlines()[1:]
    assert [line.split()[1] for line in listed] == ["help", "setup", "train", "ui", "clean"]
    assert project.run("make", "-n", "setup").stdout.count("udc-model @ file://") == 1
