"""``train.batch_size: auto`` with a simulated memory limit, because the test machines have no GPU."""

import numpy as np
import pytest
import torch

from udc_model.config import LossParams, ModelParams, Params, ResNetParams, TrainParams
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training import batch_size
from udc_model.training.distribution import Ranks
from udc_model.training.hardware import Hardware
from udc_model.training.session import TrainingSession
from udc_model.training.training_loss import TrainingLoss

SMALL = ModelParams(resnet=ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
CPU, GPU = (Hardware(torch.device(kind), "fp32") for kind in ("cpu", "cuda"))


class _FirstOfThree(Ranks):
    """The first of three processes, without the other two."""

    def from_first(self, data):
        return data


def _session(n, hardware=GPU, ranks=Ranks(), loss="cross_entropy", channels=3, **train):  # noqa: B008 (a frozen value)
    split = PackedSplit(np.zeros((n, 16, 16, channels), np.uint8), np.zeros(n, np.int64), [""] * n, [""] * n, [""] * n)
    architecture = SMALL.resnet.model_copy(update={"num_channels": channels})
    model = build_model(SMALL.model_copy(update={"resnet": architecture}), ["a", "b"], 1)
    loss_fn = TrainingLoss(LossParams(name=loss), torch.ones(2, 2), [1, 1])
    params = Params(train=TrainParams(batch_size="auto", **train))
    preprocessing = Preprocessing(16, decoding=Decoding(channels))
    return TrainingSession(model, loss_fn, split, split, preprocessing, params, hardware, ranks)


def test_grey_images_are_tried_with_one_channel():
    assert batch_size._fits(2, _session(20, CPU, channels=1))


@pytest.mark.parametrize(
    ("limit", "n", "ranks", "expected"),
    [(37, 10_000, Ranks(), 32), (37, 10_000, _FirstOfThree(0, 3), 96), (37, 200, Ranks(), 8), (1, 5, Ranks(), 1)],
)
def test_largest_batch_size_is_a_power_of_two_within_memory_and_data(limit, n, ranks, expected, monkeypatch):
    """Times the number of processes, and at most a twentieth of the images."""
    monkeypatch.setattr(batch_size, "_fits", lambda n, session: n <= limit)
    assert batch_size.largest_batch_size(_session(n, ranks=ranks)) == expected


def test_trial_step_leaves_model_and_loss_unchanged(monkeypatch):
    step, trials = batch_size.train_step, []

    def limited_step(session, batch, key):
        trials.append((len(batch.images), session.averaged is not None))
        if len(batch.images) > 9:
            raise torch.OutOfMemoryError
        return step(session, batch, key)

    monkeypatch.setattr(batch_size, "train_step", limited_step)
    session = _session(20, CPU, loss="seesaw", ema_decay=0.9, learning_rate=1.0)
    before = {key: value.clone() for key, value in session.model.state_dict().items()}
    counts = session.loss_fn.seesaw.counts.clone()
    assert [batch_size._fits(n, session) for n in (1, 8, 16)] == [True, True, False]
    assert trials == [(1, True), (8, True), (16, True)]
    assert all(torch.equal(value, before[key]) for key, value in session.model.state_dict().items())
    assert np.array_equal(session.loss_fn.seesaw.counts, counts)


def test_auto_raises_without_a_gpu_and_if_no_image_fits(monkeypatch):
    with pytest.raises(UdcError, match="measures the memory of a GPU, but this training run uses cpu; set a number"):
        batch_size.largest_batch_size(_session(100, CPU))
    monkeypatch.setattr(batch_size, "_fits", lambda n, session: False)
    with pytest.raises(UdcError, match="not even one image fits"):
        batch_size.largest_batch_size(_session(100))
