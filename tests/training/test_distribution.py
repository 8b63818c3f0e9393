"""Training runs in several processes give the result of a single process.

One test starts them by the real torchrun; the others fork them from a process that has imported torch, which takes a
tenth of the time.
"""

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

# Trains on the synthetic images of test_checkpoints; each process writes its losses, images and result.
WORKER = """
import hashlib, json, sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import test_checkpoints as data
from udc_model.config import LossParams, Params, TrainParams
from udc_model.data.batches import TrainingBatches
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.models import build_model
from udc_model.training import loop
from udc_model.training.checkpoints import open_checkpoints
from udc_model.training.distribution import process_group
from udc_model.training.hardware import pick_hardware
from udc_model.training.members import joint_result, member_params, train_members, trained_model
from udc_model.training.session import TrainingSession
from udc_model.training.training_loss import TrainingLoss

kind, options, loss, last = sys.argv[3], json.loads(sys.argv[4]), json.loads(sys.argv[5]), int(sys.argv[6])
prune = int(sys.argv[7])
is_grey = kind == "grey"
model_params = data.MODELS["resnet" if is_grey else kind]
if is_grey:
    grey = model_params.resnet.model_copy(update={"num_channels": 1})
    model_params = model_params.model_copy(update={"resnet": grey})
if kind == "convnext":
    plain = model_params.convnext.model_copy(update={"drop_path_rate": 0.0})
    model_params = model_params.model_copy(update={"convnext": plain})
params, losses, images = TrainParams(**options), [], []
train_step, local_images = loop.train_step, TrainingBatches._local
def recorded_step(session, batch, key):
    losses.append(train_step(session, batch, key))
    return losses[-1]
def recorded_images(self, epoch, step):
    indices, repeats = local_images(self, epoch, step)
    if step >= 0 and (epoch, step) not in [entry[:2] for entry in images]:
        images.append((epoch, step, indices[int(self.overlap):].tolist()))
    return indices, repeats
loop.train_step, TrainingBatches._local = recorded_step, recorded_images
def split(n, seed):
    images = data.synthetic_split(n, seed)
    return replace(images, images=images.images[..., :1]) if is_grey else images
grey = Preprocessing(16, mean=(0.5,), std=(0.5,), decoding=Decoding(channels=1))
preprocessing = grey if is_grey else Preprocessing(16)
def on_epoch(record):
    if record.epoch == last:
        raise SystemExit(7)
    return prune and ranks.is_first and record.epoch == prune
with process_group() as ranks, ExitStack() as stack:
    checkpoints = None
    if ranks.is_first:
        checkpoints = stack.enter_context(open_checkpoints(Path(sys.argv[2]).parent, {"kind": kind}, 1e-9))
    def session_of(number):
        member = member_params(Params(train=params, seed=1), number)
        loss_fn = TrainingLoss(LossParams(**loss), torch.tensor([[0.0, 1, 4], [1, 0, 1], [2, 1, 0]]), [13, 13, 24])
        return TrainingSession(
            build_model(model_params, data.CLASSES, member.seed), loss_fn, split(50, 0), split(31, 9),
            preprocessing, member, pick_hardware(params), ranks)
    results = train_members(session_of, params.members, checkpoints, on_epoch)
    model = trained_model(build_model(model_params, data.CLASSES, 1), results)
    margins = joint_result(results).margins
    out = {"margins": margins.values.astype(float).tolist(), "rivals": margins.rivals.tolist(),
           "sha256": data.sha256_of_tensors(model.state_dict()), "curves": joint_result(results).curves,
           "losses": losses, "images": images, "is_stopped": results[-1].is_stopped,
           "temperatures": [result.temperature for result in results]}
    Path(sys.argv[2], f"{ranks.rank}.json").write_text(json.dumps(out))
"""
PLAIN = {"epochs": 5, "batch_size": 13, "optimizer": "sgd", "learning_rate": 0.05, "augment": "light", "device": "cpu",
         "precision": "fp32"}  # fmt: skip


