"""train.engine: ray on a real Ray of this machine: kills change no bit of the model."""

import importlib.util
import signal

import psutil
import pytest

from udc_model.files import sha256_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.pipeline,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra [ray])"),
]


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
    project = small_project(train={"epochs": 40, "batch_size": 12, "processes": 2})
    project.run("dvc", "repro", "-q", "train", OMP_NUM_THREADS="1")
    weights = project.root / "model/model.safetensors"
    expected = sha256_of(weights)
    weights.unlink()
    project.set_params(train={"engine": "ray"})
    resolved = (project.root / "resolved/train.yaml").read_bytes()
    project.run("dvc", "repro", "-q", "resolve")
    assert (project.root / "resolved/train.yaml").read_bytes() == resolved  # the engine changes no result
    training = project.start("udc", "train", OMP_NUM_THREADS="1")
    victims = {3: "-m udc_model.stages.train", 12: "RayTrainWorker"}
    printed = []
    for line in training.stdout:
        printed.append(line)
        if line.startswith("epoch ") and (words := victims.pop(int(line.split()[1].rstrip(":")), None)):
            _kill(psutil.Process(training.pid), words)
    assert training.wait() == 0, "".join(printed)
    assert not victims
    assert sum(line.startswith("resuming after epoch") for line in printed) == 2
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
