"""A process that has imported the whole project and forks for each command, so that a case takes no time to start.

Reads requests, JSON lines, from standard input: ``folder``, ``timeout`` in seconds, and ``commands``, which run at the
same time. Each has ``arguments`` and ``output`` (a file for what it prints). It is disturbed by ``fault`` (place, error
number and log of ``fault.c``), ``kill_after`` or ``delay`` (seconds).

Answers each request with a JSON list of exit statuses and seconds. A status is negative after a signal, and None if the
command did not end in time.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import mlflow  # noqa: F401
import torch

from udc_model.cli import main
from udc_model.program import exit_status
from udc_model.stages import evaluate, prepare, resolve, train  # noqa: F401

_FAULTS = ctypes.CDLL(os.environ["LD_PRELOAD"])


def _run(folder, command):
    os.setsid()
    os.chdir(folder)
    with open(command["output"], "wb") as output:  # noqa: PTH123
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["udc", *command["arguments"]]
    time.sleep(command.get("delay", 0))  # what is tested is a later start
    if fault := command.get("fault"):
        place, number, log = fault
        _FAULTS.fault_configure(folder.encode(), place and place.encode(), number, log.encode())
        os.environ |= {"FAULT_ROOT": folder, "FAULT_PLACE": place or "", "FAULT_ERRNO": str(number), "FAULT_LOG": log}
    try:
        if command["arguments"] == ["resolve"]:
            return exit_status(resolve.main)
        return main(command["arguments"])
    except SystemExit as error:
        return error.code
    finally:
        sys.stdout.flush()


def _fork(folder, command):
    pid = os.fork()
    if pid == 0:
        try:
            status = _run(folder, command)
        except BaseException:  # as the interpreter would at its end
            sys.excepthook(*sys.exc_info())
            status = 1
        os._exit(status or 0)
    return pid


def _signal(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # it has no process group yet


def _wait(pid, command, timeout, results, number):
    started = time.monotonic()
    kill_after = command.get("kill_after")
    deadline = started + (timeout if kill_after is None else kill_after)
    status = None
    while True:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
            break
        if time.monotonic() > deadline:
            _signal(pid)
            code = os.waitpid(pid, 0)[1]
            status = None if kill_after is None else os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.002)  # between two polls
    results[number] = [status, time.monotonic() - started]


def serve():
    """Answer requests until standard input ends."""
    torch.set_num_threads(1)
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        request = json.loads(line)
        folder, commands = str(Path(request["folder"]).resolve()), request["commands"]
        pids = [_fork(folder, command) for command in commands]
        results = [None] * len(pids)
        waits = [threading.Thread(target=_wait, args=(pid, command, request["timeout"], results, k))
                 for k, (pid, command) in enumerate(zip(pids, commands, strict=True))]  # fmt: skip
        for wait in waits:
            wait.start()
        for wait in waits:
            wait.join()
        answers.write(json.dumps(results) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
