"""Progress of ``udc score``: a bar on a terminal, otherwise a line each minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

logger = logging.getLogger(__name__)

_SECONDS = 60.0  # between two lines


class ScoringProgress:
    """Shows progress at each call; a context that closes the bar.

    Parameters
    ----------
    clock : seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bar: tqdm[NoReturn] | None = None
        self._started = self._line = clock()

    def __enter__(self) -> ScoringProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int, new: int) -> None:
        """Show the number of images that are done, of all, and of those that were done since the first call."""
        now = self._clock()
        if self._bar is None:
            self._started = self._line = now
            self._bar = tqdm(desc="scoring", total=total, initial=done, unit="img", disable=None, leave=False)
            return
        self._bar.update(done - self._bar.n)
        if self._bar.disable and now - self._line >= _SECONDS:
            self._line, rate = now, new / (now - self._started)
            logger.info("%s of %s images, %.3g images/s, about %s left", f"{done:,}", f"{total:,}", rate,
                        tqdm.format_interval((total - done) / rate))  # fmt: skip
