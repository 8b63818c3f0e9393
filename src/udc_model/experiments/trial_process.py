"""One trial of ``udc tune``: a DVC experiment in a process that continues, or ends, when ``udc tune`` is killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from udc_model.decisions.policy import POLICY_FILE, Policy
from udc_model.errors import UdcError
from udc_model.evaluation.training_record import read_seconds
from udc_model.experiments.objectives import SECONDS, Measurement, Outcome, outcome_of, read_measurements
from udc_model.experiments.stored import from_dvc
from udc_model.tracking.journal import pending_journals, read_entries, wait_for_senders
from udc_model.tracking.links import dvc_experiments
from udc_model.tracking.provenance import STUDY_ATTEMPT, STUDY_KEY
from udc_model.tracking.tags import ATTEMPT, EXPERIMENT_NAME, RETRIED, STUDY, read_tag, runs_with_tag

_POLL = 0.5  # seconds between two checks of a trial's validation curve


class TrialLost(Exception):  # noqa: N818
    """A trial is not this worker's any more: its heartbeats were missing, and another worker retries it."""


@dataclass(frozen=True)
class TrialPlace:
    """Where the trials of a study run.

    Parameters
    ----------
    root : of the repository.
    folder : of the study's locks and logs.
    study_key : of the study's run in MLflow.
    is_shared : other machines retry the trials of this one. Then a trial ends with its worker, and the runs of earlier
        attempts are tagged, not deleted, since their machines may still deliver entries to them.
    """

    root: Path
    folder: Path
    study_key: str
    is_shared: bool = False


