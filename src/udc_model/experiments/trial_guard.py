"""Runs a command until its standard input closes: the processes of a trial end with the worker that started them.

A worker that is killed cannot end its trial. Without this process the trial would continue beside its retry on another
machine, and MLflow would have two runs of it. Started as ``python -m udc_model.experiments.trial_guard COMMAND …`` in a
process group of its own.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

_POLL = 0.2  # seconds between two checks whether the command has ended
_END = 30.0  # seconds that the command has to end in order


def main(command: list[str]) -> int:
    """Run a command; returns its exit status, or that of a command which SIGTERM ended if standard input closed."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # is for the command, whose end ends this process
    # close_fds: the command holds the trial's lock as long as it runs, as without this process
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False)
    while process.poll() is None:
        ready, _, _ = select.select([sys.stdin], [], [], _POLL)
        if ready:  # nothing is ever written: it was closed
            _end(process)
    return process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(0, signal.SIGTERM)
    try:
        process.wait(_END)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
