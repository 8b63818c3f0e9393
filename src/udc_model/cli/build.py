"""Commands that build a model: the stages, experiments, searches and parameters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.cli.command import Command, Parser, add_engine, add_params_file, add_settings, check_engine
from udc_model.errors import UdcError
from udc_model.files import Workspace, check_target

if TYPE_CHECKING:
    from udc_model.stages.resolve import ResolvedParams


def _resolved(params: Path) -> ResolvedParams:
    """The parameters of a file, checked against the prepared data and reduced to what each stage depends on."""
    from udc_model.config import load_params
    from udc_model.stages.resolve import resolve_workspace

    return resolve_workspace(load_params(params), Workspace())


def _inspect_arguments(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="folder of images, or a zip or tar archive")
    add_settings(parser, "a parameter of data, as data.group='^(.+)_'")
    parser.add_argument("--report", nargs="?", const=Path("data_report.html"), type=Path, metavar="FILE",
                        help="write what was found with images, as a web page (default: data_report.html)")  # fmt: skip


def _inspect(options: argparse.Namespace) -> None:
    if options.report is not None:
        check_target(options.report, ".html")
    from udc_model.config import override_params
    from udc_model.data.inspection import inspect, inspect_pixels
    from udc_model.project.recommendation import has_accelerator, recommend

    params = override_params(["data.source=auto", *options.settings]).data.model_copy(update={"path": options.path})
    images = inspect(params)
    sys.stdout.write("\n".join([*images.lines, recommend(images, has_gpu=has_accelerator()).to_text()]))
    sys.stdout.flush()  # before the images are decoded, which takes longer
    found = inspect_pixels(params, options.report)
    sys.stdout.write("found in the images:\n" if found else "found in the images: nothing suspicious\n")
    sys.stdout.write("".join(f"  {k}. {sentence}\n" for k, sentence in enumerate(found, 1)))
    if options.report is not None:
        sys.stdout.write(f"report: {options.report}\n")


def _prepare(options: argparse.Namespace) -> None:
    from udc_model.config import load_params
    from udc_model.stages.prepare import prepare

    prepare(load_params(options.params), Workspace())


def _train_arguments(parser: Parser) -> None:
    add_params_file(parser)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--profile", action="store_true", help="print where the time of a step goes, and record nothing")
    only.add_argument("--dry-run", action="store_true",
                      help="check everything, run ten steps, estimate the time, and write nothing")  # fmt: skip


def _train(options: argparse.Namespace) -> None:
    resolved = _resolved(options.params)
    if options.profile:
        from udc_model.experiments.exploration import profile_training

        sys.stdout.write(profile_training(resolved.train, Workspace()))
        return
    if options.dry_run:
        from udc_model.stages.dry_run import dry_run

        sys.stdout.write(dry_run(resolved.train, Workspace()))
        return
    from udc_model.stages.train import train

    train(resolved.train, Workspace(), resolved.evaluate.costs)


def _evaluate_arguments(parser: Parser) -> None:
    add_params_file(parser)
    parser.add_argument("--checkpoint", action="store_true",
                        help="show the best model so far of a training run that is not finished, on validation images; "
                        "write nothing")  # fmt: skip


def _evaluate(options: argparse.Namespace) -> None:
    if options.checkpoint:
        from udc_model.stages.interim import best_so_far

        sys.stdout.write(best_so_far(_resolved(options.params), Workspace()))
        return
    from udc_model.stages.evaluate import evaluate

    evaluate(_resolved(options.params).evaluate, Workspace())


def _run_arguments(parser: Parser) -> None:
    add_settings(parser, "a parameter, as train.epochs=5; with --queue also several values: 5,10")
    parser.add_argument("-n", "--name", help="name of the experiment (default: chosen by DVC)")
    parser.add_argument("--temp", action="store_true", help="run in a copy; the results do not replace those here")
    parser.add_argument("--queue", action="store_true", help="only queue it, for `dvc queue start`")
    parser.add_argument("-f", "--force", action="store_true", help="run all stages, also if nothing has changed")
    parser.add_argument("--stage", choices=("prepare", "train", "evaluate"), help="last stage to run (default: all)")
    parser.epilog = "Any parameter can also be set as --model_type convnext --train.epochs 3, as MLproject does."


def _run(options: argparse.Namespace) -> None:
    """Run an experiment of DVC; what the entry points of MLproject call."""
    from udc_model.config import full_name
    from udc_model.experiments.start import start_experiment

    settings = []
    for setting in options.settings:
        name, equals, value = setting.partition("=")
        settings.append(f"{full_name(name)}={value}" if equals and name.isidentifier() else setting)
    pairs = iter(options.overrides)
    for flag in pairs:
        name, equals, value = flag.removeprefix("--").partition("=")
        value = value if equals else next(pairs, None)
        if not flag.startswith("--") or value is None:
            raise UdcError(f"{flag}: parameters are given as -S name=value")
        settings.append(f"{full_name(name)}={value}")
    arguments = ["--name", options.name] if options.name else []
    arguments += [f"--{name}" for name in ("temp", "queue", "force") if getattr(options, name)]
    arguments += [options.stage] if options.stage else []
    start_experiment(settings, arguments, is_queued=options.queue)


def _tune_arguments(parser: Parser) -> None:
    add_settings(parser, "log(a,b), uniform(a,b), int(a,b), choice(x,y,…), or a value for all trials", "NAME=RANGE",
                 is_required=True)  # fmt: skip
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="number of trials (default: %(default)s)")
    parser.add_argument("--study", default="tune", metavar="NAME",
                        help="name; an interrupted study of that name is resumed (default: %(default)s)")  # fmt: skip
    parser.add_argument("--metric", dest="metrics", action="append", metavar="NAME",
                        help="of the validation split, or training/seconds; repeat it to search the best trade-offs of "
                        "several (default: validation/mean_cost)")  # fmt: skip
    parser.add_argument("--sampler", choices=("tpe", "random", "grid"), default="tpe", help="default: %(default)s")
    parser.add_argument("--no-prune", action="store_true", help="do not end trials with a poor validation curve early")
    parser.add_argument("--stop", action="store_true",
                        help="end the study when further trials are not expected to help")  # fmt: skip
    parser.add_argument("--storage", metavar="URL", help="postgresql+psycopg://user@host/name: share the study with "
                        "every worker that the same command starts, on any machine")  # fmt: skip
    add_engine(parser)


def _tune(options: argparse.Namespace) -> None:
    from udc_model.experiments.search_range import SearchRange
    from udc_model.experiments.tuning import tune
    from udc_model.experiments.tuning_on_ray import tune_on_ray
    from udc_model.experiments.tuning_plan import TuningPlan

    check_engine(options)
    ranges = [SearchRange.parse(setting) for setting in options.settings]
    metrics = options.metrics or ["validation/mean_cost"]
    plan = TuningPlan(options.study, ranges, options.trials, metrics, options.sampler, not options.no_prune,
                      options.stop, options.storage)  # fmt: skip
    sys.stdout.write(tune_on_ray(plan, options.ray_address) if options.engine == "ray" else tune(plan))


def _cross_validate_arguments(parser: Parser) -> None:
    add_params_file(parser)
    parser.add_argument("--folds", type=int, default=5, metavar="N",
                        help="parts, each of which is the test split of one model (default: %(default)s)")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, metavar="N",
                        help="times that the images are divided anew (default: %(default)s)")  # fmt: skip


def _cross_validate(options: argparse.Namespace) -> None:
    from udc_model.config import load_params
    from udc_model.experiments.cross_validation import Procedure, cross_validate
    from udc_model.stages.procedure import procedure_inputs, train_and_evaluate

    params = load_params(options.params)
    procedure = Procedure(train_and_evaluate, procedure_inputs(params))
    sys.stdout.write(cross_validate(params, Workspace(), options.folds, options.repeats, procedure))


def _find_lr_arguments(parser: Parser) -> None:
    add_params_file(parser)
    parser.add_argument("--from", dest="lowest", type=float, default=1e-6, metavar="RATE", help="default: %(default)g")
    parser.add_argument("--to", dest="highest", type=float, default=1.0, metavar="RATE", help="default: %(default)g")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("sweeps"), metavar="DIR",
                        help="folder of the table and the plot (default: %(default)s)")  # fmt: skip


def _find_lr(options: argparse.Namespace) -> None:
    from udc_model.experiments.exploration import find_learning_rate

    params = _resolved(options.params).train
    text = find_learning_rate(params, Workspace(), options.out, options.lowest, options.highest, options.steps)
    sys.stdout.write(text)


def _params_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="parameter or section to explain (default: list all)")
    parser.add_argument("--write", action="store_true",
                        help="rewrite FILE: its values, and all descriptions as comments")  # fmt: skip
    add_params_file(parser)


def _params(options: argparse.Namespace) -> None:
    from udc_model.config import load_params
    from udc_model.config.reference import explain, params_yaml, summary_table
    from udc_model.files import write_atomically

    if options.write:
        write_atomically(options.params, params_yaml(load_params(options.params)))
    else:
        sys.stdout.write(explain(options.name) if options.name else summary_table())


COMMANDS = (
    Command("Build", "inspect", "show what is recognised in a folder of images", _inspect, _inspect_arguments),
    Command("Build", "prepare", "check, split and pack the images", _prepare, add_params_file),
    Command("Build", "train", "train on the prepared images", _train, _train_arguments),
    Command("Build", "evaluate", "score the model; write metrics, tables and plots", _evaluate, _evaluate_arguments),
    Command("Build", "run", "run the DVC pipeline with other parameters, as an experiment", _run, _run_arguments),
    Command("Build", "tune", "search for parameters; each trial is a DVC experiment", _tune, _tune_arguments),
    Command(
        "Build",
        "cross-validate",
        "train and test on all images in turn: the cost of the procedure, for small sets",
        _cross_validate,
        _cross_validate_arguments,
    ),
    Command("Build", "find-lr", "find a learning rate by the range test", _find_lr, _find_lr_arguments),
    Command("Build", "params", "list or explain the parameters", _params, _params_arguments),
)
