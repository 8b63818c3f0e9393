"""The ``udc`` command. Each verb imports what it needs when it runs, so that ``udc --help`` is instant."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.errors import UdcError
from udc_model.files import Workspace, exit_status

if TYPE_CHECKING:
    from udc_model.stages.resolve import ResolvedParams

logger = logging.getLogger("udc_model.cli")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``udc``; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.verb != "run":
        parser.error(f"unknown argument(s): {' '.join(rest)}")
    options.overrides = rest
    return exit_status(lambda: _execute(options))


def _execute(options: argparse.Namespace) -> None:
    if options.verb not in ("sync", "run", "prepare", "train", "evaluate"):  # stages do it themselves
        from udc_model.tracking.journal import report_warnings
        from udc_model.tracking.store import repository_root

        report_warnings(repository_root())
    options.function(options)


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
        if name == "train":
            verb.add_argument(
                "--profile", action="store_true", help="only tell where a step's time goes, from two epochs"
            )
    _add_find_lr(verbs)
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
    _add_records(verbs)
    _add_tune(verbs)
    form = predict.add_mutually_exclusive_group()
    predict.set_defaults(form="table")
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print JSON instead of a table")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="print CSV instead of a table")
    return parser


def _add_find_lr(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    find_lr = verbs.add_parser("find-lr", help="train with a rising learning rate, to see which the model stands")
    find_lr.set_defaults(function=_find_lr)
    find_lr.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters to read")
    for name, default in (("--from", 1e-6), ("--to", 1.0)):
        find_lr.add_argument(name, dest=name[2:], type=float, default=default, metavar="RATE",
                             help="default: %(default)g")  # fmt: skip
    find_lr.add_argument("--steps", type=int, default=100, metavar="N", help="default: %(default)s")
    find_lr.add_argument("--out", type=Path, default=Path("sweeps"), metavar="DIR",
                         help="folder of table and plot (default: %(default)s)")  # fmt: skip


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
    decide = verbs.add_parser("decide", help="decide stored predictions again, under other prices or another policy")
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


_RUN = "id or name of an MLflow run, DVC experiment, git revision, registered model (models:/NAME/3), or folder"


def _add_records(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sync = verbs.add_parser("sync", help="deliver pending entries to MLflow, and link DVC experiments to runs")
    sync.set_defaults(function=_sync)
    show = verbs.add_parser("show", help="the origin of a run or experiment, and where its files are")
    show.set_defaults(function=_show)
    show.add_argument("run", metavar="RUN", help=_RUN)
    show.add_argument("--json", action="store_true", help="print JSON")
    reproduce = verbs.add_parser("reproduce", help="run the pipeline of a recorded run again and compare the results")
    reproduce.set_defaults(function=_reproduce)
    reproduce.add_argument("run", metavar="RUN", help=_RUN)
    reproduce.add_argument("--check", action="store_true", help="only check that commit, changes and data still exist")
    promote = verbs.add_parser("promote", help="register a run's model, as the champion if a test shows lower costs")
    promote.set_defaults(function=_promote)
    promote.add_argument("run", metavar="RUN", help=_RUN)
    promote.add_argument("--as", dest="name", required=True, metavar="NAME", help="the registered model")
    promote.add_argument("--force", action="store_true", help="make it the champion whatever the comparison shows")


def _add_tune(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tune = verbs.add_parser("tune", help="search for parameters; each trial is a DVC experiment")
    tune.set_defaults(function=_tune)
    tune.add_argument("-S", "--set", dest="settings", action="append", required=True, metavar="NAME=RANGE",
                      help="log(a,b), uniform(a,b), int(a,b), choice(x,y,…), or a value for all trials")  # fmt: skip
    tune.add_argument("--trials", type=int, default=20, metavar="N", help="trials in total (default: %(default)s)")
    tune.add_argument("--study", default="tune", metavar="NAME",
                      help="its name; an interrupted study of that name is resumed (default: %(default)s)")  # fmt: skip
    tune.add_argument("--metric", default="validation/mean_cost", metavar="NAME", help="default: %(default)s")
    tune.add_argument("--sampler", choices=("tpe", "random", "grid"), default="tpe", help="default: %(default)s")
    tune.add_argument("--no-prune", action="store_true", help="do not end trials with a poor validation curve early")


def _prepare(options: argparse.Namespace) -> None:
    from udc_model.config import load_params
    from udc_model.stages.prepare import prepare

    prepare(load_params(options.params), Workspace())


def _train(options: argparse.Namespace) -> None:
    params = _resolved(options.params).train
    if options.profile:
        from udc_model.experiments.exploration import profile_training

        sys.stdout.write(profile_training(params, Workspace()))
        return
    from udc_model.stages.train import train

    train(params, Workspace())


def _resolved(params: Path) -> ResolvedParams:
    """The parameters of a file, checked against the prepared data and reduced to what each stage depends on."""
    from udc_model.config import load_params
    from udc_model.stages.resolve import read_dataset_info, resolve

    return resolve(load_params(params), read_dataset_info(Workspace()))


def _find_lr(options: argparse.Namespace) -> None:
    from udc_model.experiments.exploration import find_learning_rate

    ends = getattr(options, "from"), options.to
    sys.stdout.write(
        find_learning_rate(_resolved(options.params).train, Workspace(), options.out, *ends, steps=options.steps)
    )


def _evaluate(options: argparse.Namespace) -> None:
    from udc_model.stages.evaluate import evaluate

    evaluate(_resolved(options.params).evaluate, Workspace())


def _run(options: argparse.Namespace) -> None:
    """``dvc exp run`` with the given parameters; what the entry points of MLproject call."""
    from udc_model.config import full_name

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
    outer = os.environ.get("MLFLOW_RUN_ID")  # under `mlflow run`, which ends the run when this process ends
    if outer:
        from udc_model.tracking.journal import wait_for_senders
        from udc_model.tracking.store import repository_root

        wait_for_senders(repository_root())
    if done.returncode:
        raise UdcError(f"dvc exp run failed with status {done.returncode}")
    if outer:
        from udc_model.tracking.lookup import tag_restored

        tag_restored(outer)


def _sync(options: argparse.Namespace) -> None:
    from udc_model.tracking.journal import wait_for_senders
    from udc_model.tracking.sender import sync
    from udc_model.tracking.store import repository_root, tracking_uri, without_credentials

    wait_for_senders(repository_root())
    delivered, errors, linked = sync(repository_root())
    store = without_credentials(tracking_uri())
    lines = [f"{store}: {delivered} journal(s) delivered, {len(linked)} experiment(s) linked"]
    lines += [f"  {name}: run {run_id}" for name, run_id in linked.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    if errors:
        reasons = "\n  ".join(f"{folder}: {reason}" for folder, reason in errors.items())
        raise UdcError(f"{len(errors)} journal(s) could not be delivered and remain pending:\n  {reasons}")


def _show(options: argparse.Namespace) -> None:
    import json

    from udc_model.experiments.names import resolve_run
    from udc_model.tracking.lookup import description

    about = description(resolve_run(options.run))
    if options.json:
        sys.stdout.write(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        return
    for name, value in about.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        sys.stdout.write(f"{name.replace('_', ' '):<20} {'-' if value in (None, '') else value}\n")


def _reproduce(options: argparse.Namespace) -> None:
    from udc_model.experiments.reproduction import check, reproduce

    if options.check:
        sys.stdout.write(check(options.run))
        return
    found = reproduce(options.run)
    sys.stdout.write(found.to_text())
    if not found.identical:
        raise UdcError("the result differs from the recorded one")


def _promote(options: argparse.Namespace) -> None:
    from udc_model.experiments.promotion import promote

    found = promote(options.run, options.name, force=options.force)
    role = "champion" if found.is_champion else "challenger, not champion"
    sys.stdout.write(f"{found.name} version {found.version} is {role}: {found.reason}\n")
    if not found.is_champion:
        raise UdcError("not promoted to champion: lower costs are not shown (--force promotes it anyway)")


def _tune(options: argparse.Namespace) -> None:
    from udc_model.experiments.tuning import SearchRange, TuningPlan, tune

    ranges = [SearchRange.parse(setting) for setting in options.settings]
    plan = TuningPlan(options.study, ranges, options.trials, options.metric, options.sampler, not options.no_prune)
    sys.stdout.write(tune(plan))


def _summary(options: argparse.Namespace) -> None:
    from udc_model.experiments.summary import summary

    sys.stdout.write(summary(Workspace()))


def _predict(options: argparse.Namespace) -> None:
    from udc_model.inference.prediction import image_files, predict_files, write_predictions

    predictions = predict_files(image_files(options.paths), Workspace(options.root))
    write_predictions(predictions.rows, options.form, sys.stdout)
    if predictions.bad:
        bad = predictions.bad
        raise UdcError(f"{len(bad)} image(s) could not be used:\n  " + "\n  ".join(bad))


def _compare(options: argparse.Namespace) -> None:
    import json

    from udc_model.experiments.results import compare

    found = compare(options.a, options.b, options.split)
    text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n" if options.json else found.to_text()
    sys.stdout.write(text)


def _decide(options: argparse.Namespace) -> None:
    from udc_model.config import load_params
    from udc_model.evaluation.redecision import StoredEvaluation, Sweep, decision_report, write_decisions, write_sweep

    params = load_params(options.params, options.settings)
    sweep = Sweep.parse(options.sweep) if options.sweep else None
    stored = StoredEvaluation.load(Workspace(options.root).evaluation, options.split)
    if sweep is not None:
        table, files = write_sweep(sweep, stored, params.evaluate, params.costs, options.out or Path("sweeps"))
        sys.stdout.write(table + "\n" + "\n".join(map(str, files)) + "\n")
        return
    policy, scored = stored.decide(params.evaluate, params.costs)
    sys.stdout.write(decision_report(stored, policy, scored, params.evaluate))
    if options.out is not None:
        write_decisions(options.out, stored, policy, scored)


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
    sys.stdout.write(table[["run", "value", *options.metrics]].to_string(index=False) + "\n")
    sys.stdout.write("\n".join(map(str, files)) + "\n")


def _export(options: argparse.Namespace) -> None:
    import json

    from udc_model.data.transforms import Preprocessing
    from udc_model.inference.onnx_export import export_onnx
    from udc_model.models import load_model

    folder = Workspace(options.root).model
    preprocessing = Preprocessing.load(folder)
    export_onnx(load_model(folder), options.file, preprocessing.size,
                {"preprocessing": json.dumps(preprocessing.to_config())})  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
