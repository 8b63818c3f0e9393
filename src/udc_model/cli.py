"""The ``udc`` command. Each verb imports what it needs when it runs, so that ``udc --help`` is instant."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.errors import UdcError
from udc_model.stages.files import Workspace, exit_status

if TYPE_CHECKING:
    from PIL import Image

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
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    return parser


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
    from udc_model.classifier import DecisionRule, TrainedClassifier, check_same_classes
    from udc_model.data.decode import BadImageError, decode_rgb
    from udc_model.params import DataParams

    workspace = Workspace(options.root)
    classifier = TrainedClassifier.load(workspace.model)
    rule_path = workspace.evaluation / "decision.json"
    rule = DecisionRule.load(rule_path)
    check_same_classes(classifier, rule, str(rule_path))
    images: list[Image.Image] = []
    good: list[str] = []
    bad: list[str] = []
    rows: list[dict[str, Any]] = []

    def decide_batch() -> None:
        if not images:
            return
        decisions = rule.apply(classifier.logits(images))
        for path, k, cost, p in zip(
            good, decisions.decided, decisions.expected_cost, decisions.probabilities, strict=True
        ):
            probabilities = dict(zip(rule.classes, map(float, p), strict=True))
            rows.append({"path": path, "class": rule.classes[k], "expected_cost": float(cost),
                         "probabilities": probabilities})  # fmt: skip
        images.clear()
        good.clear()

    for path in _image_files(options.paths):
        try:
            images.append(decode_rgb(path, DataParams().max_pixels))
            good.append(str(path))
        except BadImageError as error:
            bad.append(f"{path}: {error}")
        if len(images) == _PREDICT_BATCH:
            decide_batch()
    decide_batch()
    _write_predictions(rows, "json" if options.json else "csv" if options.csv else "table")
    if bad:
        raise UdcError(f"{len(bad)} image(s) could not be used:\n  " + "\n  ".join(bad))


_PREDICT_BATCH = 64


def _image_files(paths: Sequence[Path]) -> list[Path]:
    """The given files, and all images below the given folders, in order."""
    from udc_model.data.decode import SUFFIXES

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
            if not found:
                raise UdcError(f"{path}: no images in this folder")
            files += found
        else:
            files.append(path)  # a file that is missing is reported beside those that are damaged
    return files


def _write_predictions(rows: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    if form == "csv":
        classes = list(rows[0]["probabilities"]) if rows else []
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "class", "expected_cost", *[f"p_{name}" for name in classes]])
        writer.writerows([r["path"], r["class"], r["expected_cost"], *r["probabilities"].values()] for r in rows)
        return
    width = max([4, *(len(row["path"]) for row in rows)])
    names = max([5, *(len(row["class"]) for row in rows)])
    sys.stdout.write(f"{'path':<{width}}  {'class':<{names}}  probability  expected cost\n")
    for row in rows:
        probability = row["probabilities"][row["class"]]
        sys.stdout.write(f"{row['path']:<{width}}  {row['class']:<{names}}  {probability:>11.4f}  "
                         f"{row['expected_cost']:>13.4f}\n")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
