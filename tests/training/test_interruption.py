"""Ctrl-C: the first one is a request, the second one an interrupt; and the command that resumes."""

import os
import signal
import sys
import threading

import psutil
import pytest

from udc_model.training.interruption import COMMAND, STOP_FILE, command_to_resume, deferred_interrupt


@pytest.fixture(autouse=True)
def _default_handler():
    """The tests may run in the background, where shells let programs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _press():
    os.kill(os.getpid(), signal.SIGINT)


def test_first_is_a_request_and_second_interrupts(capfd):
    requests = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt(lambda: requests.append(1)) as was_interrupted:  # noqa: PT012
        assert not was_interrupted()
        _press()
        assert was_interrupted()
        assert requests == [1]
        assert capfd.readouterr().err == "\nCtrl-C: training ends after this epoch; Ctrl-C again ends it at once\n"
        _press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert requests == [1]


def test_after_the_block_ctrl_c_is_as_before():
    with deferred_interrupt() as was_interrupted:
        _press()
    assert was_interrupted()
    with pytest.raises(KeyboardInterrupt):
        _press()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_a_program_that_handles_or_ignores_the_signal_keeps_its_handler(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with deferred_interrupt() as was_interrupted:
            _press()
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
        assert not was_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_handler_is_installed():
    seen = []

    def work():
        with deferred_interrupt() as was_interrupted:
            seen.append((signal.getsignal(signal.SIGINT), was_interrupted()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(signal.default_int_handler, False)]


def test_a_launched_process_sees_the_request_of_its_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    with deferred_interrupt() as was_interrupted:
        assert not was_interrupted()
        (tmp_path / "stop").touch()
        assert was_interrupted()


class _Ancestor:
    def __init__(self, *words):
        self._words = list(words)

    def cmdline(self):
        return self._words


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "`udc train --params 'my file.yaml'`"),
        ({COMMAND: "udc train", "TORCHELASTIC_RUN_ID": "1"}, "`udc train`"),
        ({"TORCHELASTIC_RUN_ID": "1"}, "the same torchrun command"),
        ({"DVC_STAGE": "train"}, "`dvc exp run -S train.epochs=3`"),
    ],
)
def test_command_to_resume(environment, command, monkeypatch):
    for name in ("DVC_STAGE", COMMAND, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python", "/bin/udc", "train", "--params", "my file.yaml"])
    monkeypatch.setattr(sys, "argv", ["/bin/udc", "train", "--params", "my file.yaml"])
    ancestors = [_Ancestor("/bin/sh", "-c", "python -m x"),
                 _Ancestor("/usr/bin/python", "/x/.venv/bin/dvc", "exp", "run", "-S", "train.epochs=3")]  # fmt: skip
    monkeypatch.setattr(psutil.Process, "parents", lambda self: ancestors)
    assert command_to_resume() == command


def test_command_of_a_module(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "udc_model.stages.train", "--root", "x"])
    for name in ("DVC_STAGE", COMMAND, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert command_to_resume() == "`python -m udc_model.stages.train --root x`"
