"""Exact resume: a training run that is killed at any line or within a write ends with the same bits."""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from udc_model.config import ConvNextParams, LossParams, ModelParams, Params, ResNetParams, TrainParams
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training import checkpoints, loop, members, session
from udc_model.training.checkpoints import CHECKPOINTS, open_checkpoints
from udc_model.training.hardware import pick_hardware
from udc_model.training.members import joint_result, member_params, train_members, trained_model
from udc_model.training.session import TrainingSession
from udc_model.training.training_loss import TrainingLoss

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
    """One thread, as in the killed processes: the order of sums may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def synthetic_split(n, seed):
    """n images of three classes, of which one is separable."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(np.arange(n) % 4, 2)
    images = rng.integers(0, 100, (n, 16, 16, 3), dtype=np.uint8)
    images[labels == 1, 4:12, 4:12] += 120
    return PackedSplit(images, labels, [f"{i}.png" for i in range(n)], [""] * n, [""] * n)


def sha256_of_tensors(tensors):
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _train(root, kind, options=None, loss="cross_entropy"):
    """Start or resume a training run; the hash of its weights, its curves and the epochs that it reported."""
    params, reported = TrainParams(**TRAIN | (options or {})), []
    inputs = {"kind": kind, "params": params.model_dump()}

    def session_of(number):
        member = member_params(Params(train=params, seed=1), number)
        loss_fn = TrainingLoss(LossParams(name=loss), torch.ones(3, 3) - torch.eye(3), [13, 13, 24])
        return TrainingSession(build_model(MODELS[kind], CLASSES, member.seed), loss_fn, synthetic_split(50, 0),
                               synthetic_split(30, 9), Preprocessing(16), member, pick_hardware(params))  # fmt: skip

    with open_checkpoints(root, inputs, params.checkpoint_minutes) as folder:
        results = train_members(session_of, params.members, folder, lambda record: bool(reported.append(record.epoch)))
    model = trained_model(build_model(MODELS[kind], CLASSES, 1), results)
    margins = joint_result(results).margins
    return {"sha256": sha256_of_tensors(model.state_dict()), "curves": joint_result(results).curves,
            "margins": hashlib.sha256(margins.values.tobytes() + margins.rivals.tobytes()).hexdigest(),
            "temperatures": [result.temperature for result in results], "reported": reported}  # fmt: skip


def _kill_at_line(n):
    """SIGKILL this process at the n-th executed line of the training code; returns the count of executed lines."""
    files, count = {module.__file__ for module in (loop, session, checkpoints, members)}, [0]

    def local(frame, event, argument):
        if event == "line":
            count[0] += 1
            if count[0] == n:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    sys.settrace(lambda frame, event, argument: local if frame.f_code.co_filename in files else None)
    return count


def _kill_at_write(n):
    """SIGKILL this process when half of the n-th checkpoint is written."""
    write, count = checkpoints.save_file, [0]

    def write_half(tensors, path, metadata):
        write(tensors, path, metadata)
        count[0] += 1
        if count[0] == n:
            os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_file = write_half


def _train_in_process(root, kind, options, out, line, write):
    torch.set_num_threads(1)
    count = [0] if line is None else _kill_at_line(line)  # counting lines makes Python slower
    _kill_at_write(write)
    result = _train(root, kind, options)
    out.write_text(json.dumps(result | {"lines": count[0]}))


