"""Who delivers journals: the process that runs beside a stage, and whoever comes later (``udc sync``)."""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from udc_model.errors import UdcError
from udc_model.tracking.delivery import Delivery
from udc_model.tracking.journal import end_of_killed, entries, is_held, unsent
from udc_model.tracking.links import link_experiments
from udc_model.tracking.store import open_store, repository_root, without_credentials

logger = logging.getLogger("udc_model.tracking.sender")

_PATIENCE = (1.0, 2.0, 4.0)  # seconds between the last attempts, where the tracker was there earlier in this run
_TOGETHER = 2.0  # seconds of what the stage logs that are sent at once
_LONGEST_WAIT = 30.0  # seconds between two attempts while the stage is at work


def send_left_over(root: Path, wait: float = 0) -> tuple[int, dict[Path, str]]:
    """Send the journals that no living stage is writing, the oldest first, and delete each that was sent whole.

    Parameters
    ----------
    wait : seconds to wait for another process that is sending a journal.

    Returns
    -------
    How many were sent, and why the others could not be; journals of stages at work are neither.
    """
    sent, failed = 0, dict[Path, str]()
    away = dict[str, str]()
    for folder in unsent(root):
        try:
            if is_held(folder / "writer.lock"):
                continue
            uri = next(entries(folder, 0))[0]["uri"]
            if uri in away:
                failed[folder] = away[uri]
                continue
            with FileLock(folder / "sender.lock", timeout=wait):
                _send_rest(folder)
            sent += 1
        except (FileNotFoundError, Timeout):  # sent by another process meanwhile, or being sent
            continue
        except UdcError as error:
            failed[folder] = away[uri] = str(error)
    return sent, failed


def sync(root: Path) -> tuple[int, dict[Path, str], dict[str, str]]:
    """Send what is left over, and link DVC experiments with their runs.

    Returns
    -------
    How many journals were sent, why the others could not be, and the ids of the runs linked now, by experiment.

    Raises
    ------
    UdcError
        The tracker cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    sent, failed = send_left_over(root)
    try:
        store = [open_store()]
        return sent, failed, link_experiments(mlflow.MlflowClient(), store, root)
    except (MlflowException, RequestException) as error:
        raise UdcError(without_credentials(str(error)).splitlines()[0]) from error


def _send_rest(folder: Path) -> None:
    delivery = Delivery(folder)
    if not delivery.send():
        end_of_killed(folder)
        delivery.send()
    _forget(folder)


def _forget(folder: Path) -> None:
    (folder / "journal.jsonl").unlink()  # first: a journal without it is no journal any more
    shutil.rmtree(folder, ignore_errors=True)


def accompany(folder: Path) -> bool:
    """Send a journal while a stage writes it; whether all of it was sent.

    Each line on standard input says that there is more; its end, that the stage is done or dead.
    """
    delivery = Delivery(folder, lambda run_id, name: _tell(run_id=run_id, name=name))
    failures, writing, patience = 0, True, iter(_PATIENCE)
    root = repository_root()
    with FileLock(folder / "sender.lock"):
        with suppress(UdcError):
            sync(root)
        while True:
            try:
                if delivery.send():
                    _forget(folder)
                    return True
                if failures > 1:
                    logger.warning("the tracker %s is back", delivery.header["uri"])
                failures, delay, patience = 0, None, iter(_PATIENCE)
                if not writing:
                    end_of_killed(folder)
                    continue
            except UdcError as error:
                failures += 1
                if failures == 2:  # one failure may be a data base that was busy
                    logger.warning("the tracker %s cannot be reached; the run goes on, and is kept in %s (%s)",
                                   delivery.header["uri"], folder, error)  # fmt: skip
                    _tell(trouble=str(error))
                delay = min(_LONGEST_WAIT, 2.0 ** (failures - 1))
                if not writing:
                    delay = next(patience, 0.0) if delivery.progress.run_id else 0.0
                    if not delay:
                        _tell(trouble=str(error))
                        return False
            writing = _more(delay, writing)
            if delay is None and writing:
                writing = _gather()


def _tell(**values: str) -> None:
    """Tell the stage something, which may be dead."""
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()


def _more(timeout: float | None, writing: bool) -> bool:
    """Wait until standard input says that there is more, or for ``timeout`` seconds; False once it has ended."""
    stdin = sys.stdin.fileno()
    if not writing:
        select.select([], [], [], timeout)
        return False
    ready, _, _ = select.select([stdin], [], [], timeout)
    return not ready or os.read(stdin, 65536) != b""


def _gather() -> bool:
    """Let more come together for one request, as epochs may be short; False once standard input has ended."""
    end = time.monotonic() + _TOGETHER
    while (left := end - time.monotonic()) > 0:
        if not _more(left, writing=True):
            return False
    return True


def main(arguments: list[str]) -> int:
    """Accompany the journal that is named on the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # Ctrl-C is for the stage; its end is read from the pipe
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return 0 if accompany(Path(arguments[0])) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
