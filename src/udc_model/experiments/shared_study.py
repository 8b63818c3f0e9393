"""A study that workers on several machines share: its storage in PostgreSQL, and which worker runs which trial.

Optuna provides the storage, heartbeats, stale trials and their retry. Its loop ``optimize`` is not used, because it has
gaps:

- Workers that compare the number of trials with a limit and then ask for one exceed the limit.
- A worker killed between asking and its first heartbeat leaves a trial that never becomes stale.
- A worker killed between failing a stale trial and adding its retry loses that trial.
- Heartbeats come from a thread that ends at the first error of the database, while the trial continues.

Here a worker takes a trial under a lock of PostgreSQL, which the server releases when the worker's connection ends, and
the loop that watches a trial records its heartbeats.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from udc_model.errors import UdcError, without_credentials
from udc_model.experiments.objectives import Outcome
from udc_model.experiments.study_trials import Claim, IsEnough, never, store_outcome
from udc_model.tracking.store import reason_of

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy import Engine

logger = logging.getLogger(__name__)

HEARTBEAT = 20  # seconds between two heartbeats of a trial
GRACE = 300  # seconds without a heartbeat after which another worker retries a trial
MAX_RETRIES = 3  # of one trial; whatever ends a fourth worker too is probably the trial's own fault
_PATIENCE = 3600.0  # seconds during which a worker waits for a database that is away
_DIALECT = "postgresql+psycopg"
_SECRETS = ("password", "sslpassword")  # of an address's query
_WORKER = "udc.worker"  # attribute of a trial: its number, host and process

Result = TypeVar("Result")


def check_address(url: str) -> None:
    """Check the address of a storage.

    Raises
    ------
    UdcError
        It is not one of PostgreSQL, or has a password where messages would show it; the message shows no part of it.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        raise UdcError(f"--storage: is no address of a database; it is {_DIALECT}://user@host:5432/name") from None
    if parts.drivername != _DIALECT:
        raise UdcError(
            f"--storage: must begin with {_DIALECT}://; without --storage a study is in a file of this folder"
        )
    shown = without_credentials(url)
    if any(name in parts.query for name in _SECRETS) or (parts.password and parts.password in shown):
        raise UdcError("--storage: a password is written as user:password@, with %2F for / and %40 for @; better is a "
                       "line in ~/.pgpass, which no list of processes shows")  # fmt: skip


def connect(url: str) -> tuple[RDBStorage, Engine]:
    """The storage, whose tables are created if they do not exist, and an engine for its locks.

    Raises
    ------
    UdcError
        The driver is missing, or the database cannot be used.
    """
    import optuna
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    # A connection to a machine that is off is noticed after 30 s, not after the two hours of TCP.
    alive = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "keepalives_idle": 10, "keepalives_interval": 10}
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=alive)
        with locked(engine, "tables"), _without_warnings():  # workers that create the tables at the same time fail
            storage = optuna.storages.RDBStorage(
                url, {"pool_pre_ping": True, "connect_args": alive}, heartbeat_interval=HEARTBEAT, grace_period=GRACE
            )
    except ModuleNotFoundError as error:
        raise UdcError(f"{error.name} is not installed; pip install 'udc-model[postgres]'") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UdcError(f"--storage: {without_credentials(url)} cannot be used: {reason_of(error)}") from None
    return storage, engine


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without optuna's warnings: heartbeats are experimental, and meant for ``optimize``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def locked(engine: Engine, name: str, timeout: int = 60) -> Iterator[None]:
    """Hold a lock of PostgreSQL. The server releases it when this process ends, or stays in the block for too long.

    Parameters
    ----------
    timeout : seconds that the block may take; a worker that was stopped in it must not stop all others.
    """
    from sqlalchemy import text

    key = int.from_bytes(hashlib.sha256(f"udc tune {name}".encode()).digest()[:8], signed=True)
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{timeout:d}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield


class SharedStudy:
    """A worker's view of a study that it shares with others.

    Parameters
    ----------
    storage, engine : from :func:`connect`.
    study : with this storage.
    limit : number of trials in all, retries not counted.
    sampler : creates a sampler from the number of trials so far, so that no two workers draw the same values.
    suggest : draws the values of a trial.
    is_enough : ends the study before its limit.
    """

    def __init__(self, storage: RDBStorage, engine: Engine, study: Study, limit: int,
                 sampler: Callable[[int], BaseSampler], suggest: Callable[[Trial], list[str]],
                 is_enough: IsEnough = never) -> None:  # fmt: skip
        self.storage, self.engine, self.study, self.limit = storage, engine, study, limit
        self.sampler, self.suggest, self.is_enough = sampler, suggest, is_enough
        self._last_beat = 0.0
        self._is_away = False
        self._judges_from = time.monotonic() + 2 * HEARTBEAT  # after an outage the living send heartbeats first

    def trials(self) -> Iterator[Claim]:
        """The trials for this worker, until the study is complete: others' trials have ended too."""
        is_reported = False
        while True:
            claimed, num_running = self.patiently(self._claim)
            if claimed is not None:
                is_reported = False
                yield claimed
            elif num_running == 0:
                return
            else:
                if not is_reported:
                    logger.info("waiting for %d trial(s) of other workers …", num_running)
                is_reported = True
                time.sleep(HEARTBEAT / 4)

    def _claim(self) -> tuple[Claim | None, int]:
        """A waiting or new trial for this worker, if there is one, and how many trials are running otherwise."""
        import optuna

        with locked(self.engine, self.study.study_name), _without_warnings():
            self._retry_failed()
            trials = self.study.get_trials()
            waiting = [trial for trial in trials if trial.state is optuna.trial.TrialState.WAITING]
            is_complete = len(trials) - len(_retried(trials)) >= self.limit or self.is_enough(trials)
            if is_complete and not waiting:
                return None, sum(trial.state is optuna.trial.TrialState.RUNNING for trial in trials)
            self.study.sampler = self.sampler(len(trials))
            trial = self.study.ask()
            self.storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr(_WORKER, [trial.number, socket.gethostname(), os.getpid()])
            self._last_beat = time.monotonic()
            name = attempt_name(self.study.study_name, self.storage.get_trial(trial._trial_id))
            return Claim(trial, name, self.suggest(trial)), 0

    def _retry_failed(self) -> None:
        """Fail trials without heartbeats, and queue each failed trial again that has no retry. Needs the lock."""
        import optuna

        for trial in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            if trial.user_attrs.get(_WORKER, [None])[0] != trial.number:
                # The worker was killed before the first heartbeat, or this process would not have the lock.
                self.storage.record_heartbeat(trial._trial_id)
                self.storage.set_trial_user_attr(trial._trial_id, _WORKER, [trial.number, "killed", 0])
        if time.monotonic() > self._judges_from:
            optuna.storages.fail_stale_trials(self.study)
        retry = optuna.storages.RetryHeartbeatStaleTrialCallback(MAX_RETRIES)
        trials = self.study.get_trials()
        retried = _retried(trials)
        for trial in trials:
            if trial.state is optuna.trial.TrialState.FAIL and trial.number not in retried:
                retry(self.study, trial)  # queues nothing after the last retry

    def holds(self, trial: Trial) -> bool:
        """Record that this worker is running a trial; false if it was stopped so long that the trial was failed."""
        import optuna

        if time.monotonic() - self._last_beat < HEARTBEAT:
            return True
        self._last_beat = time.monotonic()
        try:
            if self.storage.get_trial(trial._trial_id).state is not optuna.trial.TrialState.RUNNING:
                return False
            self.storage.record_heartbeat(trial._trial_id)
        except storage_errors() as error:
            self._report(error)
        return True

    def tell(self, trial: Trial, outcome: Outcome | None) -> bool:
        """Store the outcome of a trial, None if it was pruned; false if the trial was failed meanwhile."""
        import optuna

        states = optuna.trial.TrialState
        state = states.PRUNED if outcome is None else states.COMPLETE

        def store() -> bool:
            # The commit of an earlier attempt may have succeeded although its answer was lost.
            current = self.storage.get_trial(trial._trial_id).state
            if current is states.RUNNING:
                with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                    store_outcome(self.study, trial, outcome)
                current = self.storage.get_trial(trial._trial_id).state
            return current is state

        return self.patiently(store)

    def fail(self, trial: Trial) -> bool:
        """Let another worker retry a trial that failed here; false, since the cause may be this machine."""
        self.release(trial)
        return False

    def release(self, trial: Trial) -> None:
        """Fail a trial that this worker does not complete, so that another one retries it at once."""
        import optuna

        with suppress(*storage_errors(), optuna.exceptions.UpdateFinishedTrialError, ValueError):
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def patiently(self, action: Callable[[], Result]) -> Result:
        """The result of an action on the storage, which is repeated while the database is away.

        Raises
        ------
        UdcError
            The database was away for an hour.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                result = action()
            except storage_errors() as error:
                if time.monotonic() > deadline:
                    raise UdcError(f"--storage: the database cannot be reached: {reason_of(error)}") from None
                self._report(error)
                time.sleep(HEARTBEAT / 4)
                continue
            if self._is_away:
                logger.warning("the database of the study can be reached again")
            self._is_away = False
            return result

    def _report(self, error: Exception) -> None:
        if not self._is_away:
            logger.warning("the database of the study cannot be reached (%s); waiting", reason_of(error))
        self._is_away, self._judges_from = True, time.monotonic() + 2 * HEARTBEAT


def attempt_name(study: str, trial: FrozenTrial) -> str:
    """The name of a trial's DVC experiment: a retry has that of the first attempt."""
    return f"{study}-{attempt_number(trial)}"


def attempt_number(trial: FrozenTrial) -> int:
    """The number of a trial, of a retry that of the first attempt."""
    first = trial.system_attrs.get("failed_trial")  # what optuna's retried_trial_number, still experimental, returns
    return trial.number if first is None else int(first)


def _retried(trials: list[FrozenTrial]) -> set[int]:
    """The numbers of the trials that were queued again."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}


def without_retried(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The last attempt of each trial."""
    retried = _retried(trials)
    return [trial for trial in trials if trial.number not in retried]


def storage_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a database that is away."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import InterfaceError, OperationalError

    return (OperationalError, InterfaceError, StorageInternalError)
