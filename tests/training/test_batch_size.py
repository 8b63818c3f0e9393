"""`train.batch_size: auto`, with a simulated memory limit, because the test machines have no GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from udc_model.config import LossParams, ModelParams, ResNetParams, TrainParams
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training import batch_size
from udc_model.training.distribution import Ranks
from udc_model.training.hardware import Hardware
from udc_model.training.losses import TrainingLoss
from udc_model.training.session import TrainingSession

SMALL = ModelParams(resnet=ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
CPU, GPU = (Hardware(torch.device(kind), "fp32") for kind in ("cpu", "cuda"))


class _Together(Ranks):
    """The first of three processes."""

    def from_first(self, data):
        return data


def _session(n, hardware=GPU, loss="cross_entropy", **options):
    images = PackedSplit(np.zeros((n, 16, 16, 3), np.uint8), np.zeros(n, np.int64), [""] * n, [""] * n, [""] * n)
    loss_fn = TrainingLoss(LossParams(name=loss), torch.ones(2, 2), [1, 1])
    params = TrainParams(batch_size="auto", **options)
    return TrainingSession(build_model(SMALL, ["a", "b"], 1), images, images, Preprocessing(16), loss_fn, params, 1,
                           hardware)  # fmt: skip


def _find(n, hardware=GPU, ranks=Ranks()):  # noqa: B008 (a frozen value)
    return batch_size.largest_batch_size(replace(_session(n, hardware), ranks=ranks))


@pytest.mark.parametrize(
    ("room", "n", "ranks", "expected"),
    [(37, 10_000, Ranks(), 32), (37, 10_000, _Together(0, 3), 96), (37, 200, Ranks(), 8), (1, 5, Ranks(), 1)],
)
def test_the_largest_power_of_two_that_fits(room, n, ranks, expected, monkeypatch):
    """Times the number of processes, and no more than a twentieth of the images."""
    monkeypatch.setattr(batch_size, "_fits", lambda count, *_: count <= room)
    assert _find(n, ranks=ranks) == expected


def test_a_step_runs_on_a_copy(monkeypatch):
    step, tried = batch_size.train_step, []

    def full_above_nine(session, batch, key):
        tried.append((len(batch.images), session.state.averaged is not None))
        if len(batch.images) > 9:
            raise torch.OutOfMemoryError("the memory is full")
        return step(session, batch, key)

    monkeypatch.setattr(batch_size, "train_step", full_above_nine)
    session = _session(100, CPU, "seesaw", ema_decay=0.9, learning_rate=1.0)
    before = {key: value.clone() for key, value in session.model.state_dict().items()}
    counts = session.loss_fn.seesaw.counts.clone()
    assert [batch_size._fits(n, session) for n in (1, 8, 16)] == [True, True, False]
    assert tried == [(1, True), (8, True), (16, True)]
    assert all(torch.equal(value, before[key]) for key, value in session.model.state_dict().items())
    assert np.array_equal(session.loss_fn.seesaw.counts, counts)


def test_refusals(monkeypatch):
    with pytest.raises(UdcError, match="measures a GPU's memory, but training runs on cpu; give a number"):
        _find(100, CPU)
    monkeypatch.setattr(batch_size, "_fits", lambda *_: False)
    with pytest.raises(UdcError, match="not even one image fits"):
        _find(100)