# Forks the processes of one training run for each line of its input, and prints their exit statuses.
FORK_SERVER = """
import json, os, runpy, socket, sys, traceback
sys.path.insert(0, sys.argv[1])
import test_checkpoints, torch._dynamo
def work(rank, arguments, environment):
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        return ended.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
for line in sys.stdin:
    processes, arguments, log = json.loads(line)
    environment = {}
    if processes > 1:  # as torchrun sets it
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        environment = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                       "TORCHELASTIC_RUN_ID": "test"}
    forked = []
    for rank in range(processes):
        forked.append(os.fork())
        if not forked[-1]:
            sys.stdout = sys.stderr = open(log, "a")
            status = work(rank, arguments, environment)
            sys.stderr.flush()
            os._exit(status)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in forked]
    print(json.dumps(statuses), flush=True)
"""


@pytest.fixture(scope="module")
def fork():
    """A function that runs a script in several new processes; their exit statuses and their output."""
    command = [sys.executable, "-c", FORK_SERVER, str(TESTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def run(processes, arguments, log):
            server.stdin.write(json.dumps([processes, arguments, str(log)]) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline()), log.read_text()

        yield run


def _torchrun(processes, arguments, log):
    """As `fork`, by the real torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env=os.environ)
    return [done.returncode], done.stderr


@pytest.fixture
def train(tmp_path, fork):
    """A function that trains in several processes and returns what each of them wrote.

    ``last`` is an epoch after which the processes fail, ``prune`` one after which the first ends the training run.
    """
    (tmp_path / "worker.py").write_text(WORKER)

    def run(processes, kind, options, loss=None, last=0, prune=0, start=fork):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        arguments = [str(tmp_path / "worker.py"), str(TESTS), str(out), kind, json.dumps(options),
                     json.dumps(loss or {}), str(last), str(prune)]  # fmt: skip
        statuses, output = start(processes, arguments, out / "log")
        if last:
            assert statuses == [7] * processes, output
            return None
        assert not any(statuses), output
        return [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]

    return run


def _shared(result):
    """What is equal in all processes."""
    return {key: value for key, value in result.items() if key != "images"}


def test_two_processes_give_the_result_of_one(train):
    """ConvNeXt, 20 steps, a batch of odd size, weighted classes, mixtures, accumulation; 31 validation images."""
    options = PLAIN | {"mixup": 0.4, "accumulation": 2, "clip_grad_norm": 1.0}
    weighted = {"class_weights": "balanced"}
    (single,) = train(1, "convnext", options, weighted)
    pair = train(2, "convnext", options, weighted, start=_torchrun)
    assert len(single["losses"]) == 20
    assert _shared(pair[0]) == _shared(pair[1])
    assert pair[0]["losses"] == pytest.approx(single["losses"], rel=1e-4)
    assert np.allclose(pair[0]["margins"], single["margins"], rtol=0.002, atol=0.002)  # in half precision
    assert np.mean(np.equal(pair[0]["rivals"], single["rivals"])) > 0.98
    for row, expected in zip(pair[0]["curves"], single["curves"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
        assert row["validation_accuracy"] == expected["validation_accuracy"]
    for batch, first, second in zip(single["images"], pair[0]["images"], pair[1]["images"], strict=True):
        assert first[2] + second[2] == batch[2]


def test_processes_train_on_grey_images(train):
    pair = train(2, "grey", PLAIN | {"epochs": 1})
    assert _shared(pair[0]) == _shared(pair[1])


def test_first_process_ends_the_training_run_of_all(train):
    pair = train(2, "resnet", PLAIN, prune=2)
    assert [result["is_stopped"] for result in pair] == [True, True]
    assert [len(result["curves"]) for result in pair] == [2, 2]


def test_three_processes_give_the_same_bits_each_time(train):
    """With BatchNorm, averaged weights and every kind of random draw; all processes have the same result."""
    options = PLAIN | {"epochs": 2, "ema_decay": 0.9, "augment": "strong", "cutmix": 1.0, "optimizer": "adamw",
                       "sampling_power": 0.5, "max_minutes": 60}  # fmt: skip
    first = train(3, "resnet", options, {"name": "seesaw"})
    again = train(3, "resnet", options, {"name": "seesaw"})
    assert first == again
    assert len({result["sha256"] for result in first}) == 1
    assert first[0]["curves"] == first[2]["curves"]


def test_sharded_model_gives_the_result_of_one_process_and_resumes(train):
    """ConvNeXt with averaged weights, sharded over two processes; stopped after the second epoch and resumed."""
    options = PLAIN | {"optimizer": "adamw", "learning_rate": 0.003, "ema_decay": 0.9, "accumulation": 2,
                       "clip_grad_norm": 1.0, "num_frozen_stages": 1, "sharded": True, "epochs": 3}  # fmt: skip
    (single,) = train(1, "convnext", options | {"sharded": False})
    pair = train(2, "convnext", options)
    assert _shared(pair[0]) == _shared(pair[1])
    assert pair[0]["losses"] == pytest.approx(single["losses"], rel=1e-4)
    for row, expected in zip(pair[0]["curves"], single["curves"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert train(2, "convnext", options, last=2) is None
    resumed = train(2, "convnext", options)
    assert len(resumed[0]["losses"]) == len(pair[0]["losses"]) // 3
    for name in ("sha256", "curves", "margins", "rivals"):
        assert resumed[0][name] == pair[0][name]


@pytest.mark.parametrize("sharded", [False, True])
def test_processes_with_a_frozen_network_give_the_result_of_one_on_features(sharded, train):
    options = PLAIN | {"num_frozen_stages": "all", "optimizer": "adamw", "epochs": 2, "augment": "none"}
    (single,) = train(1, "resnet", options)
    pair = train(2, "resnet", options | {"sharded": sharded})
    assert _shared(pair[0]) == _shared(pair[1])
    assert pair[0]["losses"] == pytest.approx(single["losses"], rel=1e-4)
    for row, expected in zip(pair[0]["curves"], single["curves"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sharded", [False, True])
def test_ensemble_gives_the_result_of_one_process_and_resumes_in_its_second_member(sharded, train):
    """Stopped after the first epoch of the second member; the first is not trained again."""
    options = PLAIN | {"optimizer": "adamw", "learning_rate": 0.003, "ema_decay": 0.9, "epochs": 2, "members": 2}
    (single,) = train(1, "convnext", options)
    options["sharded"] = sharded
    pair = train(2, "convnext", options)
    assert _shared(pair[0]) == _shared(pair[1])
    assert pair[0]["temperatures"] == pytest.approx(single["temperatures"], rel=1e-2)
    for row, expected in zip(pair[0]["curves"], single["curves"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert [(row["member"], row["epoch"]) for row in single["curves"]] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert train(2, "convnext", options, last=3) is None
    resumed = train(2, "convnext", options)
    assert len(resumed[0]["losses"]) == len(pair[0]["losses"]) // 4
    for name in ("sha256", "curves", "temperatures", "margins", "rivals"):
        assert resumed[0][name] == resumed[1][name] == pair[0][name]


def test_batch_smaller_than_the_number_of_processes_raises(train):
    with pytest.raises(AssertionError, match=r"train\.batch_size: 2 processes cannot share a batch of 1; raise"):
        train(2, "resnet", PLAIN | {"batch_size": 1})


@pytest.mark.parametrize(("n", "world"), [(7, 3), (2, 4), (0, 2), (12, 4)])
def test_parts_are_consecutive_and_complete(n, world):
    parts = [np.arange(n)[Ranks(rank, world).part(n)] for rank in range(world)]
    assert np.concatenate(parts).tolist() == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_single_process_exchanges_nothing():
    ranks, rows = Ranks(), np.ones((2, 3), np.float32)
    assert (ranks.sum(1.5), ranks.gather(rows, 2) is rows, ranks.from_first(b"x")) == (1.5, True, b"x")
    model = torch.nn.Linear(1, 1)
    assert ranks.parallel(model, torch.device("cpu"), torch.zeros(1, 1)) is model
