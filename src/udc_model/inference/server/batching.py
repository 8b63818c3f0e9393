"""Runs the network on the images of all requests that wait, in one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from udc_model.inference.outputs import Outputs

Images = NDArray[np.uint8]


class BusyError(Exception):
    """More images wait than allowed."""


class Batcher:
    """A queue of images, and the thread that computes their outputs.

    A batch is what has come while the one before was computed: alone, a request does not wait for others, and under
    load batches are large.

    Parameters
    ----------
    compute : maps prepared images (n, S, S, C) to outputs.
    largest_batch : images of a batch; a request with more of them is a batch of its own.
    most_waiting : images that may wait.
    on_batch : is called with the number of images of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Images], Outputs],
        largest_batch: int = 64,
        most_waiting: int = 1024,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._compute, self._largest, self._most, self._on_batch = compute, largest_batch, most_waiting, on_batch
        self._requests: deque[tuple[Images, Future[Outputs]]] = deque()
        self._changed, self._waiting, self._is_closed = threading.Condition(), 0, False
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return self._waiting

    def submit(self, images: Images) -> Future[Outputs]:
        """The outputs of images, when they are computed.

        Raises
        ------
        BusyError
            Too many images wait, or the batcher is closed.
        """
        future: Future[Outputs] = Future()
        with self._changed:
            if self._is_closed or (self._waiting and self._waiting + len(images) > self._most):
                raise BusyError
            self._requests.append((images, future))
            self._waiting += len(images)
            self._changed.notify()
        return future

    def close(self) -> None:
        """Compute what waits, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while requests := self._next_batch():
            # A request that was cancelled while it waited is left out; from here on none can be cancelled.
            self._answer([each for each in requests if each[1].set_running_or_notify_cancel()])

    def _answer(self, requests: list[tuple[Images, Future[Outputs]]]) -> None:
        """Compute the outputs of requests; they get an error of it, and the thread continues."""
        if not requests:
            return
        try:
            images = np.concatenate([images for images, _ in requests])
            self._on_batch(len(images))
            outputs = self._compute(images)
            ends = np.cumsum([len(images) for images, _ in requests])
            results = [outputs[end - len(images) : end] for end, (images, _) in zip(ends, requests, strict=True)]
        except Exception as error:
            for _, future in requests:
                future.set_exception(error)
            return
        for result, (_, future) in zip(results, requests, strict=True):
            future.set_result(result)

    def _next_batch(self) -> list[tuple[Images, Future[Outputs]]]:
        """The next requests, which wait no longer; none if the batcher is closed and nothing waits."""
        with self._changed:
            while not self._requests and not self._is_closed:
                self._changed.wait()
            batch: list[tuple[Images, Future[Outputs]]] = []
            size = 0
            while self._requests and (not batch or size + len(self._requests[0][0]) <= self._largest):
                batch.append(self._requests.popleft())
                size += len(batch[-1][0])
            self._waiting -= size
        return batch
