"""Search ranges of `udc tune`."""

import pytest

from udc_model.errors import UdcError
from udc_model.experiments.search_range import SearchRange


@pytest.mark.parametrize(
    ("setting", "kind", "arguments"),
    [
        ("train.learning_rate=log(1e-4, 1e-2)", "log", ("1e-4", "1e-2")),
        ("learning_rate=uniform(0,1)", "uniform", ("0", "1")),
        ("train.epochs=int(1,9)", "int", ("1", "9")),
        ("train.optimizer=choice(adamw,sgd)", "choice", ("adamw", "sgd")),
        ("train.epochs=3", "value", ("3",)),
    ],
)
def test_search_ranges_are_parsed(setting, kind, arguments):
    search_range = SearchRange.parse(setting)
    assert (search_range.kind, search_range.arguments) == (kind, arguments)
    assert search_range.name.startswith("train.")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs", "must be name=value"),
        ("train.epochs=int(1)", "takes two numbers"),
        ("train.epochs=int(9,1)", "the first number must be smaller"),
        ("train.learning_rate=log(0,1)", "the first number must be smaller and above 0"),
        ("train.optimizer=choice(adamw,)", "is empty"),
    ],
)
def test_malformed_search_ranges_are_errors(setting, message):
    with pytest.raises(UdcError, match=message):
        SearchRange.parse(setting)
