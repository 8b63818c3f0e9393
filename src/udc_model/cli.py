"""The ``udc`` command. Each verb imports what it needs when it runs, so that ``udc --help`` is instant."""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from udc_model.errors import UdcError
from udc_model.stages.files import Workspace, exit_status

logger = logging.getLogger("udc_model.cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``udc``; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.verb != "run":
        parser.error(f"unknown argument(s): {' '.join(rest)}")
    options.overrides = rest
    return exit_status(lambda: options.function(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="udc",
        description="Train image classifiers whose decisions cost as little as possible, reproducibly.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, help_text, function in (
        ("prepare", "check, split and pack the images that params.yaml names", _prepare),
        ("train", "train on the prepared images", _train),
        ("evaluate", "score the trained model and write metrics, tables and pictures", _evaluate),
    ):
        verb = verbs.add_parser(name, help=help_text)
        verb.set_defaults(function=function)
        verb.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters to read")
    summary = verbs.add_parser("summary", help="what was trained here, how good it is, and where everything lies")
    summary.set_defaults(function=_summary)
    run = verbs.add_parser(
        "run", help="run the DVC pipeline with changed parameters, as an experiment", allow_abbrev=False
    )
    run.set_defaults(function=_run)
    run.add_argument("--stage", choices=("prepare", "train", "evaluate"), help="last stage to run (default: all)")
    run.epilog = "Any parameter can be given, e.g. --model_type convnext --train.epochs 3."
    predict = verbs.add_parser("predict", help="decide images with the trained model")
    predict.set_defaults(function=_predict)
    predict.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image files, or folders of them")
    predict.add_argument("--root", type=Path, default=Path(), metavar="DIR",
                         help="folder with model/ and evaluation/ (default: here)")  # fmt: skip
    export = verbs.add_parser("export", help="write the trained model as ONNX")
    export.set_defaults(function=_export)
    export.add_argument("file", type=Path, metavar="FILE", help="the file to write, as model.onnx")
    export.add_argument("--root", type=Path, default=Path(), metavar="DIR", help="folder with model/ (default: here)")
    _add_compare(verbs)
    _add_decide(verbs)
    form = predict.add_mutually_exclusive_group()
    predict.set_defaults(form="table")
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print JSON instead of a table")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="print CSV instead of a table")
    return parser


def _add_compare(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = verbs.add_parser("compare", help="which of two results is cheaper, and how sure that is")
    compare.set_defaults(function=_compare)
    for name in ("a", "b"):
        compare.add_argument(name, metavar=name.upper(), help="a predictions.csv, a folder with evaluation/, the id or "
                             "name of an MLflow run, or a DVC experiment or git revision")  # fmt: skip
    compare.add_argument("--split", choices=("test", "validation"), default="test")
    compare.add_argument("--json", action="store_true", help="print JSON, with all images that changed sides")
    sweep = verbs.add_parser("sweep-report", help="draw recorded runs against one parameter or price")
    sweep.set_defaults(function=_sweep_report)
    sweep.add_argument("swept", metavar="NAME", help="a parameter, as train.learning_rate, or a price, as "
                       "true=A,predicted=B")  # fmt: skip
    sweep.add_argument("--metrics", nargs="+", default=["mean_cost", "normalised_cost", "accuracy"], metavar="METRIC",
                       help="test metrics (default: %(default)s)")  # fmt: skip
    sweep.add_argument(
        "--where", action="append", default=[], metavar="NAME=VALUE", help="only runs with this parameter"
    )
    sweep.add_argument("--out", type=Path, default=Path("sweeps"), metavar="DIR",
                       help="folder of table and plot (default: %(default)s)")  # fmt: skip


def _add_decide(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    decide = verbs.add_parser("decide", help="decide stored predictions again, under other prices or another rule")
    decide.set_defaults(function=_decide)
    decide.add_argument("-S", "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE",
                        help="a parameter of costs or evaluate in place of that in params.yaml")  # fmt: skip
    decide.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters to read")
    decide.add_argument(
        "--root", type=Path, default=Path(), metavar="DIR", help="folder with evaluation/ (default: here)"
    )
    decide.add_argument("--split", choices=("test", "validation"), default="test")
    decide.add_argument("--sweep", metavar="true=A,predicted=B,values=FIRST:LAST:STEP",
                        help="move the price of one cell, and write table and plot")  # fmt: skip
    decide.add_argument("--out", type=Path, metavar="DIR", help="folder to write tables to (a sweep: default sweeps)")


def _prepare(options: argparse.Namespace) -> None:
    from udc_model.params import load_params
    from udc_model.stages.prepare import prepare

    prepare(load_params(options.params), Workspace())


def _train(options: argparse.Namespace) -> None:
    from udc_model.params import load_params
    from udc_model.stages.train import train

    train(load_params(options.params), Workspace())


def _evaluate(options: argparse.Namespace) -> None:
    from udc_model.params import load_params
    from udc_model.stages.evaluate import evaluate

    evaluate(load_params(options.params), Workspace())


def _run(options: argparse.Namespace) -> None:
    """``dvc exp run`` with the given parameters; what the entry points of MLproject call."""
    from udc_model.params import full_name

    settings = []
    pairs = iter(options.overrides)
    for flag in pairs:
        name, equals, value = flag.removeprefix("--").partition("=")
        value = value if equals else next(pairs, None)
        if not flag.startswith("--") or value is None:
            raise UdcError(f"{flag}: parameters are given as --name value")
        settings += ["-S", f"{full_name(name)}={value}"]
    dvc = shutil.which("dvc")
    if dvc is None:
        raise UdcError("the dvc command is not on the PATH; activate the environment (. .venv/bin/activate)")
    command = [dvc, "exp", "run", *settings, *([options.stage] if options.stage else [])]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise UdcError(f"dvc exp run failed with status {done.returncode}")


def _summary(options: argparse.Namespace) -> None:
    from udc_model.summary import summary

    sys.stdout.write(summary(Workspace()))


def _predict(options: argparse.Namespace) -> None:
    from udc_model.prediction import image_files, predict_files, write_predictions

    predictions = predict_files(image_files(options.paths), Workspace(options.root))
    write_predictions(predictions.rows, options.form, sys.stdout)
    if predictions.bad:
        bad = predictions.bad
        raise UdcError(f"{len(bad)} image(s) could not be used:\n  " + "\n  ".join(bad))


def _compare(options: argparse.Namespace) -> None:
    import json

    from udc_model.results import compare

    found = compare(options.a, options.b, options.split)
    text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n" if options.json else found.to_text()
    sys.stdout.write(text)


def _decide(options: argparse.Namespace) -> None:
    from udc_model.evaluation.redecision import StoredEvaluation, Sweep, decision_report, write_decisions, write_sweep
    from udc_model.params import load_params

    params = load_params(options.params, options.settings)
    sweep = Sweep.parse(options.sweep) if options.sweep else None
    stored = StoredEvaluation.load(Workspace(options.root).evaluation, options.split)
    if sweep is not None:
        table, files = write_sweep(sweep, stored, params.evaluate, params.costs, options.out or Path("sweeps"))
        sys.stdout.write(table + "\n" + "\n".join(map(str, files)) + "\n")
        return
    rule, scored = stored.decide(params.evaluate, params.costs)
    sys.stdout.write(decision_report(stored, rule, scored, params.evaluate))
    if options.out is not None:
        write_decisions(options.out, stored, rule, scored)


def _sweep_report(options: argparse.Namespace) -> None:
    from udc_model.evaluation.redecision import write_sweep_files
    from udc_model.results import sweep_of_runs

    table, varying = sweep_of_runs(options.swept, options.metrics, options.where)
    panels = [(f"test {name}".replace("_", " "), [name]) for name in options.metrics]
    files = write_sweep_files(options.out, options.swept, table.rename(columns={"value": options.swept}), panels)
    if varying:
        logger.warning(
            "these runs differ in other parameters too: %s; choose with --where NAME=VALUE", ", ".join(varying)
        )
    sys.stdout.write(table[["run", "value", *options.metrics]].to_string(index=False) + "\n")
    sys.stdout.write("\n".join(map(str, files)) + "\n")


def _export(options: argparse.Namespace) -> None:
    import json

    from udc_model.data.transforms import Preprocessing
    from udc_model.models import load_model
    from udc_model.models.onnx_export import export_onnx

    folder = Workspace(options.root).model
    preprocessing = Preprocessing.load(folder)
    export_onnx(load_model(folder), options.file, preprocessing.size,
                {"preprocessing": json.dumps(preprocessing.to_config())})  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
