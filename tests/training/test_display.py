"""What a training run prints, its end by Ctrl-C, the warning that it will not succeed, and the rehearsal."""

import io
import logging
import math
import os
import re
import signal

import numpy as np
import pytest
import torch

from udc_model.config import CostParams, LossParams, ModelParams, Params, ResNetParams, TrainParams
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.frequencies import TrainingFrequencies
from udc_model.models import build_model
from udc_model.training import loop
from udc_model.training.diagnosis import DisplayedCost, check_epoch, constant_loss, hopeless
from udc_model.training.display import RunDisplay
from udc_model.training.hardware import pick_hardware
from udc_model.training.interruption import deferred_interrupt
from udc_model.training.loop import train_model
from udc_model.training.members import member_params, train_members
from udc_model.training.rehearsal import rehearse
from udc_model.training.session import EpochRecord, Progress, TrainingSession
from udc_model.training.training_loss import TrainingLoss

CLASSES = ["a", "b"]
MODEL = ModelParams(resnet=ResNetParams(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))


def _split(n, seed, share=2):
    """Images of two classes, of which every ``share``-th has the second one."""
    labels = (np.arange(n) % share == 0).astype(np.int64)
    images = np.random.default_rng(seed).integers(0, 100, (n, 16, 16, 3), dtype=np.uint8)
    images[labels == 1, 4:12, 4:12] += 120
    return PackedSplit(images, labels, [f"{i}.png" for i in range(n)], [""] * n, [""] * n)


