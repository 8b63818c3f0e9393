"""Ctrl-C during a training run: the first one ends it after the current epoch, the second one at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

COMMAND = "UDC_COMMAND"  # environment variable of launched processes: the command of the process that launched them
STOP_FILE = "UDC_STOP_FILE"  # environment variable of launched processes: a file that exists after Ctrl-C
_ANSWER = "\nCtrl-C: training ends after this epoch; Ctrl-C again ends it at once\n"


@contextmanager
def deferred_interrupt(on_request: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C is a request; the second one raises `KeyboardInterrupt`, as without the block.

    Ctrl-C is as before where Python installs no handlers (outside the main thread), and where the program ignores the
    signal or has a handler of its own.

    Parameters
    ----------
    on_request : called at the first Ctrl-C, in the signal handler.

    Yields
    ------
    A function that returns whether Ctrl-C was pressed, here or in the process that launched this one.
    """
    process, is_requested = os.getpid(), False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal is_requested
        if is_requested:
            raise KeyboardInterrupt
        is_requested = True
        if os.getpid() != process:  # a loader worker, which Ctrl-C reaches too
            return
        on_request()
        with suppress(OSError):
            os.write(2, _ANSWER.encode())  # a handler must not write to a stream that it may have interrupted

    def was_requested() -> bool:
        return is_requested or (STOP_FILE in os.environ and Path(os.environ[STOP_FILE]).exists())

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield was_requested
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield was_requested
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def command_to_resume() -> str:
    """The command that resumes this training run, as a person types it."""
    if "DVC_STAGE" in os.environ:
        return f"`{_command_of_dvc()}`"
    if "TORCHELASTIC_RUN_ID" in os.environ and COMMAND not in os.environ:
        return "the same torchrun command"
    return f"`{os.environ.get(COMMAND) or this_command()}`"


def _command_of_dvc() -> str:
    """The command line of the DVC process that runs this stage."""
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            words = process.cmdline()
            # `dvc` is a script: the interpreter comes first
            position = next((n for n, word in enumerate(words[:2]) if Path(word).name == "dvc"), None)
            if position is not None:
                return shlex.join(["dvc", *words[position + 1 :]])
    return "dvc repro"


def this_command() -> str:
    """The command line of this process, as ``udc train`` or ``python -m udc_model.stages.train``."""
    if sys.orig_argv[1:2] == ["-m"]:
        return shlex.join(["python", *sys.orig_argv[1:]])
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
