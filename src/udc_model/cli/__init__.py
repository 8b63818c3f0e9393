"""The ``udc`` command. Each command imports what it needs when it runs, so that ``udc --help`` is fast."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from udc_model.cli import app, build, compare, decide, fetch, labels, maintain, project, share
from udc_model.program import exit_status

COMMANDS = (
    *project.COMMANDS, *fetch.COMMANDS, *build.COMMANDS, *labels.COMMANDS, *decide.COMMANDS, *app.COMMANDS,
    *compare.COMMANDS, *share.COMMANDS, *maintain.COMMANDS,
)  # fmt: skip
# Commands that report what was not logged to MLflow earlier. Stages do so themselves.
_REPORTS_WARNINGS = ("summary", "compare", "sweep-report", "show", "decide", "predict", "reproduce", "promote")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``udc``; returns the exit status, see `exit_status`."""
    return exit_status(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "run":
        parser.error(f"unknown argument(s): {' '.join(rest)}")
    options.overrides = rest
    _run(options)


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
        f"{group}:\n" + "\n".join(f"  {c.name:<16}{c.help}" for c in COMMANDS if c.group == group) for group in groups
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
