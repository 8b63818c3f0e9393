"""Tests of worker processes: results in order; an item that kills or blocks its process is reported alone."""

import pytest

from udc_model.data import workers
from udc_model.data.workers import run_in_workers
from udc_model.errors import UdcError

# In a module of its own, because spawned processes import it.
MODULE = """
import os, time

def work(items):
    return [_one(item) for item in items]

def _one(item):
    if item == "crash" or item == 150:
        os._exit(11)
    if item == "hang":
        while True:
            pass
    return f"done {item}"
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(workers, "_MIN_ITEMS", 1)
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    import harmful

    return harmful.work


def _failed(item):
    return [f"failed {item}"]


def _run(work, items):
    return [result for part in run_in_workers(work, items, _failed) for result in part]


def test_few_items_run_in_this_process():
    assert list(run_in_workers(list, [1, 2, 3], _failed)) == [[1, 2, 3]]
    assert list(run_in_workers(list, [], _failed)) == []


@pytest.mark.slow
def test_results_are_in_order_and_culprits_are_named(work, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS_PER_ITEM", 1.0)
    items = [*range(100), "hang", *range(100, 200)]
    expected = [f"failed {item}" if item in ("hang", 150) else f"done {item}" for item in items]
    assert _run(work, items) == expected


@pytest.mark.slow
def test_many_failures_end_with_an_error(work, monkeypatch):
    monkeypatch.setattr(workers, "_MAX_FAILURES", 1)
    with pytest.raises(UdcError, match="more than 1 images ended the process"):
        _run(work, ["crash", "crash", "a"])
