"""Delivers journals to MLflow: a process beside each stage, which finishes after the stage, and ``udc sync``."""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import Timeout

from udc_model.errors import UdcError, without_credentials
from udc_model.tracking.delivery import Delivery, is_delivered, store_of
from udc_model.tracking.journal import (
    SENDER_LOG,
    append_killed_end,
    delete_journal,
    is_written,
    pending_journals,
    read_entries,
    record_warning,
    sender_lock,
)
from udc_model.tracking.links import link_experiments
from udc_model.tracking.store import open_store, reason_of, repository_root
from udc_model.tracking.tags import MODEL_SHA256, read_tag

_LAST_DELAYS = (1.0, 2.0, 4.0)  # seconds before each of the last attempts, after the stage has ended
_MAX_DELAY = 30.0  # seconds between two attempts while the stage is running
_GATHER = 2.0  # seconds during which entries are collected for one request
_TRY = 0.5  # seconds; longer than another process needs to test whether a lock is held
_START_DELAY = 2.0  # seconds before `import mlflow`, which takes processor time that a short stage needs


class State(Enum):
    """What a sender is doing; :meth:`Sender._next` has all transitions."""

    CONNECTING = "connecting"  # opens the store and the run
    SENDING = "sending"  # delivers the entries that the journal has now
    WAITING = "waiting"  # all of them are delivered; waits until the stage writes more
    RETRYING = "retrying"  # the last attempt failed; waits before the next one
    DONE = "done"  # everything is delivered, and the journal deleted
    GAVE_UP = "gave up"  # the stage has ended and the last attempts failed; the journal stays


class EndedStage:
    """A stage that has ended: nothing can be reported to it and nothing will be written."""

    is_running = False

    def report(self, **values: Any) -> bool:
        """Send the stage a message; returns whether it could be sent."""
        return False

    def wait_for_entry(self) -> None:
        """Wait until the stage has written an entry or has ended."""

    def pause(self, seconds: float) -> None:
        """Wait; returns early if the stage ends meanwhile."""
        time.sleep(seconds)


class RunningStage(EndedStage):
    """The stage that started this process: it writes a line to standard input after each entry and reads messages, JSON
    lines, from the pipe with the descriptor ``output``."""

    is_running = True

    def __init__(self, output: int) -> None:
        self._output = output

    def report(self, **values: Any) -> bool:
        """Send the stage a message; returns whether it could be sent."""
        try:
            os.write(self._output, json.dumps(values).encode() + b"\n")
        except BrokenPipeError:
            return False
        return self.is_running

    def wait_for_entry(self) -> None:
        """Wait until the stage has written an entry or has ended."""
        self._read(None)

    def pause(self, seconds: float) -> None:
        """Wait; returns early if the stage ends meanwhile."""
        if not self.is_running:
            time.sleep(seconds)
            return
        deadline = time.monotonic() + seconds
        while self.is_running and (remaining := deadline - time.monotonic()) > 0:
            self._read(remaining)

    def _read(self, timeout: float | None) -> None:
        stdin = sys.stdin.fileno()
        ready, _, _ = select.select([stdin], [], [], timeout)
        if ready:
            self.is_running = os.read(stdin, 65536) != b""


class Sender:
    """Delivers one journal, whose ``sender.lock`` the caller holds.

    Parameters
    ----------
    stage : that writes the journal.
    last_delays : seconds before each attempt that is made after the stage has ended and one has failed.
    """

    def __init__(self, folder: Path, stage: EndedStage, last_delays: Sequence[float] = _LAST_DELAYS) -> None:
        self.folder, self.stage, self.last_delays = folder, stage, last_delays
        self.delivery = Delivery(folder, self._warn)
        self.error: UdcError | None = None
        self._failures, self._last_failures, self._delay = 0, 0, 0.0

    def run(self) -> State:
        """Deliver until the end of the journal, or until the last attempt fails; returns the last state."""
        state = State.CONNECTING
        while state not in (State.DONE, State.GAVE_UP):
            state = self._next(state)
        return state

    def _next(self, state: State) -> State:
        """Do what ``state`` says; returns the state after it."""
        try:
            match state:
                case State.CONNECTING:
                    deliver_predecessors(self.folder, self.delivery.header)
                    run_id = self.delivery.connect()
                    self.stage.report(run_id=run_id, name=self.delivery.progress.name)
                    return State.SENDING
                case State.SENDING:
                    is_complete = self.delivery.send()
                    self._report_recovery()
                    if not is_complete and self.stage.is_running:
                        return State.WAITING
                    if is_complete or is_delivered(self.folder):  # by a process that was killed before it deleted it
                        delete_journal(self.folder)
                        return State.DONE
                    append_killed_end(self.folder)  # the stage was killed: it had ended before send() began
                    return State.SENDING
                case State.WAITING:
                    self.stage.wait_for_entry()
                    self.stage.pause(_GATHER if self.stage.is_running else 0)
                    return State.SENDING
                case _:  # RETRYING
                    self.stage.pause(self._delay)
                    return State.CONNECTING
        except UdcError as error:
            return self._fail(error)

    def _fail(self, error: UdcError) -> State:
        self.error = error
        self._failures += 1
        if self._failures == 2:  # a single failure may be a database that was busy
            self.stage.report(trouble=str(error))
        if self.stage.is_running:
            self._delay = min(_MAX_DELAY, 2.0 ** (self._failures - 1))
            return State.RETRYING
        if self._last_failures == len(self.last_delays):
            self.stage.report(trouble=str(error))
            return State.GAVE_UP
        self._delay = self.last_delays[self._last_failures]
        self._last_failures += 1
        return State.RETRYING

    def log_error(self) -> None:
        """Append the last error with its traceback to the journal's log; the last line is the message."""
        assert self.error is not None
        text = without_credentials("".join(traceback.format_exception(self.error)))
        with suppress(OSError), (self.folder / SENDER_LOG).open("a", encoding="utf-8") as log:
            log.write(f"{text}{self.delivery.header['uri']}: {self.error}\n")

    def _report_recovery(self) -> None:
        if self._failures > 1:
            self.stage.report(trouble="")
        self.error, self._failures, self._last_failures = None, 0, 0

    def _warn(self, message: str) -> None:
        if not self.stage.report(warning=message):
            record_warning(self.folder.parents[2], message)


