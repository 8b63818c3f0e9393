"""Exact resume: a training run killed at any line, or during a write, ends with the bits of one never killed."""

import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from udc_model.config import ConvNextParams, LossParams, ModelParams, ResNetParams, TrainParams
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training import checkpoints, loop, state
from udc_model.training.checkpoints import CHECKPOINTS, open_checkpoints
from udc_model.training.hardware import pick_hardware
from udc_model.training.losses import TrainingLoss
from udc_model.training.session import TrainingSession

pytestmark = pytest.mark.slow

TRIALS = int(os.environ.get("UDC_KILL_TRIALS", "3"))  # two kills each
CLASSES = ["a", "b", "c"]
MODELS = {
    "resnet": ModelParams(
        resnet=ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "convnext": ModelParams(
        model_type="convnext",
        convnext=ConvNextParams(patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], drop_path_rate=0.2,
                                layer_scale_init_value=0.1),
    ),
}  # fmt: skip
TRAIN = {"epochs": 3, "batch_size": 16, "augment": "strong", "horizontal_flip": True, "mixup": 0.2, "cutmix": 1.0,
         "accumulation": 2, "ema_decay": 0.9, "sampling_power": 0.5, "checkpoint_minutes": 1e-9,
         "device": "cpu", "precision": "fp32"}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread, as in the processes that are killed: sums may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _split(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.minimum(np.arange(n) % 4, 2)
    images = rng.integers(0, 100, (n, 16, 16, 3), dtype=np.uint8)
    images[labels == 1, 4:12, 4:12] += 120
    return PackedSplit(images, labels, [f"{i}.png" for i in range(n)], [""] * n, [""] * n)


def _sha256(tensors):
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _train(root, kind, options=None, loss="cross_entropy"):
    """Run a training run, or the rest of one; returns its result and the epochs that it reported."""
    params, reported = TrainParams(**TRAIN | (options or {})), []
    model = build_model(MODELS[kind], CLASSES, 1)
    loss_fn = TrainingLoss(LossParams(name=loss), torch.ones(3, 3) - torch.eye(3), [13, 13, 24])
    inputs = {"kind": kind, "params": params.model_dump()}
    with open_checkpoints(root, inputs, params.checkpoint_minutes) as checkpoints:
        session = TrainingSession(model, _split(50, 0), _split(30, 9), Preprocessing(16), loss_fn, params, 1,
                                  pick_hardware(params), checkpoints=checkpoints,
                                  on_epoch=lambda record: reported.append(record.epoch) or False)  # fmt: skip
        result = loop.train_model(session)
    return {"sha256": _sha256(result.best_state), "curves": result.curves, "reported": reported}


def _die_at_line(n):
    """SIGKILL this process at the n-th executed line of the training code; returns the line counter."""
    files, count = {module.__file__ for module in (loop, state, checkpoints)}, [0]

    def local(frame, event, argument):
        if event == "line":
            count[0] += 1
            if count[0] == n:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    sys.settrace(lambda frame, event, argument: local if frame.f_code.co_filename in files else None)
    return count


def _die_while_writing(n):
    """SIGKILL this process when half of the n-th checkpoint is written."""
    write, count = checkpoints.save_file, [0]

    def half(tensors, path, metadata):
        write(tensors, path, metadata)
        count[0] += 1
        if count[0] == n:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_file = half


def _life(root, kind, options, out, line, write):
    """One life of a training run, in a process of its own."""
    torch.set_num_threads(1)
    count = _die_at_line(line)
    _die_while_writing(write)
    result = _train(root, kind, options)
    out.write_text(json.dumps(result | {"lines": count[0]}))


@pytest.fixture(scope="module")
def live():
    """A function that runs `_life`; returns its result, or None if it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["udc_model.training.loop"])

    def run(root, kind, options=None, line=-1, write=-1):
        out = root / "result.json"
        out.unlink(missing_ok=True)
        process = context.Process(target=_life, args=(root, kind, options, out, line, write))
        process.start()
        process.join()
        if process.exitcode == 0:
            return json.loads(out.read_text())
        assert process.exitcode == -signal.SIGKILL
        return None

    return run


@pytest.fixture(scope="module")
def unkilled(live, tmp_path_factory):
    return {kind: live(tmp_path_factory.mktemp("unkilled"), kind) for kind in MODELS}


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_run_killed_twice_has_the_same_bits(trial, live, unkilled, tmp_path):
    kind, draw = list(MODELS)[trial % 2], random.Random(trial)
    expected = unkilled[kind]
    first = {"write": draw.randint(1, 12)} if trial % 3 == 2 else {"line": draw.randint(1, expected["lines"] - 40)}
    assert live(tmp_path, kind, **first) is None
    live(tmp_path, kind, line=draw.randint(1, expected["lines"] // 2))  # it may finish before that line
    found = live(tmp_path, kind) or {}
    assert found["sha256"] == expected["sha256"]
    assert found["curves"] == expected["curves"]
    assert not list((tmp_path / CHECKPOINTS).glob("*/*"))  # deleted after success


@pytest.mark.parametrize("options", [{"optimizer": "sgd", "schedule": "one_cycle"}, {"early_stopping_patience": 1}])
def test_other_optimisers_and_early_stopping_resume_too(options, live, tmp_path):
    expected = live(tmp_path, "resnet", options)
    assert live(tmp_path, "resnet", options, write=5) is None
    found = live(tmp_path, "resnet", options)
    assert (found["sha256"], found["curves"]) == (expected["sha256"], expected["curves"])
    assert found["reported"][0] == 1  # the last epoch before the kill is reported again


def test_the_counts_of_a_loss_are_restored(tmp_path, monkeypatch):
    expected = _train(tmp_path, "resnet", loss="seesaw")
    _interrupted(monkeypatch, tmp_path, at=7, loss="seesaw")
    assert _train(tmp_path, "resnet", loss="seesaw") == expected | {"reported": [1, 2, 3]}


def _interrupted(monkeypatch, root, at, **options):
    """Interrupt a training run in a step; returns its checkpoints."""
    step, count = loop.train_step, [0]

    def interrupt(*arguments):
        count[0] += 1
        if count[0] == at:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _train(root, "resnet", **options)
    monkeypatch.setattr(loop, "train_step", step)
    return sorted((root / CHECKPOINTS).glob("*/*.safetensors"))


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch, caplog, unkilled):
    older, newest = _interrupted(monkeypatch, tmp_path, at=7)
    os.truncate(newest, newest.stat().st_size - 10)
    with caplog.at_level(logging.WARNING):
        assert _train(tmp_path, "resnet")["sha256"] == unkilled["resnet"]["sha256"]
    assert f"the checkpoint {newest} is damaged" in caplog.text
    assert str(older) not in caplog.text


def test_a_changed_byte_is_detected(tmp_path, monkeypatch, caplog, unkilled):
    for path in _interrupted(monkeypatch, tmp_path, at=7):
        contents = bytearray(path.read_bytes())
        contents[-100] ^= 1
        path.write_bytes(contents)
    with caplog.at_level(logging.WARNING):
        assert _train(tmp_path, "resnet")["sha256"] == unkilled["resnet"]["sha256"]
    assert caplog.text.count("is damaged (its contents changed after it was written)") == 2


def test_a_checkpoint_of_another_training_run_is_refused(tmp_path, monkeypatch):
    path = _interrupted(monkeypatch, tmp_path, at=3)[-1]
    path.rename(path.parent / "kept")
    inputs = {"kind": "convnext", "params": TrainParams(**TRAIN).model_dump()}
    with open_checkpoints(tmp_path, inputs, 1) as checkpoints:
        folder = checkpoints.folder
    folder.mkdir()
    (path.parent / "kept").rename(folder / path.name)
    with pytest.raises(UdcError, match="is of another training run: kind is 'convnext' now and was 'resnet'"):
        _train(tmp_path, "convnext")


def test_a_second_process_of_the_same_training_run_writes_no_checkpoints(tmp_path, caplog):
    with open_checkpoints(tmp_path, {}, 1) as first, open_checkpoints(tmp_path, {}, 1) as second:
        assert first is not None
        assert second is None
    assert "another process is running the same training run" in caplog.text


def test_removed_checkpoints_leave_nothing_after_an_error(tmp_path):
    def prune():
        with open_checkpoints(tmp_path, {}, 1) as checkpoints:
            checkpoints.save(0, 0, {"a": torch.zeros(1)}, {})
            checkpoints.remove()
            raise UdcError("pruned")

    with pytest.raises(UdcError):
        prune()
    assert not list((tmp_path / CHECKPOINTS).glob("*/*"))


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, unkilled):
    """A limit on file sizes simulates the disk: the system refuses the write halfway."""
    size = _interrupted(monkeypatch, tmp_path, at=7)[-1].stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(UdcError, match=r"the checkpoint of epoch 2, step \d, cannot be written: .*Earlier ones"):
            _train(tmp_path, "resnet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list((tmp_path / CHECKPOINTS).glob("*/*"))) == 2
    assert _train(tmp_path, "resnet")["sha256"] == unkilled["resnet"]["sha256"]


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UdcError, match=r"The last good checkpoint is .*\.safetensors\. Images: "):
        _train(tmp_path, "resnet", {"optimizer": "sgd", "learning_rate": 1e20, "warmup_epochs": 1, "epochs": 5})


def test_checkpoints_of_other_code_are_mentioned(tmp_path, caplog):
    """Same parameters and data: the training run starts from the beginning, and one line says why."""
    inputs = {
        "params": {"train": {"epochs": 3}},
        "data": "digest",
        "weights": None,
        "code": {"a": "1"},
        "torch": "2",
    }

    def interrupted():
        with open_checkpoints(tmp_path, inputs, 1) as checkpoints:
            checkpoints.save(0, 5, {"a": torch.zeros(1)}, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (folder,) = (path for path in (tmp_path / CHECKPOINTS).iterdir() if path.is_dir())
    with open_checkpoints(tmp_path, inputs | {"code": {"a": "2"}}, 1):
        pass
    assert f"the checkpoints in {folder} cannot be used, because code changed" in caplog.text
    caplog.clear()
    other_data = inputs | {"data": "other", "code": {}}
    renamed = inputs | {"params": {"train": {"epochs": 3, "new": 1}}, "torch": "3"}
    for changed, expected in (
        (other_data, ""),
        (inputs | {"params": {"train": {"epochs": 4}}}, ""),
        (renamed, "torch"),
    ):
        with open_checkpoints(tmp_path, changed, 1):
            pass
        assert ("cannot be used" in caplog.text) == bool(expected)
    assert "because torch changed" in caplog.text
    (folder / "000009-000000000-damaged.safetensors").write_bytes(b"\xff" * 100)
    with open_checkpoints(tmp_path, inputs | {"data": "third"}, 1):
        pass
