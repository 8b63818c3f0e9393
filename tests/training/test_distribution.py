"""Several processes in one training run, started by the real torchrun: they compute what one process computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from udc_model.training.distribution import Ranks

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent

# Trains on the synthetic images of test_checkpoint; each process writes what it computed.
WORKER = """
import hashlib, json, sys
from contextlib import ExitStack
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import test_checkpoints as data
from udc_model.training.losses import TrainingLoss
from udc_model.data.batches import TrainingBatches
from udc_model.data.transforms import Preprocessing
from udc_model.models import build_model
from udc_model.config import LossParams, TrainParams
from udc_model.training import loop
from udc_model.training.checkpoints import open_checkpoints
from udc_model.training.distribution import process_group
from udc_model.training.hardware import pick_hardware
from udc_model.training.session import TrainingSession

kind, options, loss, last = sys.argv[3], json.loads(sys.argv[4]), json.loads(sys.argv[5]), int(sys.argv[6])
model_params = data.MODELS[kind]
if kind == "convnext":
    plain = model_params.convnext.model_copy(update={"drop_path_rate": 0.0})
    model_params = model_params.model_copy(update={"convnext": plain})
params, steps, seen = TrainParams(**options), [], []
step, local = loop.train_step, TrainingBatches._local
def record(session, batch, key):
    steps.append(step(session, batch, key))
    return steps[-1]
def count(self, epoch, number):
    indices, repeats = local(self, epoch, number)
    if number >= 0 and (epoch, number) not in [entry[:2] for entry in seen]:
        seen.append((epoch, number, indices[int(self.overlap):].tolist()))
    return indices, repeats
loop.train_step, TrainingBatches._local = record, count
def stop(record):
    if record.epoch == last:
        raise SystemExit(7)
    return False
with process_group() as ranks, ExitStack() as stack:
    checkpoints = None
    if ranks.is_first:
        checkpoints = stack.enter_context(open_checkpoints(Path(sys.argv[2]).parent, {"kind": kind}, 1e-9))
    model = build_model(model_params, data.CLASSES, 1)
    loss_fn = TrainingLoss(LossParams(**loss), torch.tensor([[0.0, 1, 4], [1, 0, 1], [2, 1, 0]]), [13, 13, 24])
    session = TrainingSession(model, data._split(50, 0), data._split(31, 9), Preprocessing(16), loss_fn, params, 1,
                              pick_hardware(params), None, checkpoints, stop, ranks)
    result = loop.train_model(session)
    out = {"sha256": data._sha256(result.best_state), "curves": result.curves, "steps": steps, "seen": seen}
    Path(sys.argv[2], f"{ranks.rank}.json").write_text(json.dumps(out))
"""
PLAIN = {"epochs": 5, "batch_size": 13, "optimizer": "sgd", "learning_rate": 0.05, "augment": "light", "device": "cpu",
         "precision": "fp32"}  # fmt: skip


@pytest.fixture
def train(tmp_path):
    """A function that trains in several processes, up to an epoch if one is given; returns the result of each."""
    (tmp_path / "worker.py").write_text(WORKER)

    def run(processes, kind, options, loss=None, last=0):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(torchrun if processes > 1 else []), str(tmp_path / "worker.py"), str(TESTS),
                   str(out), kind, json.dumps(options), json.dumps(loss or {}), str(last)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if last:
            assert "exitcode  : 7" in done.stderr, done.stderr
            return None
        assert done.returncode == 0, done.stderr
        return [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]

    return run


def _own_state(found):
    return {key: value for key, value in found.items() if key != "seen"}


def test_two_processes_compute_what_one_does(train):
    """ConvNeXt, 20 steps, a batch of odd size, weighted classes, mixtures, accumulation; 31 validation images."""
    options = PLAIN | {"mixup": 0.4, "accumulation": 2, "clip_grad_norm": 1.0}
    weighted = {"class_weights": "balanced"}
    (alone,) = train(1, "convnext", options, weighted)
    pair = train(2, "convnext", options, weighted)
    assert len(alone["steps"]) == 20
    assert _own_state(pair[0]) == _own_state(pair[1])
    assert pair[0]["steps"] == pytest.approx(alone["steps"], rel=1e-4)
    for row, expected in zip(pair[0]["curves"], alone["curves"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
        assert row["validation_accuracy"] == expected["validation_accuracy"]
    # each step has the same images, none of them twice
    for whole, first, second in zip(alone["seen"], pair[0]["seen"], pair[1]["seen"], strict=True):
        assert first[2] + second[2] == whole[2]


def test_three_processes_give_the_same_bits_each_time(train):
    """With BatchNorm, averaged weights and every kind of random draw; all processes get the same result."""
    options = PLAIN | {"epochs": 2, "ema_decay": 0.9, "augment": "strong", "cutmix": 1.0, "optimizer": "adamw",
                       "sampling_power": 0.5, "max_minutes": 60}  # fmt: skip
    first = train(3, "resnet", options, {"name": "seesaw"})
    again = train(3, "resnet", options, {"name": "seesaw"})
    assert first == again
    assert len({found["sha256"] for found in first}) == 1
    assert first[0]["curves"] == first[2]["curves"]


def test_a_sharded_model_is_the_same_model_and_resumes(train):
    """ConvNeXt's weights and averages split over two processes; stopped after the second epoch."""
    options = PLAIN | {"optimizer": "adamw", "learning_rate": 0.003, "ema_decay": 0.9, "accumulation": 2,
                       "clip_grad_norm": 1.0, "num_frozen_stages": 1, "sharded": True, "epochs": 3}  # fmt: skip
    (alone,) = train(1, "convnext", options | {"sharded": False})
    pair = train(2, "convnext", options)
    assert _own_state(pair[0]) == _own_state(pair[1])
    assert pair[0]["steps"] == pytest.approx(alone["steps"], rel=1e-4)
    for row, expected in zip(pair[0]["curves"], alone["curves"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert train(2, "convnext", options, last=2) is None
    rest = train(2, "convnext", options)
    assert len(rest[0]["steps"]) == len(pair[0]["steps"]) // 3
    assert (rest[0]["sha256"], rest[0]["curves"]) == (pair[0]["sha256"], pair[0]["curves"])


def test_a_batch_smaller_than_the_number_of_processes_is_refused(train):
    with pytest.raises(AssertionError, match="2 processes cannot share a batch of 1; raise"):
        train(2, "resnet", PLAIN | {"batch_size": 1})


@pytest.mark.parametrize(("n", "world"), [(7, 3), (2, 4), (0, 2), (12, 4)])
def test_parts_are_consecutive_and_complete(n, world):
    parts = [np.arange(n)[Ranks(rank, world).part(n)] for rank in range(world)]
    assert np.concatenate(parts).tolist() == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_sends_nothing():
    ranks, rows = Ranks(), np.ones((2, 3), np.float32)
    assert (ranks.sum(1.5), ranks.gather(rows, 2) is rows, ranks.from_first(b"x")) == (1.5, True, b"x")
    model = torch.nn.Linear(1, 1)
    assert ranks.parallel(model, torch.device("cpu"), torch.zeros(1, 1)) is model
