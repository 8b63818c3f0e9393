"""Hostile and damaged model folders are refused in one line, before PyTorch is imported or much memory is used.

``UDC_FAULTS=all`` runs 300 of them, each in a process of its own.
"""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udc_model.config import ModelParams
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.files import Workspace

_spec = spec_from_file_location("hostile_models", Path(__file__).with_name("hostile_models.py"))
_module = module_from_spec(_spec)
_spec.loader.exec_module(_module)
hostile_models = _module.hostile_models

_QUICK, _ALL = 30, 300
_MEMORY = 300 * 2**20  # bytes
_PREDICT = """
import re, sys
from udc_model.cli import main
status = main(sys.argv[1:])
kilobytes = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
sys.stderr.write(f"{'torch' in sys.modules} {kilobytes}\\n")
sys.exit(status)
"""
_OPEN = """
import json, re, sys
from pathlib import Path
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.inference.prediction import predict
from udc_model.inference.stored_model import open_stored
for name in sys.argv[1:]:
    try:
        open_stored(Workspace(Path(name)))
        message = None
    except UdcError as error:
        message = str(error)
    print(json.dumps(message))
kilobytes = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(json.dumps({"torch": "torch" in sys.modules, "bytes": 1024 * int(kilobytes)}))
"""


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A valid folder of each architecture."""
    from udc_model.models import Ensemble, build_model

    folders = {}
    common = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    resnet = {"embedding_size": 8, "layer_type": "basic"}
    for kind, block in (("resnet", resnet), ("convnext", {"num_stages": 2}), ("ensemble", resnet)):
        workspace = Workspace(tmp_path_factory.mktemp(kind))
        workspace.model.mkdir()
        workspace.evaluation.mkdir()
        network = "resnet" if kind == "ensemble" else kind
        params = ModelParams.model_validate({"model_type": network, network: common | block})
        model, second = (build_model(params, ["a", "b"], seed) for seed in range(2))
        if kind == "ensemble":
            model = Ensemble.of_members(model.config, [1.0, 0.5], [model.state_dict(), second.state_dict()])
        model.save_pretrained(workspace.model)
        Preprocessing(8).save(workspace.model)
        policy = Policy(["a", "b"], (1 - np.eye(2)).tolist(), training_prior=[0.5, 0.5])
        (workspace.evaluation / "policy.json").write_text(policy.to_json())
        folders[kind] = workspace.root
    return folders


def _check_message(message, folder):
    """One line that begins with the file, or the folder in which two files differ, and is short."""
    assert message is not None, "accepted"
    assert "\n" not in message
    assert message.startswith(str(folder))
    assert len(message) < 1000 + 10 * len(str(folder))
    assert not re.search(r"Traceback|Error\(|pydantic", message)


def test_valid_folders_are_accepted(valid):
    from udc_model.inference.stored_model import open_stored

    for folder in valid.values():
        assert open_stored(Workspace(folder)).model.classes == ["a", "b"]


def test_hostile_folders_are_refused_before_torch_in_little_memory(valid, tmp_path):
    names, folders = [], []
    for number, (name, write) in enumerate(islice(hostile_models(valid), _QUICK)):
        names.append(name)
        folders.append(write(tmp_path / str(number)))
    out = subprocess.run([sys.executable, "-c", _OPEN, *map(str, folders)], capture_output=True, text=True, check=True)
    *messages, process = map(json.loads, out.stdout.splitlines())
    assert process["torch"] is False
    assert process["bytes"] < _MEMORY
    for name, folder, message in zip(names, folders, messages, strict=True):
        sys.stderr.write(f"{name}\n    {message}\n")
        _check_message(message, folder)


def test_there_are_enough_hostile_folders(valid):
    assert len(list(hostile_models(valid))) >= _ALL


@pytest.mark.skipif(os.environ.get("UDC_FAULTS") != "all", reason="takes minutes; UDC_FAULTS=all runs it")
def test_all_hostile_folders_are_refused_by_predict(valid, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    elapsed, seconds, memory = [], [], []
    for number, (name, write) in enumerate(islice(hostile_models(valid, seed=1), _ALL)):
        folder = write(tmp_path / str(number))
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-c", _PREDICT, "predict", "--root", str(folder), str(tmp_path / "image.png")]
        out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        elapsed.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (out.returncode, out.stdout) == (1, ""), (name, out.stderr)
        error, process = out.stderr.splitlines()
        has_torch, kilobytes = process.split()
        assert has_torch == "False", (name, error)
        memory.append(1024 * int(kilobytes))
        _check_message(error.removeprefix("error: "), folder)
    report = (f"{_ALL} hostile model folders refused: CPU median {statistics.median(seconds):.2f} s, most "
              f"{max(seconds):.2f} s; elapsed median {statistics.median(elapsed):.2f} s, longest {max(elapsed):.2f} s; "
              f"peak memory {max(memory) / 2**20:.0f} MiB")  # fmt: skip
    sys.stderr.write(report + "\n")
    assert statistics.median(seconds) < 1, report
    assert max(memory) < _MEMORY, report