def deliver_predecessors(folder: Path, header: dict[str, Any]) -> None:
    """Deliver the journals that must be delivered before this one, or wait until other processes have done so.

    An evaluation joins the run of the training, so the training comes first, and earlier evaluations of the same model.

    Raises
    ------
    UdcError
        One of them cannot be delivered.
    """
    for earlier in _predecessors(folder, header):
        try:
            _deliver(earlier, timeout=-1)
        except UdcError as error:
            raise UdcError(f"{earlier} must be delivered first: {error}") from error


def _predecessors(folder: Path, header: dict[str, Any]) -> Iterator[Path]:
    """The earlier pending journals of ended stages about the same model and for the same store."""
    model = read_tag(header["tags"], MODEL_SHA256)
    for earlier in pending_journals(folder.parents[2]):
        if model is None or earlier.name >= folder.name:
            return
        with suppress(FileNotFoundError, ValueError):  # delivered meanwhile, or damaged
            if not (entries := [entry for entry, _ in read_entries(earlier)]):
                continue  # killed before the first entry
            is_same_model = any(read_tag(entry.get("tags", {}), MODEL_SHA256) == model for entry in entries)
            is_same_store = store_of(earlier, entries[0]) == store_of(folder, header)
            if is_same_model and is_same_store and not is_written(earlier):
                yield earlier


def _deliver(folder: Path, timeout: float) -> None:
    """Deliver the journal of a stage that has ended, in one attempt, unless another process has done so.

    Raises
    ------
    UdcError
        It cannot be delivered.
    Timeout
        Another process is delivering it.
    """
    try:
        lock = sender_lock(folder, timeout).acquire()
    except FileNotFoundError:  # the folder is deleted as soon as another process has delivered the journal
        return
    with lock:
        try:
            sender = Sender(folder, EndedStage(), last_delays=())
        except (FileNotFoundError, StopIteration):  # delivered by another process; killed before the first entry
            delete_journal(folder)
            return
        sender.run()
        if sender.error is not None:
            sender.log_error()
            raise sender.error


def deliver_pending(root: Path) -> tuple[int, dict[Path, str]]:
    """Deliver the journals of all stages that have ended, the oldest first.

    Returns
    -------
    The number of journals delivered, and the errors of those that could not be. Journals that another process is
    delivering are in neither.
    """
    num_delivered, errors = 0, dict[Path, str]()
    unreachable = dict[str, str]()  # error by address
    for folder in pending_journals(root):
        uri = ""
        try:
            if is_written(folder):
                continue
            first = next(read_entries(folder), None)
            uri = store_of(folder, first[0]) if first else ""
            if uri in unreachable:
                errors[folder] = unreachable[uri]
                continue
            _deliver(folder, timeout=_TRY)  # without a first entry it only deletes the journal
            num_delivered += first is not None
        except (FileNotFoundError, Timeout):  # another process has delivered it, or is doing so
            continue
        except UdcError as error:
            errors[folder] = unreachable[uri] = str(error)
        except (ValueError, KeyError, TypeError) as error:
            errors[folder] = f"the journal is damaged: {error!r}"
    return num_delivered, errors


def sync(root: Path) -> tuple[int, dict[Path, str], dict[str, str]]:
    """Deliver pending journals, and link DVC experiments with their runs.

    Returns
    -------
    The number of journals delivered, the errors of the others, and the run ids of the experiments linked now.

    Raises
    ------
    UdcError
        The tracking server cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    num_delivered, errors = deliver_pending(root)
    try:
        experiments = [open_store()]
        return num_delivered, errors, link_experiments(mlflow.MlflowClient(), experiments, root)
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        raise UdcError(reason_of(error)) from error


class _RecordedWarnings(logging.Handler):
    """Stores warnings about the store for the next command: sender.log is deleted with the journal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Store one warning."""
        record_warning(repository_root(), record.getMessage())


def _take_standard_output() -> int:
    """The pipe from which the stage reads messages.

    What MLflow, its plugins, C libraries and other processes print goes to standard error, which is sender.log.
    """
    output = os.dup(1)
    os.dup2(2, 1)
    return output


def main(arguments: list[str]) -> int:
    """Deliver the journal that is named on the command line while a stage writes it.

    The folder of the stage's code may be deleted once the stage has ended (queued experiments run in temporary copies),
    so all modules of this project that a sender needs are imported before it reports that it is ready.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)  # to sender.log
    logging.getLogger("udc_model.tracking.store").addHandler(_RecordedWarnings(logging.WARNING))
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C is for the stage, whose end closes the pipe
        signal.signal(number, signal.SIG_IGN)
    os.environ.pop("PYTHONPATH", None)
    if hasattr(os, "nice"):
        os.nice(5)  # the stage needs the processor more
    folder, stage = Path(arguments[0]), RunningStage(_take_standard_output())
    with sender_lock(folder):
        stage.report(ready=True)
        stage.pause(_START_DELAY)
        gc.disable()  # it would take a fifth of the time of `import mlflow`, which creates no garbage
        with suppress(UdcError):
            sync(repository_root())
        gc.enable()
        sender = Sender(folder, stage)
        if sender.run() is State.DONE:
            return 0
    sender.log_error()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
