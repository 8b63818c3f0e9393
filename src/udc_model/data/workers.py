"""Runs a function on many untrusted files in worker processes; a file that kills or blocks its worker is named.

Decoders are C code. An image that crashes one, or keeps it busy forever, ends only a worker process: the files that
were being processed run again one by one, and the culprit is reported. A worker ends with the process that started it,
however that one ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Generic, TypeVar

from udc_model.config.limits import available_cores
from udc_model.errors import UdcError
from udc_model.native.memory import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_PER_ITEM = 300.0  # then the worker is killed
_PER_TASK = 32  # items per task: small enough for a smooth progress bar, large enough to hide the overhead of a task
_MIN_ITEMS = 256  # fewer items take less time than the start of worker processes
_MAX_FAILURES = 20


@dataclass
class _Task(Generic[Item, Result]):
    """Items whose results are computed together, or are to be: ``future`` is None before the task is submitted."""

    items: list[Item]
    future: Future[Result] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the result was computed."""
        return self.future is not None and self.future.done() and self.future.exception() is None


def run_in_workers(
    function: Callable[[Iterable[Item]], Result],
    items: Iterable[Item],
    failed: Callable[[Item], Result],
    processes: int,
    per_task: int = _PER_TASK,
) -> Generator[Result, None, None]:
    """Apply a function to consecutive parts of a sequence, in worker processes.

    The items are read a bounded number of tasks before their results are used, so neither items nor results fill the
    memory if the caller is slower than the workers.

    Parameters
    ----------
    function : maps some items to a result; it is pickled for the worker processes.
    items : all items.
    failed : the result for an item that kills its worker process, or occupies it for `SECONDS_PER_ITEM`.
    processes : number of worker processes, as from `number_of_workers`; 1 is this process.
    per_task : items of a task.

    Returns
    -------
    The results, in the order of the items.

    Raises
    ------
    UdcError
        More than 20 items kill their worker process.
    """
    rest = iter(items)
    new = iter(lambda: list(islice(rest, per_task)), [])
    if processes == 1:
        yield from map(function, new)
        return
    waiting: deque[_Task[Item, Result]] = deque()
    failures, ahead = 0, 4 * processes + 8
    while True:
        with _pool(processes) as pool:
            try:
                yield from _results(pool, partial(_timed, function, SECONDS_PER_ITEM), waiting, new, ahead)
                return
            except BrokenProcessPool:
                pass
        suspects = _suspects(waiting, 2 * processes)
        for result, has_failed in _one_by_one(function, suspects, failed):
            failures += has_failed
            if failures > _MAX_FAILURES:
                raise UdcError(
                    f"more than {_MAX_FAILURES} images ended the process that decodes them, probably because memory "
                    "ran out; lower data.max_pixels, or close other programs"
                )
            yield result


def _results(
    pool: ProcessPoolExecutor,
    call: Callable[[Sequence[Item]], Result],
    waiting: deque[_Task[Item, Result]],
    new: Iterator[list[Item]],
    ahead: int,
) -> Iterator[Result]:
    """Yield the results of ``waiting`` and of new tasks, of which at most ``ahead`` are submitted before they are used.

    If the pool breaks, ``waiting`` has the tasks whose results were not used.
    """
    for task in waiting:
        if not task.is_done:
            task.future = _submitted(pool, call, task.items)
    while True:
        while len(waiting) < ahead and (items := next(new, None)) is not None:
            waiting.append(task := _Task(items))
            task.future = _submitted(pool, call, items)
        if not waiting:
            return
        assert waiting[0].future is not None
        result = waiting[0].future.result()
        waiting.popleft()
        yield result


def _submitted(
    pool: ProcessPoolExecutor, call: Callable[[Sequence[Item]], Result], items: Sequence[Item]
) -> Future[Result]:
    """Submit a task, for which the pool may start a process.

    A spawned process imports the main module, which is the complete stage with its libraries, but a worker only needs
    the module of the function. So the main module is an empty one meanwhile.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        return pool.submit(call, items)
    finally:
        sys.modules["__main__"] = main


def _suspects(waiting: deque[_Task[Item, Result]], count: int) -> list[Item]:
    """Remove the first tasks, up to the last of ``count`` without a result; returns their items.

    When a process died, each had one task, and another may have waited for it.
    """
    items: list[Item] = []
    while waiting and count:
        task = waiting.popleft()
        count -= not task.is_done
        items += task.items
    return items


def number_of_workers(n_items: int) -> int:
    """Number of processes for `run_in_workers` with so many items; 1 is the calling process."""
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
                    call = partial(_timed, function, SECONDS_PER_ITEM)
                    yield _submitted(pool, call, [item]).result(), False
                    position += 1
            except BrokenProcessPool:
                yield failed(items[position]), True
                position += 1


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    # "spawn": forking a process that has threads (a progress bar's, a library's) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to the parent too, which ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed; otherwise it would wait for tasks forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
