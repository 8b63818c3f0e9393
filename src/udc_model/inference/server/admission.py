"""Counts what accepted requests hold until they are answered, and refuses more than fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from udc_model.inference.server.batching import BusyError


@dataclass
class Held:
    """What a request, or all of them together, hold: images, and bytes of bodies."""

    images: int = 0
    bytes: int = 0


class Admission:
    """What the requests hold that are accepted and not answered yet; for one thread, that of the event loop.

    Parameters
    ----------
    most_images, most_bytes : of all requests.
    """

    def __init__(self, most_images: int, most_bytes: int) -> None:
        self._most, self._held = Held(most_images, most_bytes), Held()

    @property
    def is_full(self) -> bool:
        """Whether the next request is refused."""
        return self._held.images >= self._most.images or self._held.bytes >= self._most.bytes

    @contextmanager
    def request(self) -> Iterator[Held]:
        """Count a request, at first with one image, during the block; `add` counts more for it.

        Raises
        ------
        BusyError
            The other requests hold as much as is allowed.
        """
        held = Held()
        if self.is_full:
            raise BusyError
        try:
            self.add(held, images=1)
            yield held
        finally:
            self._held.images -= held.images
            self._held.bytes -= held.bytes

    def add(self, held: Held, images: int = 0, n_bytes: int = 0) -> None:
        """Count more images and bytes for a request.

        Raises
        ------
        BusyError
            All requests together would hold more than is allowed.
        """
        if self._held.images + images > self._most.images or self._held.bytes + n_bytes > self._most.bytes:
            raise BusyError
        for each in (held, self._held):
            each.images += images
            each.bytes += n_bytes
