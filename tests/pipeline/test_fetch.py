"""`udc fetch` with the real commands: from a data set by name to the record in the MLflow run."""

import json

import pytest
from PIL import Image

pytestmark = pytest.mark.pipeline


def test_fetched_set_is_tracked_trained_on_and_recorded(new_project, tmp_path, rng):
    project = new_project(data={"source": "folder", "image_size": 16}, train={"epochs": 1, "batch_size": 12},
                          costs={"preset": "uniform"}, evaluate={"resamples": 100})  # fmt: skip
    for c, label in enumerate(("Forest", "River")):
        folder = tmp_path / "torch/datasets/EuroSAT/eurosat/2750" / label
        folder.mkdir(parents=True)
        for k in range(20):
            pixels = rng.integers(0, 100, (16, 16, 3), dtype="uint8") + 100 * c
            Image.fromarray(pixels).save(folder / f"{label}_{k}.jpg")
    done = project.run("udc", "fetch", "torchvision:EuroSAT", TORCH_HOME=str(tmp_path / "torch"))
    assert "data/raw/EuroSAT: 40 images of 2 classes (all 40)" in done.stdout
    status = project.run("dvc", "status", "data/raw/EuroSAT.dvc").stdout
    assert status.strip() == "Data and pipelines are up to date."
    git_add = next(line for line in done.stdout.splitlines() if line.startswith("  git add "))
    project.run(*git_add.split())
    project.run("dvc", "exp", "run", "--name", "fetched", "-S", "data.path=data/raw/EuroSAT")
    record = json.loads((project.root / "data/raw/EuroSAT/.udc-source.json").read_text())
    prepared = json.loads((project.root / "data/prepared/dataset.json").read_text())
    assert prepared["fetched"] == record
    (run,) = project.runs()
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "EuroSAT"
    source = json.loads(dataset.source)["tags"]
    assert source["fetched.name"] == "torchvision:EuroSAT"
    assert source["fetched.revision"] == record["revision"]
    assert source["fetched.digest"] == record["digest"]