@pytest.fixture(scope="module")
def train_and_kill():
    """A function that runs `_train` in a process of its own; its result, or None if the process was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["udc_model.training.loop", "torch._dynamo"])  # optimisers import the latter

    def run(root, kind, options=None, line=None, write=-1):
        out = root / "result.json"
        out.unlink(missing_ok=True)
        process = context.Process(target=_train_in_process, args=(root, kind, options, out, line, write))
        process.start()
        process.join()
        if process.exitcode == 0:
            return json.loads(out.read_text())
        assert process.exitcode == -signal.SIGKILL
        return None

    return run


@pytest.fixture(scope="module")
def uninterrupted(train_and_kill, tmp_path_factory):
    return {kind: train_and_kill(tmp_path_factory.mktemp("uninterrupted"), kind, line=-1) for kind in MODELS}


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_twice_gives_the_same_bits(trial, train_and_kill, uninterrupted, tmp_path):
    kind, draw = list(MODELS)[trial % 2], random.Random(trial)
    expected = uninterrupted[kind]
    first = {"write": draw.randint(1, 12)} if trial % 3 == 2 else {"line": draw.randint(1, expected["lines"] - 40)}
    assert train_and_kill(tmp_path, kind, **first) is None
    train_and_kill(tmp_path, kind, line=draw.randint(1, expected["lines"] // 2))  # it may finish before that line
    resumed = train_and_kill(tmp_path, kind) or {}
    assert resumed["sha256"] == expected["sha256"]
    assert resumed["curves"] == expected["curves"]
    assert resumed["margins"] == expected["margins"]
    assert not list((tmp_path / CHECKPOINTS).glob("*/*"))  # deleted after success


FROZEN = {"num_frozen_stages": "all", "augment": "none", "horizontal_flip": False, "mixup": 0.0, "cutmix": 0.0}


@pytest.mark.parametrize(
    "options", [{"optimizer": "sgd", "schedule": "one_cycle"}, {"early_stopping_patience": 1}, FROZEN],
    ids=["sgd", "early stopping", "frozen"],
)  # fmt: skip
def test_sgd_early_stopping_and_frozen_networks_resume_to_the_same_bits(options, train_and_kill, tmp_path):
    expected = train_and_kill(tmp_path, "resnet", options)
    assert train_and_kill(tmp_path, "resnet", options, write=5) is None
    resumed = train_and_kill(tmp_path, "resnet", options)
    for name in ("sha256", "curves", "margins"):
        assert resumed[name] == expected[name]
    assert resumed["reported"][0] == 1  # the last epoch before the kill is reported again


ENSEMBLE = {"members": 3, "epochs": 2}  # 8 checkpoints a member, one for each of its steps


@pytest.fixture(scope="module")
def uninterrupted_ensemble(train_and_kill, tmp_path_factory):
    return train_and_kill(tmp_path_factory.mktemp("ensemble"), "resnet", ENSEMBLE, line=-1)


@pytest.mark.parametrize("write", [3, 9, 20])
def test_ensemble_killed_in_a_member_gives_the_same_bits(write, train_and_kill, uninterrupted_ensemble, tmp_path):
    """In the first member, in the first checkpoint of the second, and in the third."""
    expected = uninterrupted_ensemble
    assert train_and_kill(tmp_path, "resnet", ENSEMBLE, write=write) is None
    line = random.Random(write).randint(1, expected["lines"] // 3)
    train_and_kill(tmp_path, "resnet", ENSEMBLE, line=line)  # it may finish before that line
    resumed = train_and_kill(tmp_path, "resnet", ENSEMBLE)
    for name in ("sha256", "curves", "temperatures", "margins"):
        assert resumed[name] == expected[name]
    assert not list((tmp_path / CHECKPOINTS).glob("*/*"))


@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_ensemble_interrupted_between_members_trains_no_member_again(
    finished, monkeypatch, caplog, uninterrupted_ensemble, tmp_path
):
    fit, count = members.fit_temperature, [0]

    def interrupted_fit(*arguments):
        count[0] += 1
        if count[0] > finished:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(members, "fit_temperature", interrupted_fit)
    if finished < 3:
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path, "resnet", ENSEMBLE)
        position = f"after epoch 2 of member {finished + 1} of 3 (checkpoint "
        assert f"the state {position}" in caplog.messages[-1]
    monkeypatch.setattr(members, "fit_temperature", fit)
    step, steps = loop.train_step, []
    monkeypatch.setattr(loop, "train_step", lambda *arguments: steps.append(1) or step(*arguments))
    resumed = _train(tmp_path, "resnet", ENSEMBLE)
    assert len(steps) == 8 * (3 if finished == 3 else 2 - finished)
    for name in ("sha256", "curves", "temperatures", "margins"):
        assert resumed[name] == uninterrupted_ensemble[name]


def test_an_ensemble_says_from_which_member_it_resumes(tmp_path, monkeypatch, caplog):
    _interrupt(monkeypatch, tmp_path, at=9, options=ENSEMBLE)
    stored = "is stored; the same command resumes from it"
    assert caplog.messages[-1] == f"the state before the first step of member 2 of 3 {stored}"
    _interrupt(monkeypatch, tmp_path, at=2, options=ENSEMBLE)
    assert "the state in epoch 1 of member 2 of 3, after 1 steps (checkpoint " in caplog.messages[-1]


def test_a_member_without_room_for_its_checkpoints_is_one_line(tmp_path):
    with pytest.raises(UdcError, match=r"member-2: checkpoints cannot be written there: .*File exists"):  # noqa: SIM117, PT012
        with open_checkpoints(tmp_path, {}, 1) as opened:
            (opened.folder / "member-2").write_text("")
            opened.of_member(1, 2)


def test_finished_members_keep_one_checkpoint(tmp_path, monkeypatch):
    paths = _interrupt(monkeypatch, tmp_path, at=20, options=ENSEMBLE)  # step 4 of the third member
    (folder,) = {path.parent for path in paths}
    names = [path.relative_to(folder).as_posix().rpartition("-")[0] for path in sorted(folder.rglob("*.safetensors"))]
    assert names == ["000002-000000000", "member-2/000002-000000000", "member-3/000000-000000002",
                     "member-3/000000-000000003"]  # fmt: skip


def test_members_have_other_seeds_and_the_first_is_the_single_network(tmp_path, monkeypatch):
    params = Params(seed=1)
    seeds = [member_params(params, number).seed for number in range(20)]
    assert seeds[0] == 1
    assert len({*seeds, *(member_params(Params(seed=2), number).seed for number in range(20))}) == 40
    assert member_params(params, 1).model_copy(update={"seed": 1}) == params
    single, ensemble = _train(tmp_path, "resnet"), _train(tmp_path, "resnet", {"members": 2})
    first = [{name: value for name, value in row.items() if name != "member"} for row in ensemble["curves"][:3]]
    assert first == single["curves"]
    assert single["temperatures"] == [1.0]


def test_seesaw_counts_are_restored(tmp_path, monkeypatch):
    expected = _train(tmp_path, "resnet", loss="seesaw")
    _interrupt(monkeypatch, tmp_path, at=7, loss="seesaw")
    assert _train(tmp_path, "resnet", loss="seesaw") == expected | {"reported": [1, 2, 3]}


def _interrupt(monkeypatch, root, at, **options):
    """Start a training run and interrupt it in step ``at``; the paths of its checkpoints."""
    step, count = loop.train_step, [0]

    def interrupted_step(*arguments):
        count[0] += 1
        if count[0] == at:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        _train(root, "resnet", **options)
    monkeypatch.setattr(loop, "train_step", step)
    return sorted((root / CHECKPOINTS).glob("*/*.safetensors"))


def test_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch, caplog, uninterrupted):
    older, newest = _interrupt(monkeypatch, tmp_path, at=7)
    os.truncate(newest, newest.stat().st_size - 10)
    with caplog.at_level(logging.WARNING):
        assert _train(tmp_path, "resnet")["sha256"] == uninterrupted["resnet"]["sha256"]
    assert f"checkpoint {newest} is damaged" in caplog.text
    assert f"{older} is damaged" not in caplog.text


def test_changed_byte_is_detected(tmp_path, monkeypatch, caplog, uninterrupted):
    for path in _interrupt(monkeypatch, tmp_path, at=7):
        contents = bytearray(path.read_bytes())
        contents[-100] ^= 1
        path.write_bytes(contents)
    with caplog.at_level(logging.WARNING):
        assert _train(tmp_path, "resnet")["sha256"] == uninterrupted["resnet"]["sha256"]
    assert caplog.text.count("is damaged (its contents do not match the digest in its name)") == 2


def test_checkpoint_of_another_training_run_raises(tmp_path, monkeypatch):
    path = _interrupt(monkeypatch, tmp_path, at=3)[-1]
    path.rename(path.parent / "moved")
    inputs = {"kind": "convnext", "params": TrainParams(**TRAIN).model_dump()}
    with open_checkpoints(tmp_path, inputs, 1) as opened:
        folder = opened.folder
    folder.mkdir()
    (path.parent / "moved").rename(folder / path.name)
    with pytest.raises(UdcError, match="another training run: kind is 'resnet' there and 'convnext' here; delete"):
        _train(tmp_path, "convnext")


INPUTS = {"params": {"seed": 1}, "data": "d", "torch": "2", "hardware": {"device": "cpu"}, "code": {"a.py": "1"}}


def _leave_checkpoint(root, inputs):
    """The path of a checkpoint that a failed training run has left."""
    with pytest.raises(KeyboardInterrupt), open_checkpoints(root, inputs, 1) as opened:  # noqa: PT012
        opened.save(0, 0, {"a": torch.zeros(1)}, {})
        raise KeyboardInterrupt
    return opened.last


def test_a_training_run_that_fails_says_from_where_the_next_one_resumes(tmp_path, caplog):
    with pytest.raises(ValueError, match="x"), open_checkpoints(tmp_path, INPUTS, 1) as opened:  # noqa: PT012
        opened.save(3, 0, {"a": torch.zeros(1)}, {})
        opened.save(3, 17, {"a": torch.zeros(1)}, {})
        raise ValueError("x")
    position = f"in epoch 4, after 17 steps (checkpoint {opened.last})"
    assert caplog.messages == [f"the state {position} is stored; the same command resumes from it"]
    with open_checkpoints(tmp_path, INPUTS, 1) as opened:
        assert opened.position() == position
    with pytest.raises(ValueError, match="x"), open_checkpoints(tmp_path, INPUTS, 1) as opened:  # noqa: PT012
        opened.save(3, 0, {"a": torch.zeros(1)}, {})
        assert opened.position() == f"after epoch 3 (checkpoint {opened.last})"
        raise ValueError("x")


@pytest.mark.parametrize("reason", [errno.ENOMEM, errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_checkpoint_that_the_system_cannot_read_is_not_deleted(reason, tmp_path, monkeypatch):
    path, read = _leave_checkpoint(tmp_path, INPUTS), checkpoints.verified_contents

    def fail(path):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(checkpoints, "verified_contents", fail)
    message = re.escape(f"{path}: the checkpoint cannot be read: {os.strerror(reason)}; no checkpoint is deleted: fix")
    with pytest.raises(UdcError, match=f"^{message}"), open_checkpoints(tmp_path, INPUTS, 1):
        pass
    monkeypatch.setattr(checkpoints, "verified_contents", read)
    with open_checkpoints(tmp_path, INPUTS, 1) as opened:
        assert opened.last == path


def test_a_checkpoint_that_vanishes_is_skipped(tmp_path, monkeypatch, caplog):
    older = _leave_checkpoint(tmp_path, INPUTS)
    caplog.clear()  # without the line that says how to resume
    vanished = older.with_name(f"000001-{older.name.partition('-')[2]}")
    monkeypatch.setattr(checkpoints, "newest_first", lambda folder: [vanished, older])
    with open_checkpoints(tmp_path, INPUTS, 1) as opened:
        assert opened.last == older
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"code": {"a.py": "2"}}, "code"),
        ({"torch": "3"}, "torch version"),
        ({"hardware": {"device": "cuda"}, "code": {}}, "code and hardware or number of threads"),
        ({"params": {"seed": 2}}, None),
        ({"data": "e", "code": {}}, None),
        ({"weights": "w"}, None),
    ],
)
def test_checkpoints_of_other_code_or_environment_are_reported(changes, names, tmp_path, caplog):
    path = _leave_checkpoint(tmp_path, INPUTS | changes)
    caplog.clear()  # without the line that says how to resume
    with open_checkpoints(tmp_path, INPUTS, 1) as opened:
        assert opened.last is None
    expected = [
        f"checkpoints in {path.parent} are of the same parameters and data but of other {names}; "
        "this training run starts from the beginning"
    ]
    assert caplog.messages == (expected if names else [])


def test_resumed_training_run_does_not_report_checkpoints_of_other_code(tmp_path, caplog):
    _leave_checkpoint(tmp_path, INPUTS | {"code": {}})
    caplog.clear()  # without the line that says how to resume
    _leave_checkpoint(tmp_path, INPUTS)
    caplog.clear()
    with open_checkpoints(tmp_path, INPUTS, 1) as opened:
        assert opened.last is not None
    assert caplog.messages == []


def test_checkpoints_without_format_are_reported_as_older(tmp_path, caplog):
    path = _leave_checkpoint(tmp_path, INPUTS | {"code": {}})
    caplog.clear()  # without the line that says how to resume
    metadata = {"inputs": json.dumps(INPUTS), "progress": "{}", "run_key": "k"}  # as version 0.1.0 wrote it
    save_file({"a": torch.zeros(1)}, path, metadata)
    with open_checkpoints(tmp_path, INPUTS, 1):
        pass
    assert caplog.messages == [
        f"checkpoints in {path.parent} are of an older version, which this one cannot resume; delete the folder"
    ]


@pytest.mark.parametrize(
    "contents",
    [b"", b"\xff" * 100, (2**40).to_bytes(8, "little"), b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}",
     b"\x14" + bytes(7) + b'{"__metadata__": 3} ', b"\x09" + bytes(7) + b"not JSON!"],
)  # fmt: skip
def test_damaged_checkpoints_of_other_training_runs_are_ignored(contents, tmp_path, caplog):
    _leave_checkpoint(tmp_path, INPUTS | {"code": {}}).write_bytes(contents)
    caplog.clear()  # without the line that says how to resume
    with open_checkpoints(tmp_path, INPUTS, 1) as opened:
        assert opened.last is None
    assert caplog.messages == []


def test_second_process_of_the_same_training_run_gets_no_checkpoints(tmp_path, caplog):
    with open_checkpoints(tmp_path, {}, 1) as first, open_checkpoints(tmp_path, {}, 1) as second:
        assert first is not None
        assert second is None
    assert "another process runs the same training run" in caplog.text


def test_removed_checkpoints_stay_removed_after_an_error(tmp_path):
    with pytest.raises(UdcError), open_checkpoints(tmp_path, {}, 1) as opened:  # noqa: PT012
        opened.save(0, 0, {"a": torch.zeros(1)}, {})
        opened.remove()
        raise UdcError("pruned")
    assert not list((tmp_path / CHECKPOINTS).iterdir())


def test_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, uninterrupted):
    """A limit on the file size simulates the full disk: the system refuses the write halfway."""
    size = _interrupt(monkeypatch, tmp_path, at=7)[-1].stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(UdcError, match=r"the checkpoint of epoch 2, step \d, cannot be written: .*; earlier"):
            _train(tmp_path, "resnet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list((tmp_path / CHECKPOINTS).glob("*/*"))) == 2
    assert _train(tmp_path, "resnet")["sha256"] == uninterrupted["resnet"]["sha256"]


def test_error_of_a_loss_that_is_not_finite_names_the_last_checkpoint(tmp_path):
    with pytest.raises(UdcError, match=r"The last good checkpoint is .*\.safetensors\. Images: "):
        _train(tmp_path, "resnet", {"optimizer": "sgd", "learning_rate": 1e20, "warmup_epochs": 1, "epochs": 5})
