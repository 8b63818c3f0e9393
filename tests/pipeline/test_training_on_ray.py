"""train.engine: ray on a real Ray of this machine: kills change no bit of the model.

``UDC_RAY_KILLS=10`` kills ten times in one training run, instead of twice.
"""

import importlib.util
import os
import signal

import psutil
import pytest

from udc_model.files import sha256_of
from udc_model.ray_cluster import RETRIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.pipeline,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra [ray])"),
]

KILLS = int(os.environ.get("UDC_RAY_KILLS", "2"))
VICTIMS = ("-m udc_model.stages.train", "RayTrainWorker")  # words of their command lines


def _kill(process, words):
    """Kill one of the processes below another one whose command line has these words."""
    for child in process.children(recursive=True):
        try:
            if words in " ".join(child.cmdline()):
                child.kill()
                return
        except psutil.Error:  # it has ended meanwhile
            continue
    raise AssertionError(f"{words} is not running")


def test_kills_of_a_process_and_of_a_worker_change_no_bit(small_project):
    project = small_project(train={"epochs": 20 + 10 * KILLS, "batch_size": 12, "processes": 2})
    project.run("dvc", "repro", "-q", "train", OMP_NUM_THREADS="1")
    weights = project.root / "model/model.safetensors"
    expected = sha256_of(weights)
    weights.unlink()
    project.set_params(train={"engine": "ray"})
    resolved = (project.root / "resolved/train.yaml").read_bytes()
    project.run("dvc", "repro", "-q", "resolve")
    assert (project.root / "resolved/train.yaml").read_bytes() == resolved  # the engine changes no result
    kills, printed = 0, []
    while not weights.exists():  # Ray tries six times, then the same command resumes
        assert len(printed) <= kills // RETRIES, "".join(printed)
        training = project.start("udc", "train", OMP_NUM_THREADS="1")
        printed.append("")
        for line in training.stdout:
            printed[-1] += line
            if kills < KILLS and line.startswith(f"epoch {3 + 9 * kills}:"):
                _kill(psutil.Process(training.pid), VICTIMS[kills % 2])
                kills += 1
        assert training.wait() == (0 if weights.exists() else 1), printed[-1]
    assert kills == KILLS
    assert sum(output.count("resuming after epoch") for output in printed) == KILLS
    assert sha256_of(weights) == expected
    assert not list((project.root / ".udc").glob(".ray*"))
    (run, _) = sorted(project.runs(), key=lambda each: each.info.start_time)[-2:]
    assert run.info.status == "FINISHED"


def test_ctrl_c_ends_after_an_epoch_and_the_same_command_resumes(small_project):
    project = small_project(train={"epochs": 60, "batch_size": 12, "processes": 2, "engine": "ray"})
    project.run("dvc", "repro", "-q", "resolve")
    training = project.start("udc", "train", OMP_NUM_THREADS="1")
    printed = []
    for line in training.stdout:
        printed.append(line)
        if line.startswith("epoch 2:"):
            training.send_signal(signal.SIGINT)
    assert training.wait() == 130, "".join(printed)
    assert any("whose checkpoint is stored; `udc train` resumes from it" in line for line in printed), "".join(printed)
    assert not list((project.root / "model").glob("*"))
