"""The command that opens a page to try the model and to correct labels."""

from __future__ import annotations

import argparse

from udc_model.cli.command import Command, Parser, add_port, add_root


def _app_arguments(parser: Parser) -> None:
    add_root(parser, "model/, evaluation/, data/prepared/ and data/corrections.csv")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                        help="0.0.0.0 for other machines (default: %(default)s, this machine only)")  # fmt: skip
    add_port(parser, 8070)


def _app(options: argparse.Namespace) -> None:
    from udc_model.app.run import run_app

    run_app(options.root, options.host, options.port)


COMMANDS = (Command("Decide", "app", "decide images and review labels on a page in the browser", _app, _app_arguments),)
