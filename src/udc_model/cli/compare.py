"""Commands that summarise and compare results."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from udc_model.cli.command import RESULT, RUN, Command, Parser, add_split
from udc_model.files import Workspace, check_target, write_atomically

logger = logging.getLogger("udc_model.cli")


def _summary(options: argparse.Namespace) -> None:
    from udc_model.experiments.summary import summary

    sys.stdout.write(summary(Workspace()))


def _experiments_arguments(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="DVC experiments, git revisions or workspace; all are compared with the first (default: "
                        "the last commit and the experiments that began from it)")  # fmt: skip
    parser.add_argument("--all", action="store_true", help="experiments that began from any commit")
    parser.add_argument("--csv", action="store_true", help="print CSV with all numbers of metrics.json")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page instead")


def _experiments(options: argparse.Namespace) -> None:
    from udc_model.experiments.listing import list_experiments
    from udc_model.experiments.overview import to_csv, to_html, to_text

    if options.html is not None:
        check_target(options.html, ".html")
    listing = list_experiments(options.names, of_all_commits=options.all)
    if options.html is not None:
        write_atomically(options.html, to_html(listing))
        sys.stdout.write(f"{options.html}\n")
    else:
        sys.stdout.write(to_csv(listing) if options.csv else to_text(listing))


def _compare_arguments(parser: Parser) -> None:
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help=RESULT)
    add_split(parser)
    parser.add_argument("--costs", metavar="NAME",
                        help="decide both again under the costs of this result, A or B or another")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with all images whose decisions differ")


def _compare(options: argparse.Namespace) -> None:
    import json

    from udc_model.experiments.results import compare

    comparison = compare(options.a, options.b, options.split, options.costs)
    if options.json:
        sys.stdout.write(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n")
    else:
        decided = f"\nBoth were decided under the costs of {options.costs}.\n" if options.costs else ""
        sys.stdout.write(comparison.to_text() + decided)


def _sweep_report_arguments(parser: Parser) -> None:
    parser.add_argument("swept", metavar="NAME", help="a parameter, as train.learning_rate, or a cost, as "
                        "true=A,predicted=B")  # fmt: skip
    parser.add_argument("--metrics", nargs="+", default=["mean_cost", "normalised_cost", "accuracy"], metavar="METRIC",
                        help="test metrics (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--where", action="append", default=[], metavar="NAME=VALUE", help="only runs with this parameter"
    )
    parser.add_argument("--out", type=Path, default=Path("sweeps"), metavar="DIR",
                        help="folder of the table and the plot (default: %(default)s)")  # fmt: skip


def _sweep_report(options: argparse.Namespace) -> None:
    from udc_model.evaluation.redecision import write_sweep_files
    from udc_model.experiments.results import sweep_of_runs

    table, varying = sweep_of_runs(options.swept, options.metrics, options.where)
    panels = [(f"test {name}".replace("_", " "), [name]) for name in options.metrics]
    files = write_sweep_files(options.out, options.swept, table.rename(columns={"value": options.swept}), panels)
    if varying:
        logger.warning(
            "these runs differ in other parameters too: %s; choose with --where NAME=VALUE", ", ".join(varying)
        )
    logger.info("no difference between these runs is tested, and the best of %d on one test split is too good by "
                "chance; udc compare tests two of them", len(table))  # fmt: skip
    sys.stdout.write(table[["run", "value", *options.metrics]].to_string(index=False) + "\n")
    sys.stdout.write("\n".join(map(str, files)) + "\n")


def _show_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="RUN", help=RUN)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _show(options: argparse.Namespace) -> None:
    import json

    from udc_model.experiments.names import resolve_run
    from udc_model.tracking.lookup import description

    about = description(resolve_run(options.name))
    if options.json:
        sys.stdout.write(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        return
    for name, value in about.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        sys.stdout.write(f"{name.replace('_', ' '):<20} {'-' if value in (None, '') else value}\n")


COMMANDS = (
    Command("Compare", "summary", "print what was trained here and how good it is", _summary),
    Command(
        "Compare",
        "experiments",
        "list experiments: what differs, what they cost, whether that is shown",
        _experiments,
        _experiments_arguments,
    ),
    Command("Compare", "compare", "compare the costs of two results, with a test", _compare, _compare_arguments),
    Command(
        "Compare",
        "sweep-report",
        "plot recorded runs against a parameter or a cost",
        _sweep_report,
        _sweep_report_arguments,
    ),
    Command("Compare", "show", "print where a run comes from and where its outputs are", _show, _show_arguments),
)
