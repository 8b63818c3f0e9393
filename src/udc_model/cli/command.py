"""What a command is, and arguments that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from udc_model.errors import UdcError

Parser = argparse.ArgumentParser
RUN = "id or name of an MLflow run, DVC experiment, git revision, registered model (models:/NAME/3), or folder"
RESULT = f"folder with evaluation/, predictions.csv, or {RUN}"


@dataclass(frozen=True)
class Command:
    """One command of ``udc``: its group in the help text, its arguments, and the function that runs it."""

    group: str
    name: str
    help: str
    run: Callable[[argparse.Namespace], None]
    add_arguments: Callable[[Parser], None] = lambda parser: None


def add_params_file(parser: Parser) -> None:
    """The option ``--params``."""
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE",
                        help="file of parameters (default: %(default)s)")  # fmt: skip


def add_root(parser: Parser, contents: str) -> None:
    """The option ``--root``: a folder with certain contents."""
    parser.add_argument("--root", type=Path, default=Path(), metavar="DIR",
                        help=f"folder with {contents} (default: this folder)")  # fmt: skip


def add_engine(parser: Parser) -> None:
    """Add the options that let tasks of Ray compute."""
    parser.add_argument("--engine", choices=("local", "ray"), default="local",
                        help="what computes: this process, or tasks of Ray (default: %(default)s)")  # fmt: skip
    parser.add_argument("--ray-address", metavar="ADDRESS",
                        help="a Ray cluster, as auto or ray://HOST:10001 (default: that in the environment variable "
                        "RAY_ADDRESS, else a new one here)")  # fmt: skip


def check_engine(options: argparse.Namespace) -> None:
    """:class:`UdcError` if an address is given without the engine that uses it."""
    if options.ray_address is not None and options.engine != "ray":
        raise UdcError("--ray-address: is of --engine ray only; add it")


def add_split(parser: Parser) -> None:
    """The option ``--split``."""
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="default: %(default)s")


def add_port(parser: Parser, default: int) -> None:
    """The option ``--port``."""
    parser.add_argument("--port", type=_port, default=default, metavar="N", help="0: any (default: %(default)s)")


def _port(text: str) -> int:
    """A TCP port; 0 is any free one."""
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 0 (any free port) to 65535")
    return port


def add_settings(parser: Parser, help_text: str, metavar: str = "NAME=VALUE", *, is_required: bool = False) -> None:
    """The option ``-S``, as in DVC; it can be given several times."""
    parser.add_argument("-S", "--set", "--set-param", dest="settings", action="append", default=[], metavar=metavar,
                        required=is_required, help=help_text)  # fmt: skip
