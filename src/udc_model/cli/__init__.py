"""The ``udc`` command. Each command imports what it needs when it runs, so that ``udc --help`` is fast."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from udc_model.cli import build, compare, decide, fetch, share
from udc_model.files import exit_status

COMMANDS = (*fetch.COMMANDS, *build.COMMANDS, *decide.COMMANDS, *compare.COMMANDS, *share.COMMANDS)
# Commands that report what was not logged to MLflow earlier. Stages do so themselves.
_REPORTS_WARNINGS = ("summary", "compare", "sweep-report", "show", "decide", "predict", "reproduce", "promote")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``udc``; returns the exit status.

    It is 141 if the reader of the output ended early, as in ``udc predict folder | head``: that of other commands,
    which the signal SIGPIPE ends.
    """
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename is not None:
            raise
        _discard_output()
        if error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE
        sys.stderr.write(f"error: the output cannot be written: {error.strerror}\n")
        return 1


def _main(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "run":
        parser.error(f"unknown argument(s): {' '.join(rest)}")
    options.overrides = rest
    return exit_status(lambda: _run(options))


def _discard_output() -> None:
    """Send what standard output still holds to nowhere, so that Python does not fail to write it when it ends."""
    with suppress(io.UnsupportedOperation), Path(os.devnull).open("wb") as devnull:
        os.dup2(devnull.fileno(), sys.stdout.fileno())


def _run(options: argparse.Namespace) -> None:
    if options.command in _REPORTS_WARNINGS:
        from udc_model.tracking.journal import report_warnings
        from udc_model.tracking.store import repository_root

        report_warnings(repository_root())
    options.run(options)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line, with the commands by group in its help text."""
    import shtab

    groups = dict.fromkeys(command.group for command in COMMANDS)
    listing = [
        f"{group}:\n" + "\n".join(f"  {c.name:<14}{c.help}" for c in COMMANDS if c.group == group) for group in groups
    ]
    parser = argparse.ArgumentParser(
        prog="udc",
        description="Train image classifiers whose decisions have the least expected cost, reproducibly.",
        epilog="\n\n".join([*listing, "`udc COMMAND --help` explains a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shtab.add_argument_to(parser, "--print-completion", help="print a script that completes udc's arguments")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, description=f"{command.help}.", allow_abbrev=False)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
