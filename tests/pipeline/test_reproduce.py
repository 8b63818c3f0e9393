"""`udc reproduce`: uncommitted changes, registered models, changed and missing data."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline

SMALL = {"num_channels": 3, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2}


@pytest.fixture
def project(by_hand):
    """A project whose images are neither in git nor in DVC."""
    by_hand.run("git", "rm", "-rq", "--cached", "data/raw/shapes")
    with (by_hand.root / ".gitignore").open("a") as out:
        out.write("/data/raw/shapes\n")
    by_hand.run("git", "add", "-A")
    by_hand.run("git", "commit", "-qm", "images are not versioned")
    return by_hand


def test_a_convnext_with_uncommitted_changes_is_reproduced_by_its_registered_model(project):
    project.set_params(model={"model_type": "convnext", "convnext": SMALL | {"layer_scale_init_value": 0.1}})
    loop = project.root / "src/udc_model/training/loop.py"
    code = loop.read_text()
    loop.write_text(code.replace("loss * ranks.world", "loss * ranks.world * 1.5"))  # other results than the commit's
    assert loop.read_text() != code
    project.run("dvc", "repro", "-q")
    (run,) = project.runs()
    assert run.data.tags["mlflow.udc.git_dirty"] == "true"
    project.udc("promote", run.info.run_id, "--as", "shapes")
    project.run("git", "checkout", "-q", ".")
    status = project.run("git", "status", "--porcelain", "--untracked-files=no").stdout
    done = project.udc("reproduce", "models:/shapes/1", OMP_NUM_THREADS="2")  # the recorded number is used, 1
    assert done.stdout.startswith(f"identical: run {run.info.run_id}")
    assert len(project.runs()) == 1  # nothing is recorded
    checked = project.udc("reproduce", "--check", run.info.run_id).stdout.splitlines()
    recorded = json.loads(run.data.tags["mlflow.udc.data"])["data/raw/shapes"]
    assert checked[1] == f"  data: data/raw/shapes, in {project.root}/data/raw/shapes, DVC hash {recorded} as recorded"
    assert project.run("git", "status", "--porcelain", "--untracked-files=no").stdout == status

    # images are replaced, and the version of a package differs
    for folder in (project.root / "data/raw/shapes").iterdir():
        *images, last = sorted(folder.iterdir())
        for image in images[::2]:
            image.write_bytes(last.read_bytes())
    client = project.client()
    environment = json.loads(Path(client.download_artifacts(run.info.run_id, "environment/train.json")).read_text())
    environment["versions"]["numpy"] = "1.0"
    client.log_text(run.info.run_id, json.dumps(environment), "environment/train.json")
    changed = project.udc("reproduce", run.info.run_id, check=False)
    assert changed.returncode == 1
    differences, _, changes = changed.stdout.partition("changed since the run:")
    assert "weights: sha256" in differences
    assert "test/log_loss: " in differences
    assert "  data: digest " in changes
    assert ", was 1.0" in changes

    differs = project.udc("reproduce", "--check", run.info.run_id, check=False)
    assert differs.returncode == 1
    assert f"data/raw/shapes: the images differ from those of run {run.info.run_id}: DVC hash " in differs.stderr
    assert f"(in {project.root}/data/raw/shapes), was {recorded}; restore them" in differs.stderr

    (project.root / "data/raw/shapes").rename(project.root / "data/raw/gone")
    missing = project.udc("reproduce", "--check", run.info.run_id, check=False)
    assert f"neither in git or DVC at its commit nor in {project.root}/data/raw/shapes" in missing.stderr
