"""Commands that examine the machine and the project, and free disk space."""

from __future__ import annotations

import argparse
import sys

from udc_model.cli.command import Command, Parser
from udc_model.errors import UdcError


def _gc_arguments(parser: Parser) -> None:
    parser.add_argument("--delete", action="store_true", help="delete what can go (default: only list it)")
    parser.add_argument("--caches", action="store_true",
                        help="with --delete: also what is computed again when it is needed")  # fmt: skip


def _gc(options: argparse.Namespace) -> None:
    from udc_model.maintenance.garbage import collect, examine, project_root, to_text

    root = project_root()
    if not options.delete:
        if options.caches:
            raise UdcError("--caches: needs --delete; without it, nothing is deleted")
        sys.stdout.write(to_text(examine(root)))
        return
    collection = collect(root, with_caches=options.caches)
    sys.stdout.write(collection.to_text())
    if collection.errors:
        raise UdcError("\n  ".join(["not all could be examined and deleted; run the command again:",
                                    *collection.errors]))  # fmt: skip


def _doctor_arguments(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, the form is in docs/how-to/maintenance.md")
    parser.add_argument("--offline", action="store_true", help="ask nothing over the network")
    parser.epilog = (
        "Exit status: 0, also with warnings; 1 if there is a failure: a stage will fail. The output contains no "
        "credentials and belongs into a bug report."
    )


def _doctor(options: argparse.Namespace) -> None:
    from udc_model.maintenance.doctor import diagnose
    from udc_model.maintenance.findings import Status, to_json, to_text, worst

    findings = diagnose(is_offline=options.offline)
    sys.stdout.write(to_json(findings) if options.json else to_text(findings))
    if worst(findings) is Status.FAILURE:
        sys.exit(1)  # no error: the findings say what to do


COMMANDS = (
    Command("Maintain", "doctor", "examine this machine and the project: what they lack, and what to do", _doctor,
            _doctor_arguments),
    Command("Maintain", "gc", "list what takes disk space in the project; delete what nothing needs", _gc,
            _gc_arguments),
)  # fmt: skip
