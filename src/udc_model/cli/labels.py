"""The command about labels: a person reviews the suspicious ones."""

from __future__ import annotations

import argparse
import sys

from udc_model.cli.command import Command, Parser, add_root
from udc_model.files import Workspace


def _labels_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=("review",),
                        help="review: show the suspicious labels one by one, and ask what each should be")  # fmt: skip
    parser.add_argument("--author", metavar="NAME", help="recorded with each correction (default: git's user.name)")
    parser.add_argument("--reason", metavar="TEXT", default="reviewed", help="recorded too (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="also labels that are not suspicious, costliest first")
    add_root(parser, "evaluation/ and data/corrections.csv")


def _labels(options: argparse.Namespace) -> None:
    from udc_model.decisions.policy import Policy
    from udc_model.evaluation.label_review import Reviewer, read_suspects, review
    from udc_model.tracking.provenance import git

    workspace = Workspace(options.root)
    suspects = read_suspects(workspace.evaluation, with_others=options.all)
    classes = Policy.load(workspace.evaluation).classes
    author = options.author if options.author is not None else git("config", "user.name") or ""
    sys.stdout.write(review(suspects, classes, workspace, Reviewer(author, options.reason, _ask)))


def _ask(prompt: str) -> str | None:
    """Print a text and read a line; None at the end of the input."""
    sys.stdout.write(prompt)
    sys.stdout.flush()
    answer = sys.stdin.readline()
    if not answer:
        sys.stdout.write("\n")
    return answer or None


COMMANDS = (
    Command("Build", "labels", "review labels that may be wrong, and write data/corrections.csv", _labels,
            _labels_arguments),
)  # fmt: skip
