"""Training on a GPU: same bits each time, after a kill and in one process of two; precision, compilation, memory."""

import gc
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

from udc_model.config import LossParams, ModelParams, Params, TrainParams
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.files import sha256_of
from udc_model.models import build_model
from udc_model.training.batch_size import largest_batch_size
from udc_model.training.hardware import pick_hardware
from udc_model.training.loop import train_model
from udc_model.training.session import TrainingSession
from udc_model.training.training_loss import TrainingLoss

CONVNEXT = ("model.model_type=convnext", "model.preset=convnext-mini")
EVERYTHING = ("train.augment=strong", "train.cutmix=1.0", "train.mixup=0.2", "train.ema_decay=0.9",
              "train.accumulation=2", "train.clip_grad_norm=1.0", "train.sampling_power=0.5")  # fmt: skip


def _weights(workspace):
    """The SHA-256 of the trained weights."""
    return sha256_of(workspace.model / "model.safetensors")


def _curves(workspace):
    return pd.read_csv(workspace.training / "curves.csv")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", [(), CONVNEXT], ids=["resnet", "convnext"])
def test_equal_parameters_give_equal_bits(run, model, precision):
    options = (*model, *EVERYTHING, f"train.precision={precision}")
    first, again = run("first", *options), run("again", *options)
    assert _weights(first) == _weights(again)
    pd.testing.assert_frame_equal(_curves(first), _curves(again))
    assert _weights(run("other", *options, "seed=2")) != _weights(first)


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_number_of_loader_workers_changes_no_bit(run, augment):
    """Without workers, a thread loads ahead, unless images are transformed one by one."""
    options = (*EVERYTHING, f"train.augment={augment}")
    assert _weights(run("none", *options)) == _weights(run("two", *options, "train.loader_workers=2"))


def test_gpu_computes_what_the_cpu_computes(run):
    """In float32, up to rounding; with more steps the differences grow."""
    settings = ("train.precision=fp32", "train.epochs=1", "train.optimizer=sgd")
    gpu, cpu = _curves(run("gpu", *settings)), _curves(run("cpu", *settings, "train.device=cpu"))
    for name in ("train_loss", "validation_log_loss"):
        assert gpu[name].to_numpy() == pytest.approx(cpu[name].to_numpy(), rel=1e-3)


@pytest.mark.parametrize("model", [(), CONVNEXT], ids=["resnet", "convnext"])
def test_killed_training_run_resumes_to_the_same_bits(run, start, tmp_path, model):
    options = (*model, *EVERYTHING, "train.epochs=6", "train.checkpoint_minutes=1e-9")
    undisturbed = _weights(run("undisturbed", *options))
    folder = tmp_path / ".udc/checkpoints"
    before = {*folder.rglob("*.safetensors")}
    workspace, process = start("killed", *options)
    while process.poll() is None and not {*folder.rglob("*.safetensors")} - before:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not workspace.model.exists()
    workspace, process = start("killed", *options)
    _, output = process.communicate()
    assert process.returncode == 0, output
    assert "resuming" in output, output
    assert _weights(workspace) == undisturbed


def test_two_processes_share_one_gpu(run):
    """Their gradients are summed by gloo, since NCCL refuses two processes on one GPU."""
    options = (*CONVNEXT, "model.convnext.drop_path_rate=0", "train.precision=fp32", "train.optimizer=sgd",
               "train.augment=light")  # fmt: skip
    single, pair = run("single", *options), run("pair", *options, "train.processes=2")
    for name in ("train_loss", "validation_log_loss"):
        assert _curves(pair)[name].to_numpy() == pytest.approx(_curves(single)[name].to_numpy(), rel=1e-3)
    assert _weights(run("again", *options, "train.processes=2")) == _weights(pair)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no second GPU")
@pytest.mark.parametrize("options", [(), ("train.sync_batchnorm=true",), ("train.sharded=true",)])
def test_processes_on_a_gpu_each_give_equal_bits(run, options):
    settings = ("train.processes=2", "train.precision=fp32", *options)
    assert _weights(run("first", *settings)) == _weights(run("again", *settings))


def test_compiled_model_trains_alike_and_to_equal_bits(run):
    settings = ("train.precision=fp32", "train.optimizer=sgd", "train.epochs=2")
    plain, compiled = _curves(run("plain", *settings)), run("compiled", *settings, "train.compile=true")
    assert _curves(compiled)["train_loss"].to_numpy() == pytest.approx(plain["train_loss"].to_numpy(), rel=1e-2)
    assert _weights(run("again", *settings, "train.compile=true")) == _weights(compiled)


def _session(batch_size, n=64, side=64, **train):
    rng = np.random.default_rng(0)
    split = PackedSplit(rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8), np.arange(n) % 2,
                        [f"{i}.png" for i in range(n)], [""] * n, [""] * n)  # fmt: skip
    params = Params(train=TrainParams(batch_size=batch_size, epochs=1, device="cuda", **train))
    model = build_model(ModelParams(preset="resnet-small"), ["a", "b"], 1)
    loss = TrainingLoss(LossParams(), torch.ones(2, 2), [1, 1])
    return TrainingSession(model, loss, split, split, Preprocessing(side), params, pick_hardware(params.train))


def _peak(session):
    torch.cuda.reset_peak_memory_stats()
    train_model(session)
    return torch.cuda.max_memory_allocated()


def test_gradient_checkpointing_saves_memory():
    assert _peak(_session(512, n=512, gradient_checkpointing=True)) < 0.9 * _peak(_session(512, n=512))


def test_training_runs_return_their_memory():
    """A second one needs no more than the first."""
    peaks, left = [], []
    for _ in range(3):
        peaks.append(_peak(_session(32)))
        gc.collect()
        left.append(torch.cuda.memory_allocated())
    assert peaks[2] == peaks[1]
    assert left[2] == left[1]


def test_automatic_batch_size_fits_into_the_memory_that_is_allowed():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
    try:
        size = largest_batch_size(_session("auto", n=100_000))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 8 <= size <= 4096
    assert size & (size - 1) == 0
