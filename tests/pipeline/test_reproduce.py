"""Runs made once more from their record alone: a dirty tree, a registered model, data that is not there any more."""

import pytest

pytestmark = pytest.mark.pipeline

SMALL = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2}


@pytest.fixture
def project(by_hand):
    """Images that neither git nor DVC keeps."""
    by_hand.run("git", "rm", "-rq", "--cached", "data/raw/shapes")
    with (by_hand.root / ".gitignore").open("a") as out:
        out.write("/data/raw/shapes\n")
    by_hand.run("git", "add", "-A")
    by_hand.run("git", "commit", "-qm", "images are kept elsewhere")
    return by_hand


def test_a_convnext_of_a_dirty_tree_by_the_name_of_its_registered_model(project):
    project.set_params(model={"model_type": "convnext", "convnext": SMALL | {"layer_scale_init_value": 0.1}})
    loop = project.root / "src/udc_model/training/loop.py"
    code = loop.read_text()
    loop.write_text(code.replace("loss * ranks.world", "loss * ranks.world * 1.5"))  # other bits than the commit's
    assert loop.read_text() != code
    project.run("dvc", "repro", "-q")
    (run,) = project.runs()
    assert run.data.tags["udc.git_dirty"] == "true"
    project.run("udc", "promote", run.info.run_id, "--as", "shapes")
    project.run("git", "checkout", "-q", ".")
    found = project.run("udc", "reproduce", "models:/shapes/1")
    assert found.stdout.startswith(f"identical: run {run.info.run_id}")
    assert len(project.runs()) == 1  # nothing is recorded, and nothing left in the folder
    assert project.run("git", "status", "--porcelain", "--untracked-files=no").stdout == ""

    # the images change, and nobody has the old ones; and a package is another
    for folder in (project.root / "data/raw/shapes").iterdir():
        *images, last = sorted(folder.iterdir())
        for image in images[::2]:
            image.write_bytes(last.read_bytes())
    project.client().set_tag(run.info.run_id, "udc.version.numpy", "1.0")
    changed = project.run("udc", "reproduce", run.info.run_id, check=False)
    assert changed.returncode == 1
    told, _, since = changed.stdout.partition("changed since then:")
    assert "weights: sha256" in told
    assert "test/log_loss: " in told
    assert "  data: digest " in since
    assert ", was 1.0" in since

    (project.root / "data/raw/shapes").rename(project.root / "data/raw/gone")
    missing = project.run("udc", "reproduce", "--check", run.info.run_id, check=False)
    assert "neither in DVC nor here any more" in missing.stderr
