"""The estimated time of a training run, and how durations and clock times are written."""

from datetime import datetime

import pytest

from udc_model.config import TrainParams
from udc_model.training.timing import Position, RunTimes, clock_text, duration_text


def _times(warm_up=(9.0, 5.0, 3.0), steps=(1.0, 1.0, 2.0, 1.0, 1.0)):
    times = RunTimes()
    for seconds in (*warm_up, *steps):
        times.add_step(seconds)
    return times


def test_time_of_a_step_is_the_mean_without_the_warm_up_and_the_slowest_fifth():
    times = _times(steps=(1.0, 1.0, 2.0, 1.5))
    assert not times.is_reliable
    assert times.step == pytest.approx(5.5 / 4)
    times.add_step(50.0)
    assert times.is_reliable
    assert times.step == pytest.approx(5.5 / 4)
    for _ in range(5):
        times.add_step(2.5)
    assert times.step == pytest.approx((5.5 + 4 * 2.5) / 8)


def test_warm_up_is_what_the_first_steps_take_longer():
    assert _times().warm_up == pytest.approx(9 + 5 + 3 - 3)
    assert _times(warm_up=(0.5, 1.0, 1.0)).warm_up == 0


def test_before_the_end_of_the_warm_up_all_steps_count():
    times = _times(warm_up=(2.0, 4.0), steps=())
    assert times.step == 3.0
    assert RunTimes().step == 0


def test_remaining_time_counts_steps_validation_epochs_and_members():
    times = _times()
    params = TrainParams(epochs=4, members=3)
    # 10 steps of 1 s, and validation on half as many images, of which each takes a third of a step's time
    epoch = 10 + 10 * 0.5 / 3
    assert times.epoch(10, 0.5) == pytest.approx(epoch)
    assert times.remaining(params, 10, 0.5, Position(0, 0, 0)) == pytest.approx(12 * epoch)
    assert times.remaining(params, 10, 0.5, Position(1, 2, 4)) == pytest.approx(6 * epoch - 4)
    times.add_epoch(13.0, 10)  # 3 s in addition to the steps
    assert times.remaining(params, 10, 0.5, Position(2, 3, 0)) == pytest.approx(13)
    assert times.remaining(params, 10, 0.5, Position(2, 4, 0)) == 0


def test_max_minutes_limits_each_member():
    times = _times()
    times.add_rest(0)
    params = TrainParams(epochs=100, members=2, max_minutes=1)  # epochs of 10 s
    assert times.remaining(params, 10, 0, Position(0, 0, 0)) == pytest.approx(2 * 70)
    assert times.remaining(params, 10, 0, Position(1, 5, 0, 50.0)) == pytest.approx(20)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3570, "1 h 0 min"), (12000, "3 h 20 min"), (360_000, "4 d 4 h")],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_clock_times_have_seconds_if_soon_and_a_date_on_another_day():
    now = datetime(2026, 5, 1, 23, 50)
    assert clock_text(61, now) == "23:51:01"
    assert clock_text(601, now) == "2026-05-02 00:00"
    assert clock_text(400, now.replace(hour=12)) == "12:56:40"