class TrialProcess:
    """One trial: ``dvc exp run --temp`` in its own session, which continues if ``udc tune`` is killed.

    A trial of a shared study ends with its worker, see `TrialPlace`. The process inherits a lock and holds it while it
    runs, so that the next ``udc tune`` waits for it. The lock is taken with ``fcntl``, because filelock closes its
    descriptor on exec and cannot pass it to a child process.
    """

    def __init__(self, name: str, settings: Sequence[str], place: TrialPlace, attempt: int = 0) -> None:
        self.name, self.settings, self.place, self.attempt = name, settings, place, attempt
        self.lock, self.prune_file, self.log = (place.folder / f"{name}.{kind}" for kind in ("lock", "prune", "log"))
        self.last_attempt = place.folder / f"{name}.attempt"  # the number of the last attempt in this repository

    def run(self, should_prune: Callable[[dict[int, dict[str, float]]], bool]) -> bool:
        """Run the experiment unless it exists; false if it was pruned."""
        with self.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # wait for a process that a killed `udc tune` started
            self.last_attempt.write_text(str(self.attempt), encoding="utf-8")
        if self.name in dvc_experiments():
            return True
        if self.prune_file.exists():
            return False
        self._set_aside_interrupted()
        return self._execute(should_prune)

    def outcome(self, metrics: Sequence[str], confidence: float) -> Outcome:
        """The values of metrics of a trial that is complete.

        Parameters
        ----------
        confidence : level of the intervals of its evaluation.

        Raises
        ------
        UdcError
            A metric is not known.
        """
        commit = dvc_experiments()[self.name]
        with tempfile.TemporaryDirectory() as scratch:

            def fetch(file: str) -> Path:
                return from_dvc(self.name, commit, f"evaluation/{file}", Path(scratch))

            measured = read_measurements(fetch("validation/metrics.csv"), confidence)
            if SECONDS in metrics:
                policy = Policy.load(fetch(POLICY_FILE))
                measured[SECONDS] = Measurement(read_seconds(self.place.root, policy.model_sha256))
        if SECONDS in metrics and measured[SECONDS].value is None:
            raise UdcError(f"{self.name}: {SECONDS} is not known, because its model comes from DVC's cache and was "
                           "trained elsewhere; start another --study without these values")  # fmt: skip
        return outcome_of(measured, metrics)

    def forget(self) -> None:
        """Remove the experiment and set aside the runs of an attempt that another worker repeats.

        A worker in this repository, whose attempt has the same name, uses the experiment, or has stored its own.
        """
        with self.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # the other worker's trial is running
                return
            if self._is_last_attempt():
                if self.name in dvc_experiments():
                    subprocess.run([sys.executable, "-m", "dvc", "exp", "remove", "-q", self.name],
                                   cwd=self.place.root)  # fmt: skip
                self._set_aside_interrupted(is_lost=True)

    def _is_last_attempt(self) -> bool:
        """Whether no other worker in this repository has begun an attempt after this one. Needs the lock."""
        try:
            return self.last_attempt.read_text(encoding="utf-8") == str(self.attempt)
        except FileNotFoundError:
            return False

    def _set_aside_interrupted(self, *, is_lost: bool = False) -> None:
        """Delete (in MLflow's reversible way) or tag the runs of earlier attempts, because the trial starts again.

        Of a shared study also the run of this attempt, if it is lost; never that of a later one, which has its name.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        from udc_model.tracking.sender import deliver_pending
        from udc_model.tracking.store import open_store

        wait_for_senders(self.place.root)
        deliver_pending(self.place.root)
        try:
            experiments = [open_store()]  # first, since it makes MLflow use the store
            client = mlflow.MlflowClient()
            for run in runs_with_tag(client, experiments, EXPERIMENT_NAME, self.name):
                if read_tag(run.data.tags, STUDY) != self.place.study_key:
                    continue  # of somebody else's study with this name
                if self.place.is_shared:
                    if int(read_tag(run.data.tags, ATTEMPT) or 0) >= self.attempt + is_lost:
                        continue
                    client.set_tag(run.info.run_id, RETRIED, "true")
                    if run.info.status == "RUNNING":
                        client.set_terminated(run.info.run_id, "KILLED")
                elif run.info.status in ("RUNNING", "KILLED", "FAILED"):
                    client.delete_run(run.info.run_id)
        except (UdcError, MlflowException):
            return  # the tracking server cannot be reached

    def _execute(self, should_prune: Callable[[dict[int, dict[str, float]]], bool]) -> bool:
        """Run the experiment; False if it was pruned."""
        guard = [sys.executable, "-m", "udc_model.experiments.trial_guard"] if self.place.is_shared else []
        command = [*guard, sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", self.name]
        command += [part for setting in self.settings for part in ("-S", setting)]
        env = os.environ | {"UDC_PRUNE_FILE": str(self.prune_file), STUDY_KEY: self.place.study_key}
        if self.place.is_shared:
            env[STUDY_ATTEMPT] = str(self.attempt)
        with self.lock.open("w") as lock, self.log.open("wb") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE if guard else None, stdout=log, stderr=log,
                start_new_session=True, pass_fds=[lock.fileno()],
            )  # fmt: skip
        try:
            while True:
                try:
                    process.wait(_POLL)
                    break
                except subprocess.TimeoutExpired:
                    if should_prune(self._curve()):  # asked after the decision too: it records heartbeats
                        self.prune_file.touch()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        if process.returncode and not self.prune_file.exists():
            output = self.log.read_text(encoding="utf-8", errors="replace").strip()
            raise UdcError(f"trial {self.name} failed:\n{output[-3000:]}")
        return not process.returncode

    def _curve(self) -> dict[int, dict[str, float]]:
        """The metrics by epoch so far, from the journal of the trial's training run."""
        for folder in reversed(pending_journals(self.place.root)):
            try:
                entries = [entry for entry, _ in read_entries(folder)]
            except FileNotFoundError:  # delivered meanwhile
                continue
            if (
                entries
                and entries[0]["stage"] == "train"
                and read_tag(entries[0]["tags"], EXPERIMENT_NAME) == self.name
            ):
                return {e["step"]: e["metrics"] for e in entries if e.get("step") is not None and "metrics" in e}
        return {}
