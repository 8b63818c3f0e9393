"""Readers of the output that end early, and outputs that cannot be written: no traceback, the usual exit status."""

import argparse
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

UDC = [sys.executable, "-m", "udc_model.cli"]
ARGPARSE_IGNORES_ERRORS = "OSError" in inspect.getsource(argparse.ArgumentParser._print_message)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["params"], ["--help"], ["params", "--help"], ["--print-completion", "bash"]])
def test_a_closed_pipe_ends_every_command_silently(arguments, unbuffered):
    process = subprocess.Popen([*UDC, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONUNBUFFERED": unbuffered})  # fmt: skip
    process.stdout.close()  # before it writes
    assert process.stderr.read() == b""
    # 128 + SIGPIPE, as a shell reports of other commands; argparse itself ignores an error of its own writes, which
    # come later, when the buffer is written, unless the output has no buffer (or Python is an early 3.11)
    assert process.wait() == (0 if "--help" in arguments and unbuffered and ARGPARSE_IGNORES_ERRORS else 141)
    process.stderr.close()


def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*UDC, "params"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_rows_are_written_as_they_come():
    from udc_model.inference.prediction import write_predictions

    written = []

    class Stream:
        def write(self, text):
            written.append(text)

        def flush(self):
            written.append("flush")

    def batches():
        for path in ("a.png", "b.png", "c\n.png", "d\udcff.png"):
            yield [{"path": path, "class": "x", "expected_cost": 0.5, "probabilities": {"x": 0.75, "y": 0.25}}]
            assert written[-1] == "flush"  # the last row can be read before the next batch is decided

    for form in ("table", "csv", "json"):
        written.clear()
        write_predictions(batches(), form, Stream())
        text = "".join(part for part in written if part != "flush")
        if form == "json":
            rows = [row for batch in _quiet(batches, written) for row in batch]
            assert json.loads(text) == rows
            assert text.startswith(json.dumps(rows[:1], indent=2)[:-2])
        else:
            assert len(text.splitlines()) == (5 if form == "table" else 6)  # a quoted line break in the CSV
    assert r"c\n.png" in _table(Stream, written)


def _quiet(batches, written):
    written.append("flush")
    return list(batches())


def _table(stream, written):
    from udc_model.inference.prediction import write_predictions

    written.clear()
    row = {"path": "c\n.png", "class": "refer", "expected_cost": 0.5, "probabilities": {"x": 0.75}}
    write_predictions([[row]], "table", stream())
    return "".join(written)


def test_an_action_has_no_probability(capsys):
    from udc_model.inference.prediction import write_predictions

    row = {"path": "x.png", "class": "retest", "expected_cost": 0.5, "probabilities": {"a": 0.75, "b": 0.25}}
    write_predictions([[row]], "table", sys.stdout)
    assert capsys.readouterr().out.splitlines()[1] == "x.png  retest            -         0.5000"


@pytest.mark.parametrize(("form", "text"), [("json", "[]\n"), ("csv", "path,class,expected_cost\n"),
                                            ("table", "path  class  probability  expected cost\n")])  # fmt: skip
def test_no_rows(form, text, capsys):
    from udc_model.inference.prediction import write_predictions

    write_predictions([], form, sys.stdout)
    assert capsys.readouterr().out == text