def _session(seed=1, loss=None, share=2, **options):
    options = {"epochs": 2, "batch_size": 8, "device": "cpu", "precision": "fp32"} | options
    params = Params(train=TrainParams(**options), seed=seed)
    split = _split(80, 0, share)
    loss_fn = TrainingLoss(loss or LossParams(), torch.ones(2, 2), np.bincount(split.labels).tolist())
    return TrainingSession(build_model(MODEL, CLASSES, seed), loss_fn, split, _split(30, 9), Preprocessing(16), params,
                           pick_hardware(params.train))  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A function that replaces standard error by a terminal, in the test itself: pytest restores it before."""

    def replace():
        monkeypatch.setattr("sys.stderr", stream := Terminal())
        return stream

    monkeypatch.setattr("udc_model.training.display._INTERVAL", 0)
    return replace


def _train(members=1, cost=lambda logits, labels: 0.25, **options):
    first = _session(members=members, **options)

    def session_of(number):
        return _session(seed=member_params(first.params, number).seed, members=members, **options)

    with RunDisplay(cost) as display:
        return train_members(session_of, members, display=display)


def test_one_line_at_the_start_names_images_parameters_time_and_end(caplog):
    caplog.set_level(logging.INFO)
    _train(epochs=3)
    parameters = sum(parameter.numel() for parameter in _session().model.parameters())
    (line,) = [record.message for record in caplog.records if record.message.startswith("training on")]
    pattern = rf"training on 80 images, {parameters:,} parameters: about \d+ s for 3 epochs, until [\d:]{{8}}"
    assert re.fullmatch(pattern, line)


def test_a_short_first_epoch_is_enough_for_the_line(caplog):
    caplog.set_level(logging.INFO)
    _train(batch_size=40, early_stopping_patience=5)
    assert [re.sub(r"\d+ s|[\d:]{8}|[\d,]+ parameters", "#", record.message) for record in caplog.records] == [
        "training on 80 images, #: at most about # for 2 epochs, until #"
    ]


def test_bar_on_a_terminal_has_loss_metric_cost_and_remaining_time(terminal):
    stream = terminal()
    _train(members=2)
    frames = re.findall(r"(\d+)%\|[^|]*\| ([^\r]*)", stream.getvalue())
    shown = [frame for frame in frames if "epoch" in frame[1]]
    assert re.match(r"member 1/2, epoch 1/2, \d+ s left, loss \d+\.\d{3}, [\d,]+ img/s", shown[0][1])
    percent, last = shown[-1]
    assert percent == "100"
    assert re.match(
        r"member 2/2, epoch 2/2, 1 s left, loss \d+\.\d{3}, validation log_loss \d\.\d{4}, cost 0\.250, [\d,]+ img/s",
        last,
    )
    assert stream.getvalue().endswith("\r")  # the bar is gone


def test_messages_appear_above_the_bar(terminal):
    stream = terminal()
    logger, handler = logging.getLogger(), logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        with RunDisplay() as display:
            train_members(
                lambda number: _session(), 1, None, lambda record: bool(logger.warning("epoch line")), display
            )
    finally:
        logger.removeHandler(handler)
    lines = [line.rpartition("\r")[2].strip() for line in stream.getvalue().split("\n")]
    assert lines.count("epoch line") == 2


def test_without_a_terminal_there_is_no_bar(capsys):
    _train()
    assert capsys.readouterr().err == ""


def test_bar_is_updated_ten_times_a_second_at_most(monkeypatch):
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    times = iter(np.arange(0, 1000, 0.03))
    monkeypatch.setattr("udc_model.training.display.time.monotonic", lambda: next(times))
    _train(epochs=1, batch_size=2)
    # 40 steps in 1.2 s of this clock, on which each update reads the time twice
    assert 3 <= len(re.findall("epoch 1/1, ", stream.getvalue())) <= 12


def test_the_bits_do_not_depend_on_the_display():
    (with_display,) = _train(epochs=2, cost=DisplayedCost(CostParams(), CLASSES, TrainingFrequencies([40, 40])))
    without = train_model(_session(epochs=2))
    assert with_display.curves == without.curves
    assert all(torch.equal(with_display.best_state[key], without.best_state[key]) for key in without.best_state)


@pytest.mark.parametrize(("presses", "is_finished"), [(1, True), (2, False)])
def test_ctrl_c_in_a_step_ends_after_the_epoch_and_twice_at_once(presses, is_finished, monkeypatch):
    steps, step = [], loop.train_step

    def train_step(session, batch, key):
        steps.append(key)
        if len(steps) == 12:  # the second step of the second epoch
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
        return step(session, batch, key)

    monkeypatch.setattr(loop, "train_step", train_step)
    # the tests may run in the background, where shells let programs ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with deferred_interrupt() as was_interrupted:
            if not is_finished:
                with pytest.raises(KeyboardInterrupt):
                    train_model(_session(epochs=5), lambda record: was_interrupted())
                assert len(steps) == 12
                return
            result = train_model(_session(epochs=5), lambda record: was_interrupted())
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(steps) == 20
    assert result.is_stopped
    assert [row["epoch"] for row in result.curves] == [1, 2]


def test_loss_of_class_frequencies_is_the_entropy_of_the_labels():
    session = _session(share=4)  # 20 of 80
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert constant_loss(session) == pytest.approx(entropy)
    balanced = _session(share=4, loss=LossParams(class_weights="balanced"))
    assert constant_loss(balanced) == pytest.approx(math.log(2))
    assert constant_loss(_session(share=4, sampling_power=0)) == pytest.approx(math.log(2))
    focal = _session(share=4, loss=LossParams(name="focal", focal_gamma=2))
    expected = -(0.25 * 0.75**2 * math.log(0.25) + 0.75 * 0.25**2 * math.log(0.75))
    assert constant_loss(focal) == pytest.approx(expected)
    assert constant_loss(_session(loss=LossParams(name="seesaw"))) is None


def test_loss_of_class_frequencies_is_that_of_constant_logits_with_smoothing_and_weights():
    session = _session(share=4, loss=LossParams(label_smoothing=0.1, class_weights="balanced"))
    labels = torch.from_numpy(session.train_split.labels)
    assert constant_loss(session) == pytest.approx(float(session.loss_fn(torch.zeros(80, 2), labels)), rel=1e-6)


@pytest.mark.parametrize(("epochs", "epoch"), [(1, 3), (9, 3), (10, 4), (30, 10)])
def test_the_warning_comes_after_a_third_of_the_epochs(epochs, epoch):
    assert check_epoch(Params(train=TrainParams(epochs=epochs))) == epoch


@pytest.mark.parametrize(
    ("options", "loss", "cost", "message"),
    [
        ({}, 0.69, 0.9, None),
        ({}, 0.69, 1.0, None),
        ({}, 0.7, 0.9, r"the training loss, 0\.7000, is no better than that of the class frequencies, 0\.6931: either "
                       "the labels do not belong to the images .*, or train.learning_rate does not fit"),
        ({"learning_rate": 1e-9}, 0.7, None, "either train.learning_rate, 1e-09, is too low, or the labels do not"),
        ({"learning_rate": 0.5}, 0.7, None, "either train.learning_rate, 0.5, is too high, or the labels do not"),
        ({"learning_rate": 0.05, "optimizer": "sgd"}, 0.7, None, "either the labels do not belong"),
        ({"num_frozen_stages": "all"}, 0.7, None, "either train.num_frozen_stages freezes random weights, or"),
        ({}, 0.1, 1.5, "validation split still cost 1.50 times as much as the best constant decision: either the "
                       "labels of the validation images"),
    ],
)  # fmt: skip
def test_hopeless_runs_are_recognised_with_two_causes(options, loss, cost, message):
    reason = hopeless(_session(**options), EpochRecord(3, {"train_loss": loss}, 1.0, 0), cost)
    assert (reason is None) if message is None else re.search(message, reason)
    if reason:
        assert reason.startswith("after epoch 3 the ")
        assert reason.partition(": either ")[2].count(", or ") == 1


@pytest.mark.parametrize(("recorded", "least"), [([None, None], None), ([0.8, 1.2], 0.8), ([], 1.5)])
def test_the_least_cost_is_not_known_after_a_resume_unless_checkpoints_have_it(recorded, least):
    session = _session(monitor="log_loss" if None in recorded else "normalised_cost", epochs=9)
    session.batches = session.build_batches()
    session.progress = Progress(epoch=len(recorded))
    for number, cost in enumerate(recorded, 1):
        scores = {"train_loss": 0.1, "validation_log_loss": 0.1}
        scores |= {} if cost is None else {"validation_normalised_cost": cost}
        session.progress.records.append(EpochRecord(number, scores, 1.0, 0))
    with RunDisplay(lambda logits, labels: 1.5) as display:
        display.start(session)
        display.add_validation(session, np.zeros((30, 2), np.float32), {"validation_log_loss": 0.1})
        assert display.least_cost == least
        reason = hopeless(session, EpochRecord(3, {"train_loss": 0.1}, 1.0, 0), display.least_cost)
        assert (reason is not None) == (least == 1.5)


def test_displayed_cost_is_that_of_the_least_expected_cost():
    costs = CostParams(matrix=[[0, 1], [10, 0]])
    cost = DisplayedCost(costs, CLASSES, TrainingFrequencies([40, 40]))
    labels = np.array([0, 0, 0, 1])
    # always b costs 3/4, always a 10/4
    sure = np.array([[9.0, 0], [9, 0], [0, 9], [0, 9]], np.float32)
    assert cost(sure, labels) == pytest.approx((1 / 4) / (3 / 4))
    # p(b) of 0.12 is more than 1 / 11: b is decided, though a is more probable
    unsure = np.array([[2.0, 0]] * 4, np.float32)
    assert cost(unsure, labels) == pytest.approx(1)
    assert cost(np.full((4, 2), np.nan, np.float32), labels) is None


def test_displayed_cost_of_an_overconfident_network_is_calibrated():
    cost = DisplayedCost(CostParams(matrix=[[0, 1], [10, 0]]), CLASSES, TrainingFrequencies([40, 40]))
    labels = np.array([0] * 60 + [1] * 40)
    logits = np.array([[20.0, 0]] * 70 + [[0, 20]] * 30, np.float32)  # ten times b is called a with certainty
    assert cost._of(logits, labels) == pytest.approx(100 / 60)
    assert cost(logits, labels) == pytest.approx(1)  # b is decided wherever it is possible


def test_rehearsal_measures_ten_steps_and_a_part_of_the_validation(monkeypatch):
    steps, step = [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *arguments: steps.append(1) or step(*arguments))
    for batch_size, per_epoch in ((8, 10), (2, 40), (27, 3)):
        steps.clear()
        rehearsal = rehearse(_session(batch_size=batch_size, epochs=7, members=2))
        assert (len(steps), rehearsal.steps) == (10, per_epoch)
        assert rehearsal.total == pytest.approx(14 * (per_epoch * rehearsal.step + rehearsal.rest))
