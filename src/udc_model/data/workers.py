"""Runs a function on many untrusted files in worker processes; a file that kills or blocks its worker is named.

Decoders are C code. An image that crashes one, or keeps it busy forever, ends only a worker process: the files that
were being processed run again one by one, and the culprit is reported.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from udc_model.config.limits import available_cores
from udc_model.errors import UdcError

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_PER_ITEM = 300.0  # then the worker is killed
_CHUNK = 32  # items per task: small enough for a smooth progress bar, large enough to hide the overhead of a task
_MIN_ITEMS = 256  # fewer items take less time than the start of worker processes
_MAX_FAILURES = 20


def run_in_workers(
    function: Callable[[Iterable[Item]], Result], items: Sequence[Item], failed: Callable[[Item], Result]
) -> Iterator[Result]:
    """Apply a function to consecutive parts of a sequence, on all cores if it is long.

    Parameters
    ----------
    function : maps some items to a result; it is pickled for the worker processes.
    items : all items.
    failed : the result for an item that kills its worker process, or occupies it for `SECONDS_PER_ITEM`.

    Returns
    -------
    The results, in the order of the items.

    Raises
    ------
    UdcError
        More than 20 items kill their worker process.
    """
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    processes = number_of_workers(len(items))
    if processes == 1:
        yield from map(function, chunks)
        return
    failures = 0
    while chunks:
        n_done = 0
        with _pool(processes) as pool:
            try:
                for result in pool.map(partial(_timed, function, SECONDS_PER_ITEM), chunks):
                    yield result
                    n_done += 1
                return
            except BrokenProcessPool:
                pass
        # Each process had one chunk, and another may have waited for it.
        n_suspects = n_done + 2 * processes
        for result, has_failed in _one_by_one(
            function, [x for chunk in chunks[n_done:n_suspects] for x in chunk], failed
        ):
            failures += has_failed
            if failures > _MAX_FAILURES:
                raise UdcError(
                    f"more than {_MAX_FAILURES} images ended the process that decodes them, probably because memory "
                    "ran out; lower data.max_pixels, or close other programs"
                )
            yield result
        chunks = chunks[n_suspects:]


def number_of_workers(n_items: int) -> int:
    """Number of processes that `run_in_workers` uses for so many items; 1 stands for this process."""
    return available_cores() if n_items >= _MIN_ITEMS else 1


def _one_by_one(
    function: Callable[[Iterable[Item]], Result], items: Sequence[Item], failed: Callable[[Item], Result]
) -> Iterator[tuple[Result, bool]]:
    """Yield the result of each item, and whether the item killed its process."""
    position = 0
    while position < len(items):
        with _pool(1) as pool:
            try:
                for item in items[position:]:
                    yield pool.submit(_timed, function, SECONDS_PER_ITEM, [item]).result(), False
                    position += 1
            except BrokenProcessPool:
                yield failed(items[position]), True
                position += 1


def _pool(processes: int) -> ProcessPoolExecutor:
    # "spawn": forking a process that has threads (a progress bar's, a library's) can deadlock.
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def _timed(function: Callable[[Iterable[Item]], Result], seconds: float, items: Sequence[Item]) -> Result:
    """Apply a function in a worker process, which the alarm ends if an item takes too long, even inside C code."""
    try:
        return function(_restarting_the_alarm(seconds, items))
    finally:
        _alarm(0)


def _restarting_the_alarm(seconds: float, items: Sequence[Item]) -> Iterator[Item]:
    for item in items:
        _alarm(seconds)
        yield item


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
