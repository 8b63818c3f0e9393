"""Work in a thread: items that are computed ahead of the code that uses them, and functions that run meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar, cast

Item = TypeVar("Item")


def computed_ahead(items: Iterator[Item], count: int = 2) -> Iterator[Item]:
    """Yield the items of an iterator; a thread computes the next ``count`` of them meanwhile."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield cast(Item, item)


@contextmanager
def run_in_background() -> Iterator[Callable[..., None]]:
    """Give a function that runs another one, with its arguments, in a thread, one after the other.

    The end of the block waits for them, and raises the first error of one.
    """
    with ThreadPoolExecutor(1) as pool:
        started: list[Future[None]] = []

        def run(function: Callable[..., None], *arguments: object) -> None:
            started.append(pool.submit(function, *arguments))

        yield run
        for each in started:
            each.result()


def run_now(function: Callable[..., None], *arguments: object) -> None:
    """Run a function, with its arguments, in this thread; in place of what `run_in_background` gives."""
    function(*arguments)
