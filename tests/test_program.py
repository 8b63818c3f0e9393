"""Exit status and messages of entry points: no exception prints a traceback, and unexpected ones leave a log file."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from udc_model.cli import main
from udc_model.errors import TemporaryError, UdcError
from udc_model.program import exit_status


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _raise(error):
    raise error


def _status(error, caplog):
    """Exit status and lines of the message of a program that raises ``error``."""
    status = exit_status(lambda: _raise(error))
    return status, caplog.messages


def test_success_and_a_udc_error(caplog):
    assert exit_status(lambda: None) == 0
    assert _status(UdcError("model.weights: none"), caplog) == (1, ["error: model.weights: none"])
    assert _status(TemporaryError("lost"), caplog)[0] == 75
    assert not Path(".udc").exists()


def test_an_interrupt(caplog):
    assert _status(KeyboardInterrupt(), caplog) == (130, ["error: interrupted"])


def test_an_unexpected_exception_is_one_message_and_a_log_file(caplog):
    status, (message,) = _status(IndexError("of http://ann:secret@host/x\nmore"), caplog)
    (log,) = Path(".udc/errors").iterdir()
    assert status == 70
    assert message.splitlines()[0] == "error: unexpected IndexError: of http://host/x"
    assert f"Please report it with the file {log.resolve()} and the output of `udc doctor`, see https" in message
    text = log.read_text()
    assert "Traceback" in text
    assert "in _raise" in text
    assert "secret" not in text


@pytest.mark.parametrize(("error", "message"), [
    (OSError(errno.ENOSPC, "No space left on device", "model/x"),
     "model/x: No space left on device; free disk space and run the command again"),
    (PermissionError(errno.EACCES, "Permission denied", "a b"), "a b: Permission denied"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    (OSError("cannot identify"), "cannot identify"),
])  # fmt: skip
def test_an_error_of_the_system_names_the_file(error, message, caplog):
    status, (line,) = _status(error, caplog)
    (log,) = Path(".udc/errors").iterdir()
    assert (status, line) == (1, f"error: {message} (details: {log.resolve()})")


@pytest.mark.parametrize("error", [MemoryError("4 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_lack_of_memory_is_called_one(error, caplog):
    status, (line,) = _status(error, caplog)
    assert status == 1
    assert line.startswith(f"error: not enough memory: {error} (details: ")


def test_the_log_goes_to_the_temporary_folder_if_the_current_one_cannot_be_written(caplog, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    Path(".udc").write_text("a file where the folder of logs would be")
    status, (message,) = _status(ValueError(), caplog)
    (log,) = (tmp_path / "elsewhere").iterdir()
    assert status == 70
    assert str(log) in message


def test_only_the_last_logs_are_stored(caplog, monkeypatch):
    for pid in range(1000, 1030):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        exit_status(lambda: _raise(ValueError()))
    assert len(list(Path(".udc/errors").iterdir())) == 20


def test_a_command_that_fails_unexpectedly(monkeypatch, caplog):
    monkeypatch.setattr("udc_model.config.reference.summary_table", lambda: {}["missing"])
    assert main(["params"]) == 70
    assert "unexpected KeyError: 'missing'" in caplog.text
