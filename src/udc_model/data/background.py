"""Computes the items of an iterator in a thread, ahead of the code that uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
