"""Tests that the programs on the page about exports decide as udc predict does."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udc_model.cli import main

PAGE = (Path(__file__).parents[3] / "docs/how-to/export.md").read_text(encoding="utf-8")
NODE_MODULES = os.environ.get("UDC_NODE_MODULES", "")  # a folder with onnxruntime-node and sharp


def _example(language):
    return re.search(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def project(tmp_path, workspace, rng, monkeypatch):
    """A folder with model.onnx and two photographs, and what udc predict decides about them."""
    pytest.importorskip("onnxruntime")
    for name, shape in (("a.png", (40, 21, 3)), ("b.png", (18, 30, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    assert main(["export", "--root", str(workspace.root), str(tmp_path / "model.onnx")]) == 0
    monkeypatch.chdir(tmp_path)
    return workspace


def _check(lines, predicted):
    assert len(lines) == len(predicted) == 2
    for line, row in zip(map(json.loads, lines), predicted, strict=True):
        assert (line["path"], line["decision"]) == (row["path"], row["class"])
        assert line["expected_cost"] == pytest.approx(row["expected_cost"], abs=1e-5)
        p = line["probabilities"]
        assert list(p.values() if isinstance(p, dict) else p) == pytest.approx(list(row["probabilities"].values()),
                                                                               abs=1e-5)  # fmt: skip


@pytest.mark.slow
def test_the_examples_decide_as_predict(project, capsys):
    capsys.readouterr()
    assert main(["predict", "--root", str(project.root), "--json", "a.png", "b.png"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    Path("decide.py").write_text(_example("python"))
    done = subprocess.run([sys.executable, "decide.py", "a.png", "b.png"], capture_output=True, text=True, check=True)
    _check(done.stdout.splitlines(), predicted)
    if shutil.which("node") is None or not NODE_MODULES:
        pytest.skip("the JavaScript example needs node, and UDC_NODE_MODULES with onnxruntime-node and sharp")
    Path("node_modules").symlink_to(NODE_MODULES)
    Path("decide.mjs").write_text(_example("js"))
    outcomes = json.dumps(["a", "b", "ç", "refer"])
    done = subprocess.run(
        ["node", "decide.mjs", outcomes, "a.png", "b.png"], capture_output=True, text=True, check=True
    )
    _check(done.stdout.splitlines(), predicted)
