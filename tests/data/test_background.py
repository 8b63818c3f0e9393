"""Tests of work in threads: items that are computed ahead, and functions that run meanwhile."""

import threading

import pytest
import torch

from udc_model.data.background import computed_ahead, run_in_background
from udc_model.errors import UdcError


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_computed_ahead_yields_all_items_in_order_and_few_ahead(count):
    computed = []

    def items():
        for number in range(count):
            computed.append(number)
            yield torch.tensor(number)

    for position, item in enumerate(computed_ahead(items(), 2)):
        assert item == position
        assert len(computed) <= position + 3
    assert computed == list(range(count))


def test_computed_ahead_passes_errors_on():
    def items():
        yield torch.tensor(0)
        raise UdcError("damaged")

    ahead = computed_ahead(items())
    assert next(ahead) == 0
    with pytest.raises(UdcError, match="damaged"):
        next(ahead)


def test_items_are_computed_ahead_in_order_and_errors_arrive():
    computed = []

    def items():
        for number in range(5):
            if number == 4:
                raise ValueError("the fifth")
            computed.append(number)
            yield number

    ahead = computed_ahead(items(), 2)
    assert next(ahead) == 0
    assert [next(ahead) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="the fifth"):
        next(ahead)
    assert computed == [0, 1, 2, 3]
    endless = computed_ahead(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()  # does not wait for more than what is pending
    assert list(computed_ahead(iter([]), 3)) == []


def test_functions_run_in_the_background_one_after_the_other():
    done = []
    with run_in_background() as run:
        for k in range(20):
            run(lambda k: done.append((k, threading.get_ident())), k)
    assert [k for k, _ in done] == list(range(20))
    assert {thread for _, thread in done} != {threading.get_ident()}


def test_an_error_in_the_background_is_raised_at_the_end():
    def fail():
        raise UdcError("disk full")

    done = []

    def work():
        with run_in_background() as run:
            run(fail)
            run(done.append, 1)

    with pytest.raises(UdcError, match="disk full"):
        work()
    assert done == [1]
