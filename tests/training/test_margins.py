"""Margins of training images: their values, repeated and missing images, mixtures, bounds, and the file."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from udc_model.config import ModelParams, Params, ResNetParams, TrainParams
from udc_model.config.loss import LossParams
from udc_model.data import margins as margins_file
from udc_model.data.margins import MARGINS, Margins, recorded_every
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training import loop
from udc_model.training.hardware import pick_hardware
from udc_model.training.loop import train_model
from udc_model.training.margins import MarginRecorder, margins_note
from udc_model.training.session import TrainingSession
from udc_model.training.training_loss import TrainingLoss

NAN = float("nan")


def _recorded(*steps, num_images=4, epochs=1):
    """The margins and rivals of one epoch of steps (indices, logits, targets, share)."""
    recorder = MarginRecorder(num_images, epochs)
    for indices, logits, targets, share in steps:
        recorder.add(np.array(indices), [torch.tensor(logits)], torch.tensor(targets), share)
    recorder.end_epoch()
    return recorder.margins()


def test_margin_is_the_logit_of_the_label_minus_the_largest_other():
    margins = _recorded(([2, 0], [[1.0, 4, 2], [5, -1, 3]], [1, 2], 1.0), ([3], [[0.0, 1, 0.5]], [0], 1.0))
    np.testing.assert_array_equal(margins.values, np.array([[-2, NAN, 2, -1]], np.float16))
    assert margins.rivals.tolist() == [[0, 0, 2, 1]]


def test_repeated_image_has_the_mean_weighted_by_its_share_in_mixtures():
    steps = [([0], [[4.0, 0]], [0], 0.75), ([0], [[0.0, 4]], [0], 0.5), ([1], [[0.0, 3]], [1], 1.0)]
    margins = _recorded(*steps, num_images=2)
    np.testing.assert_allclose(margins.values, [[(0.75 * 4 - 0.5 * 4) / 1.25, 3]], rtol=1e-3)


def test_infinite_margins_remain_in_half_precision():
    margins = _recorded(([0, 1], [[1e30, 0.0], [-torch.inf, 0]], [0, 0], 1.0), num_images=2)
    assert margins.values.tolist() == [[60_000.0, -60_000.0]]


def test_parts_of_a_batch_and_pending_steps_give_the_same_margins(monkeypatch):
    rng = np.random.default_rng(0)
    logits, targets = torch.tensor(rng.normal(size=(12, 5)), dtype=torch.float32), torch.tensor(np.arange(12) % 5)

    def record(num_pending, parts):
        monkeypatch.setattr("udc_model.training.margins._PENDING", num_pending)
        recorder = MarginRecorder(12, 2)
        for _ in range(2):
            for rows in np.arange(12).reshape(3, 4):
                recorder.add(rows, logits[rows].tensor_split(parts), targets[rows])
            recorder.end_epoch()
        return recorder.margins()

    first, second = record(10**6, 1), record(1, 2)
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.rivals, second.rivals)
    assert first.values.shape == (2, 12)


def test_mixture_counts_for_the_image_with_the_larger_share(monkeypatch):
    """The logits of a mixture with the image before it, whose share is larger, are those of that image."""
    session = _session(mixup=1.0, epochs=1, batch_size=5)
    session.start()
    (_, batch), share = next(iter(session.batches.load(0, 0, session.hardware.device))), 0.25
    monkeypatch.setattr(
        loop, "Mixing", lambda *_: lambda images, targets, *key: (images.flip(0), targets.roll(1, 0), share)
    )
    logits = []
    forward = session.logits
    monkeypatch.setattr(session, "logits", lambda inputs: logits.append(forward(inputs)) or logits[-1])
    loop.train_step(session, batch, (1, 0, 0))
    session.margins._reduce()
    indices, (values,) = batch.all_indices, logits
    for row, before in zip(values.detach().numpy(), np.roll(indices, 1), strict=True):
        label = session.train_split.labels[before]
        margin = row[label] - np.delete(row, label).max()
        assert session.margins._totals[before] == pytest.approx(0.75 * margin, rel=1e-5)
        assert session.margins._weights[before] == pytest.approx(0.75)


def _session(**options):
    params = Params(train=TrainParams(**{"epochs": 2, "batch_size": 8, "device": "cpu", "precision": "fp32"} | options))
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    images = rng.integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
    split = PackedSplit(images, labels, [f"{i}.png" for i in range(20)], [""] * 20, [""] * 20)
    model = ModelParams(resnet=ResNetParams(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))
    return TrainingSession(build_model(model, ["a", "b"], 1), TrainingLoss(LossParams(), torch.ones(2, 2), [10, 10]),
                           split, split, Preprocessing(16), params, pick_hardware(params.train))  # fmt: skip


def test_weights_have_the_bits_of_a_training_run_without_margins(monkeypatch):
    def digest():
        state = train_model(_session(mixup=0.4, accumulation=2)).best_state
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()

    with_margins = digest()
    monkeypatch.setattr(MarginRecorder, "add", lambda *_: None)
    assert digest() == with_margins


def test_first_epoch_has_the_margins_of_the_initial_weights_in_its_first_step():
    session = _session(epochs=1, batch_size=20)
    session.start()
    _, batch = next(iter(session.batches.load(0, 0, session.hardware.device)))
    with torch.no_grad():
        logits = session.trained.train()(batch.images).logits
    expected = np.zeros(20)
    sign = np.where(batch.targets.numpy() == 0, 1, -1)
    expected[batch.all_indices] = sign * (logits[:, 0] - logits[:, 1]).numpy()
    margins = train_model(_session(epochs=1, batch_size=20)).margins
    np.testing.assert_allclose(margins.values[0], expected, atol=2e-3)
    assert margins.rivals[0].tolist() == [1, 0] * 10


def test_with_many_images_and_epochs_the_file_is_bounded(monkeypatch):
    assert recorded_every(50_000, 300) == 1
    assert recorded_every(1_281_167, 300) == 6  # a sixth of the epochs: 256 MB
    monkeypatch.setattr(margins_file, "MAX_MARGINS", 4 * 10 * 2)
    recorder = MarginRecorder(10, 5)
    for epoch in range(5):
        recorder.add(np.arange(10), [torch.tensor([[float(epoch), 0]] * 10)], torch.zeros(10, dtype=torch.long))
        recorder.end_epoch()
    assert recorder.margins().values[:, 0].tolist() == [0, 3]
    assert recorder.margins().epochs.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, "logits of each training step, before its update: images without augmentation"),
        ({"augment": "light", "mixup": 0.2, "ema_decay": 0.9},
         "logits of each training step, before its update: augmented images; a mixture counts for the image with the "
         "larger share, with the weight of that share; weights of the step, not their moving average"),
    ],
)  # fmt: skip
def test_record_says_what_the_margins_are_of(options, note):
    assert margins_note(TrainParams(**options)) == note


def _margins():
    values, rivals = np.array([[1, 2], [3, NAN]], np.float16), np.array([[1, 0], [2, 0]], np.uint16)
    return Margins(values, rivals, np.array([0, 1], np.int32))


def _tensors(**changes):
    margins = _margins()
    return {"margin": margins.values, "rival": margins.rivals, "epoch": margins.epochs} | changes


def test_file_is_read_as_it_was_written(tmp_path):
    assert Margins.load(tmp_path, 2, 3) is None  # of an earlier version
    _margins().save(tmp_path)
    read = Margins.load(tmp_path, 2, 3)
    np.testing.assert_array_equal(read.values, _margins().values)
    assert read.rivals.tolist() == [[1, 0], [2, 0]]
    assert read.epochs.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (b"\xff" * 40, "cannot be read"),
        ({"margin": _margins().values}, "cannot be read"),
        (_tensors(margin=np.zeros((2, 1), np.float16)), "instead of the margins of 2 images"),
        (_tensors(margin=_margins().values.astype(np.float32)), "contains float32 (2, 2), uint16 (2, 2), int32 (2,)"),
        (_tensors(epoch=np.zeros((2, 1), np.int32)), "instead of the margins of 2 images"),
        (_tensors(epoch=np.array([1, 0], np.int32)), "an epoch, a class or a margin that cannot occur"),
        (_tensors(epoch=np.array([0, -1], np.int32)), "an epoch, a class or a margin that cannot occur"),
        (_tensors(rival=_margins().rivals + np.uint16(9)), "an epoch, a class or a margin that cannot occur"),
        (_tensors(margin=_margins().values * np.float16(np.inf)), "an epoch, a class or a margin that cannot occur"),
        ({name: array[:0] for name, array in _tensors().items()}, "instead of the margins of 2 images"),
    ],
)  # fmt: skip
def test_damaged_file_is_an_error_that_names_it(tensors, message, tmp_path):
    if isinstance(tensors, bytes):
        (tmp_path / MARGINS).write_bytes(tensors)
    else:
        save_file(tensors, tmp_path / MARGINS)
    with pytest.raises(UdcError, match=message.replace("(", r"\(").replace(")", r"\)")) as error:
        Margins.load(tmp_path, 2, 3)
    assert str(tmp_path / MARGINS) in str(error.value)


def test_file_larger_than_its_bound_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(margins_file, "MAX_MARGINS", 8)
    Margins(np.zeros((2000, 2), np.float16), np.zeros((2000, 2), np.uint16), np.arange(2000, dtype=np.int32)).save(
        tmp_path
    )
    with pytest.raises(UdcError, match="more than the"):
        Margins.load(tmp_path, 2, 3)
