"""Parameters set by a real `dvc exp run -S`: only the lines of the changed parameters differ."""

import pytest
import yaml

pytestmark = pytest.mark.pipeline


def test_three_overrides_change_three_parameters_and_no_other_line(new_project):
    project = new_project()
    settings = ("model.convnext.depths=[1,1,2]", "costs.entries=[{actual: '3', predicted: '7', cost: 50}]",
                "train.learning_rate=0.00001")  # fmt: skip
    for setting in settings:
        project.run("dvc", "exp", "run", "-q", "-S", setting, "prepare")
    diff = project.run("git", "diff", "--unified=0", "HEAD", "--", "params.yaml").stdout.splitlines()
    changed = [line for line in diff if line[0] in "+-" and not line.startswith(("+++", "---"))]
    assert changed == [
        "-    - 2", "-    - 2", "+    - 1", "+    - 1",
        "-  learning_rate: 0.003", "+  learning_rate: 1e-05",
        "-  entries: []", "+  entries:", "+  - actual: '3'", "+    predicted: '7'", "+    cost: 50",
    ]  # fmt: skip
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    assert params["model"]["convnext"]["depths"] == [1, 1, 2]
    project.run("dvc", "repro", "-q", "resolve")
    resolved = yaml.safe_load((project.root / "resolved/evaluate.yaml").read_text())
    assert resolved["costs"]["entries"] == [{"true": "3", "predicted": "7", "cost": 50.0}]
