"""Corrections in the pipeline: which stages they run again, experiments in other folders, and reproduction."""

import json

import pytest
import yaml

from udc_model.data.corrections import Correction, write_corrections
from udc_model.tracking.tags import MODEL_SHA256

pytestmark = pytest.mark.pipeline


def _stages_run(done):
    return [name for name in ("prepare", "train", "evaluate") if f"Running stage '{name}'" in done.stdout]


def _outputs(project):
    """The hash of the prepared data and of the model in dvc.lock."""
    stages = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
    return stages["prepare"]["outs"][0]["md5"], stages["train"]["outs"][0]["md5"]


def _labels(project):
    rows = (project.root / "data/prepared/manifest.csv").read_text().splitlines()[1:]
    return {row.split(",")[2]: row.split(",")[3] for row in rows}


def test_corrections_run_what_they_change_and_survive_experiments_and_reproduction(small_project):
    project = small_project()
    project.commit_result()
    before = _outputs(project)
    path, sha256 = next((row.split(",")[2], row.split(",")[-1]) for row in
                        (project.root / "data/prepared/manifest.csv").read_text().splitlines()[1:])  # fmt: skip
    correction = Correction(path, sha256, "relabel", "dot" if not path.startswith("dot") else "bar", "Ada")
    file = project.root / "data/corrections.csv"
    write_corrections(file, [correction])
    project.run("dvc", "exp", "run", "--queue", "--name", "relabelled")
    project.run("dvc", "exp", "run", "--run-all")
    done = project.run("dvc", "queue", "logs", "relabelled")
    assert _stages_run(done) == ["prepare", "train", "evaluate"]
    assert _outputs(project) == before
    project.run("dvc", "exp", "apply", "relabelled")
    assert _labels(project)[path] == correction.value
    relabelled = _outputs(project)
    assert relabelled[0] != before[0]
    assert relabelled[1] != before[1]
    info = json.loads((project.root / "data/prepared/dataset.json").read_text())
    assert info["corrections"] == {"relabel": 1}
    project.commit_result()

    write_corrections(file, [Correction(path, sha256, "relabel", correction.value, "Bob", "2026-01-31", "blurred")])
    done = project.run("dvc", "repro")
    assert _stages_run(done) == ["prepare"]
    assert _outputs(project) == relabelled
    project.run("git", "commit", "-qam", "reason")

    project.deliver()
    run = next(run for run in project.runs() if run.info.run_name == "relabelled")
    artifacts = {item.path for item in project.client().list_artifacts(run.info.run_id, "evaluation")}
    assert "evaluation/label_quality.csv" in artifacts
    assert "training/margins.safetensors" in {
        item.path for item in project.client().list_artifacts(run.info.run_id, "training")}  # fmt: skip
    output = project.udc("reproduce", run.info.run_id).stdout
    assert "reproduced" in output
    assert run.data.tags[MODEL_SHA256]
