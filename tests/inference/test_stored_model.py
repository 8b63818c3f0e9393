"""A model and its policy are read together: of one version, and only if they belong together."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from udc_model.checksums import write_checksums
from udc_model.cli import main
from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.files import Workspace, only_writer, read_consistently, sha256_of
from udc_model.inference.stored_model import open_stored
from udc_model.model_files.folder import CONFIG, PREPROCESSOR, WEIGHTS
from udc_model.models import build_model

EXCHANGES = 150
# Exchanges a folder with another one, again and again, as `atomic_folder` does.
WRITER = """
import shutil, sys
from pathlib import Path
from udc_model.files import atomic_folder
target, sources = Path(sys.argv[1]), sys.argv[2:4]
print("ready", flush=True)
for k in range(int(sys.argv[4])):
    with atomic_folder(target) as folder:
        shutil.copytree(sources[k % 2], folder, dirs_exist_ok=True)
"""


def _write(root, classes, seed):
    """A model, whose classes and weights depend on the arguments, and its policy."""
    workspace = Workspace(root)
    workspace.model.mkdir(parents=True)
    workspace.evaluation.mkdir()
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    build_model(ModelParams(resnet=resnet), classes, seed).save_pretrained(workspace.model)
    Preprocessing(8).save(workspace.model)
    policy = Policy(classes, (1 - np.eye(2)).tolist(), model_sha256=sha256_of(workspace.model / WEIGHTS))
    (workspace.evaluation / "policy.json").write_text(policy.to_json())
    return workspace


@pytest.fixture
def workspace(tmp_path):
    return _write(tmp_path / "work", ["a", "b"], 0)


@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_reader_beside_a_writer_never_mixes_two_models(workspace, tmp_path, has_checksums):
    """Both models fit the policy: without the check, a reader would combine settings of one with weights of another."""
    (workspace.evaluation / "policy.json").write_text(Policy(["a", "b"], (1 - np.eye(2)).tolist()).to_json())
    other = _write(tmp_path / "other", ["a", "b"], 1).model
    settings = json.loads((other / CONFIG).read_text()) | {"problem_type": "regression"}
    (other / CONFIG).write_text(json.dumps(settings))
    if has_checksums:
        for folder in (workspace.model, other):
            write_checksums(folder, [CONFIG, PREPROCESSOR, WEIGHTS])
    first = shutil.copytree(workspace.model, tmp_path / "first")
    kinds = {(first / WEIGHTS).read_bytes(): None, (other / WEIGHTS).read_bytes(): "regression"}
    command = [sys.executable, "-c", WRITER, str(workspace.model), str(first), str(other), str(EXCHANGES)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    seen = set()
    while writer.poll() is None:
        stored = open_stored(workspace).model
        assert stored.architecture.problem_type == kinds[stored.weights]
        seen.add(stored.architecture.problem_type)
    assert writer.returncode == 0
    assert seen == {None, "regression"}


def test_reading_is_repeated_if_a_folder_was_replaced_meanwhile(tmp_path):
    target, counts = tmp_path / "model", []
    target.mkdir()

    def read():
        counts.append(len(counts))
        if len(counts) < 3:
            shutil.rmtree(target)
            target.mkdir()
        if len(counts) == 1:
            raise UdcError("a file is missing")
        return counts[-1]

    assert read_consistently([target], read) == 2


def test_an_error_is_raised_at_once_if_no_folder_was_replaced(tmp_path):
    calls = []

    def read():
        calls.append(1)
        raise UdcError("damaged")

    with pytest.raises(UdcError, match=r"^damaged$"):
        read_consistently([tmp_path], read)
    assert len(calls) == 1


def test_a_policy_of_another_model_is_refused(workspace, tmp_path, capsys, caplog):
    other = _write(tmp_path / "other", ["a", "b"], 1)
    shutil.copy(other.model / WEIGHTS, workspace.model / WEIGHTS)
    assert main(["predict", "--root", str(workspace.root), str(tmp_path)]) == 1
    assert "policy.json: was fitted for another model" in caplog.text
    assert caplog.text.strip().endswith("run evaluate (dvc repro)")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model", "evaluation"])
def test_a_missing_folder_is_explained_by_the_command_that_writes_it(workspace, name, monkeypatch):
    shutil.rmtree(workspace.root / name)
    with pytest.raises(UdcError, match=rf"{name}/\w+\.json: no such file"):
        open_stored(workspace)
    message = rf"{name}: is missing while train\.py \(process {os.getpid()}\) runs; try again when it has ended$"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with only_writer(workspace), pytest.raises(UdcError, match=message):
        open_stored(workspace)
    with pytest.raises(UdcError, match="no such file"):
        open_stored(workspace)


def test_the_model_runs_in_the_precision_of_its_policy(workspace):
    path = workspace.evaluation / "policy.json"
    assert open_stored(workspace).load().precision == "fp32"
    path.write_text(replace(Policy.load(path), precision="bf16", flip_averaging=True).to_json())
    classifier = open_stored(workspace).load()
    assert (classifier.precision, classifier.flip_averaging) == ("bf16", True)
    path.write_text(path.read_text().replace("bf16", "int3"))
    with pytest.raises(UdcError, match=r"policy.json: precision: got 'int3'; allowed: fp32, fp32_fused, bf16"):
        open_stored(workspace)
