"""The commands that bring data sets and published weights into the project."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from udc_model.cli.command import Command, Parser


def _fetch_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME",
                        help="torchvision:NAME, huggingface:NAME[@REVISION], or an address (s3://, gs://, https://, "
                        "remote://)")  # fmt: skip
    parser.add_argument("--to", type=Path, metavar="PATH", help="what to create (default: data/raw/NAME)")
    parser.add_argument("--config", metavar="NAME", help="configuration (subset) of a data set of Hugging Face")
    parser.add_argument("--image", metavar="COLUMN", help="its column of images, if it has several")
    parser.add_argument("--label", metavar="COLUMN", help="its column of classes, if it has several")


def _fetch(options: argparse.Namespace) -> None:
    from udc_model.fetch.project import Options, fetch

    fetched = fetch(options.name, options.to, Options(options.config, options.image, options.label))
    path = fetched.path.as_posix()
    sys.stdout.write(
        f"{path}: {fetched.contents}\n\nIt is tracked by DVC. To use it:\n"
        f"  git add {path}.dvc {fetched.path.parent.as_posix()}/.gitignore\n"
        f"  udc run -S data.source=auto -S data.path={path} -S costs.preset=uniform\n"
    )


def _weights_arguments(parser: Parser) -> None:
    parser.add_argument("action", choices=("fetch",), help="download weights, and check them")
    parser.add_argument("name", metavar="NAME", help="microsoft/resnet-18 or so, a preset, or a network of timm")
    parser.add_argument("--to", type=Path, required=True, metavar="PATH", help="file *.safetensors or folder to write")


def _weights(options: argparse.Namespace) -> None:
    from udc_model.models.fetched_weights import fetch_weights

    weights, files = fetch_weights(options.name, options.to)
    lines = [weights.to_text(), *map(str, files)]
    sys.stdout.write("\n".join(lines) + f"\n\nTo use them:\n  udc run -S model.weights={options.to.as_posix()}\n")


COMMANDS = (
    Command("Build", "fetch", "bring a data set into the project, tracked by DVC", _fetch, _fetch_arguments),
    Command("Build", "weights", "download published weights to a file or folder", _weights, _weights_arguments),
)
