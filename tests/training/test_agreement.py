"""Processes of a training run agree before its first step; here they are threads that exchange through a list."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from udc_model.errors import UdcError
from udc_model.training.agreement import check_agreement, check_first_has_checkpoints, completed_by_all
from udc_model.training.distribution import Ranks

WORLD = 3


@dataclass(frozen=True)
class _Threads(Ranks):
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(WORLD))
    data: list = field(default_factory=lambda: [None] * WORLD)

    def of_all(self, data):
        self.data[self.rank] = data
        self.barrier.wait(10)
        result = list(self.data)
        self.barrier.wait(10)
        return result

    def from_first(self, data):
        return self.of_all(data)[0]


def _run(function):
    """The result or the error of ``function(ranks)`` in each of the threads."""
    barrier, data = threading.Barrier(WORLD), [None] * WORLD
    with ThreadPoolExecutor(WORLD) as threads:
        futures = [threads.submit(function, _Threads(rank, WORLD, 0, barrier, data)) for rank in range(WORLD)]
        return [str(future.exception()) if future.exception() else future.result() for future in futures]


def test_each_process_gets_its_own_result():
    assert _run(lambda ranks: completed_by_all(ranks, lambda: ranks.rank + 10)) == [10, 11, 12]


def test_an_error_of_one_process_ends_all_with_its_machine():
    def action(rank):
        if rank == 1:
            raise UdcError("data/prepared: is missing")

    messages = _run(lambda ranks: completed_by_all(ranks, lambda: action(ranks.rank)))
    assert len(set(messages)) == 1
    assert messages[0].startswith("process 1 (")
    assert messages[0].endswith("): data/prepared: is missing")


def test_an_equal_error_of_all_is_not_repeated():
    def action():
        raise UdcError("params.yaml: reason")

    assert _run(lambda ranks: completed_by_all(ranks, action)) == ["params.yaml: reason"] * WORLD


def test_a_single_process_raises_its_own_error():
    def action():
        raise UdcError("reason")

    with pytest.raises(UdcError, match=r"^reason$"):
        completed_by_all(Ranks(), action)
    check_agreement(Ranks(), {"data": "a"})


def test_equal_facts_are_accepted():
    assert _run(lambda ranks: check_agreement(ranks, {"data": "a", "code": {"x.py": "1"}})) == [None] * WORLD


def test_processes_that_differ_are_named_with_the_first_value():
    def facts(rank):
        return {"data": "a", "code": {"x.py": "1", "y.py": "2" if rank == 0 else "3"}}

    messages = _run(lambda ranks: check_agreement(ranks, facts(ranks.rank)))
    assert len(set(messages)) == 1
    assert messages[0].startswith("process 1 (")
    assert "), process 2 (" in messages[0]
    assert "): differs from process 0 (" in messages[0]
    assert "): code.y.py is '3' there and '2' here; give all machines the same parameters" in messages[0]


@pytest.mark.parametrize(("owners", "is_refused"), [((), False), ((0,), False), ((2,), True), ((0, 2), False)])
def test_checkpoints_of_another_process_than_the_first_are_not_ignored(owners, is_refused, tmp_path):
    def folder(rank):
        # the names differ as those of machines with other hardware would; the first one's counts
        name = "first" if rank == 0 else "other"
        path = tmp_path / str(rank) / name
        if rank in owners:
            (path.parent / "first").mkdir(parents=True)
            (path.parent / "first/000001-000000000-0.safetensors").touch()
        return path

    messages = _run(lambda ranks: check_first_has_checkpoints(ranks, folder(ranks.rank)))
    assert len(set(messages)) == 1
    assert (messages[0] is not None) == is_refused
    if is_refused:
        assert messages[0].startswith("process 2 (")
        assert "has the checkpoints of this training run, and the first process has none" in messages[0]
