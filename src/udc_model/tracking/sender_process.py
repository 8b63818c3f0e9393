"""The process beside a stage that logs its journal to MLflow, as the stage sees it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import udc_model
from udc_model.tracking.journal import SENDER_LOG


class SenderProcess:
    """Runs `udc_model.tracking.sender` for one journal.

    It is in its own session, so it outlives the stage and its process group. It holds neither the stage's output, which
    DVC or a shell reads to its end, nor the stage's folder.

    Parameters
    ----------
    folder : of the journal.
    root : the repository's root.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        package = Path(udc_model.__file__).parent.parent
        with (folder / SENDER_LOG).open("ab") as log:  # to append: the sender opens it a second time
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "udc_model.tracking.sender", str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=root, start_new_session=True,
                env=os.environ | {"DVC_ROOT": str(root), "PYTHONPATH": str(package)},
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._input.fileno(), False)
        self._incomplete = b""

    def notify(self) -> None:
        """Say that the journal has a new entry."""
        # BlockingIOError: the sender is behind and needs no other signal. BrokenPipeError: it has failed.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._input.fileno(), b"\n")

    def read_messages(self, timeout: float | None) -> tuple[list[dict[str, Any]], bool]:
        """The sender's messages, after at most ``timeout`` seconds (None: no limit), and whether it may send more.

        What Python prints when it starts, before the sender's own code, is left out.
        """
        ready, _, _ = select.select([self._output], [], [], timeout)
        if not ready:
            return [], True
        received = os.read(self._output.fileno(), 65536)
        *lines, self._incomplete = (self._incomplete + received).split(b"\n")
        return [message for line in lines if (message := _message(line)) is not None], received != b""

    def release(self) -> None:
        """Let the sender finish by itself."""
        self._input.close()
        self._output.close()

    def has_failed(self) -> bool:
        """Whether the sender has ended with an error."""
        return self._process.poll() not in (None, 0)


def _message(line: bytes) -> dict[str, Any] | None:
    """The message in a line; None if the line is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
