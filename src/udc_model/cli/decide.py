"""Commands that decide images, decide again under other costs, or export the model."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.cli.command import (
    RESULT,
    Command,
    Parser,
    add_engine,
    add_params_file,
    add_port,
    add_root,
    add_settings,
    add_split,
    check_engine,
)
from udc_model.errors import UdcError
from udc_model.files import Workspace, check_new_folder, check_target
from udc_model.inference.exports.targets import SUFFIXES, TARGETS, TOLERANCE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from udc_model.decisions.policy import Policy


def _predict_arguments(parser: Parser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH",
                        help="image files, folders of them, or - for an image on standard input")  # fmt: skip
    parser.add_argument("--from-list", metavar="FILE",
                        help="file with one path per line or between null characters; - is standard input")  # fmt: skip
    add_root(parser, "model/ and evaluation/")
    parser.add_argument("--estimate-prior", action="store_true",
                        help="estimate the class frequencies from these images, and decide with them")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print JSON instead of a table")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="print CSV instead of a table")
    parser.set_defaults(form="table")


def _predict(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from udc_model.inference.inputs import BadInput, list_inputs
    from udc_model.inference.prediction import predict, write_predictions
    from udc_model.inference.stored_model import open_stored

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not valid UTF-8
    inputs = list_inputs(options.paths, options.from_list)
    workspace = Workspace(options.root)
    stored = open_stored(workspace)
    adapt = _prior_estimation(workspace.evaluation, stored.policy) if options.estimate_prior else None
    bad = 0

    def report(each: BadInput) -> None:
        nonlocal bad
        bad += 1
        tqdm.write(str(each), file=sys.stderr)

    # the rows themselves show the progress on a terminal
    with tqdm(inputs, "deciding", unit="img", disable=sys.stdout.isatty() or None, leave=False) as counted:
        write_predictions(predict(counted, stored, report, adapt), options.form, sys.stdout)
    if bad:
        raise UdcError(f"{bad} image(s) could not be used")


def _score_arguments(parser: Parser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH",
                        help="images, folders of them, tables of paths (as .csv, .parquet), .tar shards")  # fmt: skip
    parser.add_argument("--from-list", metavar="FILE",
                        help="file with one path per line or between null characters; - is standard input")  # fmt: skip
    parser.add_argument("--column", metavar="NAME", help="column of paths in the tables (default: by the usual names)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder of Parquet files to write; the same command again continues there")  # fmt: skip
    parser.add_argument("--processes", type=int, metavar="N",
                        help="processes that decode images, 1: in this one (default: one per core)")  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="score everything again, also what is in the folder")
    add_engine(parser)
    add_root(parser, "model/ and evaluation/")


def _score(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from udc_model.config.limits import check_number_of_processes
    from udc_model.inference.scored_parts import BAD_IMAGES
    from udc_model.inference.scoring import score, score_here
    from udc_model.inference.scoring_inputs import list_scoring_inputs
    from udc_model.inference.scoring_on_ray import ScoringOnRay
    from udc_model.inference.scoring_progress import ScoringProgress
    from udc_model.inference.stored_model import open_stored

    if options.processes is not None:
        check_number_of_processes("--processes", options.processes)
    check_engine(options)
    engine = ScoringOnRay(options.ray_address) if options.engine == "ray" else score_here
    inputs = list_scoring_inputs(options.paths, options.from_list, options.column)
    stored = open_stored(Workspace(options.root))
    with tqdm(inputs, "listing images", unit="img", disable=None, leave=False) as counted, ScoringProgress() as show:
        totals = score(counted, stored, options.out, processes=options.processes, restart=options.restart,
                       progress=show, engine=engine)  # fmt: skip
    rate = f", {totals.inputs / totals.seconds:,.3g} images/s" if totals.inputs else ""
    sys.stdout.write(f"{totals.rows:,} rows and {totals.bad:,} bad image(s) in {options.out}{rate}\n")
    if totals.bad:
        raise UdcError(f"{totals.bad:,} image(s) could not be used; {options.out / BAD_IMAGES} lists them")


def _prior_estimation(evaluation: Path, stored: Policy) -> Callable[[Policy, NDArray[np.float32]], Policy]:
    """What replaces the class frequencies of a policy by estimates, and prints them to standard error.

    Raises
    ------
    UdcError
        The stored policy does not allow it.
    """
    from tqdm import tqdm

    from udc_model.evaluation.estimated_prior import check_can_estimate, with_estimated_prior
    from udc_model.evaluation.tables import read_predictions

    path = evaluation / "calibration" / "predictions.csv"
    calibration = read_predictions(path) if path.is_file() else None
    check_can_estimate(stored, calibration)

    def adapt(policy: Policy, logits: NDArray[np.float32]) -> Policy:
        policy, text = with_estimated_prior(policy, logits, calibration)
        tqdm.write(text, file=sys.stderr, end="")
        return policy

    return adapt


def _explain_arguments(parser: Parser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH",
                        help="image files or folders of them (default: the images that the report explains or should "
                        "explain)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("explanations.html"), metavar="FILE",
                        help="the page to write (default: %(default)s)")  # fmt: skip
    add_root(parser, "model/, evaluation/ and data/prepared/")


def _explain(options: argparse.Namespace) -> None:
    check_target(options.out, ".html")
    from udc_model.inference.inputs import BadInput, list_inputs
    from udc_model.stages.explain import explain_evaluation, explain_images

    workspace = Workspace(options.root)
    bad: list[BadInput] = []

    def report(each: BadInput) -> None:
        bad.append(each)
        sys.stderr.write(f"{each}\n")

    if options.paths:
        count = explain_images(list_inputs(options.paths), workspace, report, options.out)
    else:
        count = explain_evaluation(workspace, options.out)
    if count:
        sys.stdout.write(f"{options.out}: {count:,} image(s) explained\n")
    if bad:
        raise UdcError(f"{len(bad):,} image(s) could not be used")


def _decide_arguments(parser: Parser) -> None:
    add_settings(parser, "a parameter of costs or evaluate that replaces the one in params.yaml")
    parser.add_argument("name", nargs="?", default=".", metavar="RESULT", help=f"{RESULT} (default: this folder)")
    add_params_file(parser)
    add_split(parser)
    parser.add_argument("--sweep", metavar="true=A,predicted=B,values=FIRST:LAST:STEP",
                        help="vary the cost of one cell, and write a table and a plot")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the tables (of a sweep: default sweeps)")


def _decide(options: argparse.Namespace) -> None:
    from udc_model.config import load_params
    from udc_model.decisions.checks import check_policy
    from udc_model.decisions.matrix import display_order
    from udc_model.evaluation.redecision import Sweep, decision_report, write_decisions, write_sweep
    from udc_model.experiments.stored import load_evaluation

    params = load_params(options.params, options.settings)
    sweep = Sweep.parse(options.sweep) if options.sweep else None
    stored = load_evaluation(options.name, options.split)
    check_policy(params.evaluate, params.costs, stored.policy.classes, stored.calibration_counts,
                 stored.calibration_groups)  # fmt: skip
    if sweep is not None:
        table, files = write_sweep(sweep, stored, params.evaluate, params.costs, options.out or Path("sweeps"))
        sys.stdout.write(table + "\n" + "\n".join(map(str, files)) + "\n")
        return
    policy, scored = stored.decide(params.evaluate, params.costs)
    order = display_order(params.costs, policy.classes)
    sys.stdout.write(decision_report(stored, policy, scored, params.evaluate, order))
    if options.out is not None:
        write_decisions(options.out, stored, policy)


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("target", type=Path, metavar="TARGET",
                        help="the file to write, as model.onnx or model.pt2, or for openvino and safetensors-hf a new "
                        "folder")  # fmt: skip
    parser.add_argument("--to", choices=tuple(TARGETS), default="onnx",
                        help="format (default: %(default)s)")  # fmt: skip
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16", "int8"), default="fp32",
                        help="of the network; int8 uses the calibration split (default: %(default)s)")  # fmt: skip
    parser.add_argument("--input", choices=("image", "pixel_values"),
                        help="decoded images of any size (uint8, NHWC), or the network's normalised input (float32, "
                        "NCHW), the only one of openvino and safetensors-hf (default: image if possible)")  # fmt: skip
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="SHARE",
                        help="refuse the export if its decisions on the test split cost more than the model's by a "
                        "larger share (default: %(default)s)")  # fmt: skip
    parser.add_argument("--no-check", action="store_true", help="write it without running it on the test split")
    add_root(parser, "model/, evaluation/ and data/prepared/")


def _export(options: argparse.Namespace) -> None:
    if not 0 <= options.tolerance < math.inf:
        raise UdcError(f"--tolerance: must be 0 or more, not {options.tolerance:g}; 0.01 allows 1% more cost")
    suffix = SUFFIXES.get(options.to)
    check_new_folder(options.target) if suffix is None else check_target(options.target, suffix)
    from udc_model.data.packed import PackedDataset
    from udc_model.evaluation.model_card import read_card
    from udc_model.inference.stored_model import open_stored

    workspace = Workspace(options.root)
    stored = open_stored(workspace)
    needs_data = not options.no_check or options.precision == "int8"
    if needs_data and not workspace.prepared.is_dir():
        reason = "int8 needs its calibration split" if options.no_check else "the export is checked on its test split"
        advice = "" if options.no_check else ", or write it unchecked with --no-check"
        raise UdcError(f"{workspace.prepared}: no such folder, and {reason}; restore it (dvc checkout){advice}")
    card = read_card(workspace.evaluation)
    if stored.model.weights_sha256 not in card:  # it describes an earlier model
        card = ""
    from udc_model.inference.exports.export import ExportRequest, write_export

    request = ExportRequest(options.to, options.precision, options.input)
    data = PackedDataset.open(workspace.prepared) if needs_data else None
    agreement, library = write_export(request, stored, card, options.target, data, options.tolerance,
                                      not options.no_check)  # fmt: skip
    size = sum(path.stat().st_size for path in ([options.target] if suffix else options.target.iterdir()))
    checked = "not checked" if agreement is None else agreement.to_text()
    sys.stdout.write(f"{options.target}: {size / 1e6:,.1f} MB, {options.precision}, run with {library}\n{checked}\n")


def _serve_arguments(parser: Parser) -> None:
    add_root(parser, "model/ and evaluation/")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                        help="0.0.0.0 for other machines (default: %(default)s, this machine only)")  # fmt: skip
    add_port(parser, 8080)
    parser.add_argument("--workers", type=int, default=1, metavar="N",
                        help="processes, each with a copy of the model (default: %(default)s)")  # fmt: skip


def _serve(options: argparse.Namespace) -> None:
    from udc_model.config.limits import check_number_of_processes

    check_number_of_processes("--workers", options.workers)
    from udc_model.inference.server.run import serve

    serve(options.root, options.host, options.port, options.workers)


COMMANDS = (
    Command("Decide", "predict", "decide images with the trained model", _predict, _predict_arguments),
    Command("Decide", "serve", "decide images over HTTP", _serve, _serve_arguments),
    Command("Decide", "score", "decide any number of images into a folder of Parquet files", _score, _score_arguments),
    Command(
        "Decide",
        "explain",
        "show where the network finds its evidence, and similar training images",
        _explain,
        _explain_arguments,
    ),
    Command("Decide", "decide", "decide stored predictions again under other costs", _decide, _decide_arguments),
    Command(
        "Decide",
        "export",
        "write model and decisions for another runtime, and check them",
        _export,
        _export_arguments,
    ),
)
