"""How an entry point ends: its exit status, and the one place where exceptions become messages."""

from __future__ import annotations

import errno
import io
import logging
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from udc_model.errors import INTERRUPTED, TRY_AGAIN, Interrupted, TemporaryError, UdcError, without_credentials
from udc_model.files import remove_oldest, write_atomically

logger = logging.getLogger(__name__)

UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
_LOGS = Path(".udc") / "errors"
_NUM_LOGS = 20


def exit_status(main: Callable[[], None]) -> int:
    """Run the main function of a program and return its exit status; no exception prints a traceback.

    0; 1 after an error that the user can fix: a `UdcError`, one of the system (a full disk, a file that cannot be read)
    or a lack of memory; 75 after a `TemporaryError`; 130 after an interrupt (Ctrl-C or SIGTERM); 141 if the reader of
    the output ended early, as in ``udc predict folder | head``, which is the status of commands that the signal SIGPIPE
    ends; 70 after any other exception, which is a fault of this project. The traceback of errors that are no `UdcError`
    is written to a file, which the message names.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("udc_model").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except UdcError as error:
        logger.error("error: %s", error)
        return TRY_AGAIN if isinstance(error, TemporaryError) else 1
    except Interrupted as interrupt:
        if str(interrupt):
            logger.error("error: %s", interrupt)
        return INTERRUPTED
    except KeyboardInterrupt:
        logger.error("error: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if _is_of_output(error):
            _discard_output()
            logger.error("error: the output cannot be written: %s", error.strerror)
            return 1
        logger.error("error: %s (details: %s)", _describe(error), _write_log(error))
        return 1
    except Exception as error:
        if _is_lack_of_memory(error):
            logger.error("error: not enough memory: %s (details: %s)", _first_line(error), _write_log(error))
            return 1
        logger.error("error: unexpected %s: %s\nThis is a fault of UDC-Model. Please report it with the file %s and "
                     "the output of `udc doctor`, see https://github.com/udc-model/udc-model/issues",
                     type(error).__name__, _first_line(error), _write_log(error))  # fmt: skip
        return UNEXPECTED
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # no traceback from a library that is interrupted at exit
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM as Ctrl-C, so that clean-up runs and the MLflow run ends with status KILLED."""
    raise KeyboardInterrupt


def _is_of_output(error: OSError) -> bool:
    """Whether writing standard output failed: modules of the command line, and this one, write nothing else."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).startswith(("udc_model.cli", __name__))


def _discard_output() -> None:
    """Send what standard output still holds to nowhere, so that Python does not fail to write it when it ends."""
    with suppress(io.UnsupportedOperation), Path(os.devnull).open("wb") as devnull:
        os.dup2(devnull.fileno(), sys.stdout.fileno())


def _describe(error: OSError) -> str:
    """The file and the system's message, with advice where there is one."""
    advice = {errno.ENOSPC: "; free disk space and run the command again", errno.EDQUOT: "; free disk space",
              errno.EMFILE: "; raise the limit of open files (ulimit -n)"}  # fmt: skip
    file = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return without_credentials(f"{file}{error.strerror or _first_line(error)}{advice.get(error.errno or 0, '')}")


def _is_lack_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error)


def _first_line(error: Exception) -> str:
    return without_credentials(next(iter(str(error).splitlines()), "")) or "no message"


def _write_log(error: Exception) -> str:
    """Write command, versions and traceback to a file, without credentials; returns where it is."""
    text = without_credentials("\n".join([
        f"command: {shlex.join(sys.argv)}", f"folder: {Path.cwd()}", f"python: {sys.version}",
        f"system: {platform.platform()}", "", *traceback.format_exception(error),
    ]))  # fmt: skip
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path.cwd() / _LOGS, Path(tempfile.gettempdir())):
        try:
            write_atomically(folder / name, text)
        except UdcError:
            continue
        if folder.name == _LOGS.name:
            remove_oldest(folder, "*.txt", _NUM_LOGS)
        return str(folder / name)
    return "none could be written"
