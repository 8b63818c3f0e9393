"""Commands that share results: deliver them to MLflow, reproduce and promote them."""

from __future__ import annotations

import argparse
import sys

from udc_model.cli.command import RUN, Command, Parser, add_port
from udc_model.errors import UdcError, without_credentials


def _sync(options: argparse.Namespace) -> None:
    from udc_model.tracking.journal import wait_for_senders
    from udc_model.tracking.sender import sync
    from udc_model.tracking.store import repository_root, tracking_uri

    wait_for_senders(repository_root())
    delivered, errors, linked = sync(repository_root())
    store = without_credentials(tracking_uri())
    lines = [f"{store}: {delivered} journal(s) delivered, {len(linked)} experiment(s) linked"]
    lines += [f"  {name}: run {run_id}" for name, run_id in linked.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    if errors:
        reasons = "\n  ".join(f"{folder}: {reason}" for folder, reason in errors.items())
        raise UdcError(f"{len(errors)} journal(s) could not be delivered; they stay on disk:\n  {reasons}")


def _ui_arguments(parser: Parser) -> None:
    add_port(parser, 5000)


def _ui(options: argparse.Namespace) -> None:
    from udc_model.experiments.pages import show_pages

    show_pages(options.port)


def _relocate(options: argparse.Namespace) -> None:
    from udc_model.tracking.store import relocate_store, tracking_uri

    relocation = relocate_store()
    lines = [f"{without_credentials(tracking_uri())}: {relocation.num_corrected} place(s) of artifacts corrected"]
    lines += [f"  not beside the database, so unchanged: {place}" for place in relocation.remaining]
    sys.stdout.write("\n".join(lines) + "\n")


def _reproduce_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="RUN", help=RUN)
    parser.add_argument("--check", action="store_true", help="only check that everything it needs is still available")


def _reproduce(options: argparse.Namespace) -> None:
    from udc_model.experiments.reproduction import check, reproduce

    if options.check:
        sys.stdout.write(check(options.name))
        return
    reproduction = reproduce(options.name)
    sys.stdout.write(reproduction.to_text())
    if not reproduction.identical:
        raise UdcError("the result differs from the recorded one")


def _promote_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="RUN", help=RUN)
    parser.add_argument("--as", dest="model", required=True, metavar="NAME", help="the registered model")
    parser.add_argument("--force", action="store_true", help="make it the champion whatever the comparison shows")


def _promote(options: argparse.Namespace) -> None:
    from udc_model.experiments.promotion import promote

    promotion = promote(options.name, options.model, force=options.force)
    role = "champion" if promotion.is_champion else "challenger, not champion"
    sys.stdout.write(f"{promotion.name} version {promotion.version} is {role}: {promotion.reason}\n")
    if not promotion.is_champion:
        sys.stdout.write("lower costs are not shown; --force makes it the champion anyway\n")
        sys.exit(1)  # no error: the version is registered, and a script can tell what it became


COMMANDS = (
    Command("Share", "ui", "show runs, curves and models in the browser, with MLflow", _ui, _ui_arguments),
    Command("Share", "sync", "deliver pending entries to MLflow; link DVC experiments to runs", _sync),
    Command(
        "Share", "relocate", "correct the places of artifacts in a SQLite store that was copied or moved", _relocate
    ),
    Command("Share", "reproduce", "run a recorded run again and compare the results", _reproduce, _reproduce_arguments),
    Command(
        "Share", "promote", "register a run's model; champion if it is shown to cost less", _promote, _promote_arguments
    ),
)
