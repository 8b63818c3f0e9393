"""The processes of a trial end with the worker that started them."""

import subprocess
import sys

import pytest

GUARD = [sys.executable, "-m", "udc_model.experiments.trial_guard"]
CHILD = "import sys; print('started', flush=True); sys.stdin.read(); {}"


def start(code):
    return subprocess.Popen([*GUARD, sys.executable, "-c", code], text=True, start_new_session=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_is_that_of_the_command(status):
    guard = start(CHILD.format(f"sys.exit({status})"))
    assert guard.stdout.read() == "started\n"
    assert guard.wait(timeout=60) == status


def test_the_command_ends_when_the_worker_has_ended():
    guard = start("import threading; print('started', flush=True); threading.Event().wait()")
    assert guard.stdout.readline() == "started\n"
    guard.stdin.close()  # as the end of the worker does, however it ended
    assert guard.stdout.read() == ""  # nobody has the pipe any more
    assert guard.wait(timeout=60) != 0
