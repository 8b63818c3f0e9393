"""Tests of iterators whose items a thread computes ahead."""

import pytest
import torch

from udc_model.data.background import computed_ahead
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
