"""Names of the files that pass between stages, and how a stage writes them whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from udc_model.errors import UdcError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """The folder that holds a pipeline's outputs: the project's root under DVC, or any other."""

    root: Path = Path()

    @property
    def prepared(self) -> Path:
        """Packed splits; written by ``prepare``."""
        return self.root / "data" / "prepared"

    @property
    def resolved(self) -> Path:
        """The parameters that ``train`` and ``evaluate`` depend on; written by ``resolve``."""
        return self.root / "resolved"

    @property
    def model(self) -> Path:
        """The trained model, complete in itself; written by ``train``."""
        return self.root / "model"

    @property
    def training(self) -> Path:
        """Training curves and the record of the training; written by ``train``."""
        return self.root / "training"

    @property
    def evaluation(self) -> Path:
        """Predictions, tables and pictures; written by ``evaluate``."""
        return self.root / "evaluation"

    @property
    def metrics(self) -> Path:
        """The metrics that ``dvc metrics`` reads; written by ``evaluate``."""
        return self.root / "metrics.json"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a scratch folder beside ``target`` that takes its place when the block ends without an error.

    A reader finds either a finished folder or none; an error leaves what stood there before.
    """
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f".{target.name}.*.partial"):
            _remove(leftover)  # of a process that was killed
        scratch.mkdir()
        yield scratch
        _remove(target)
        scratch.rename(target)
    except OSError as error:
        raise UdcError(f"{target}: cannot be written: {error}") from error
    finally:
        _remove(scratch)


def write_atomically(target: Path, text: str) -> None:
    """Write a text file so that a reader finds all of it or none."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(target)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UdcError(f"{target}: cannot be written: {error}") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def exit_status(main: Callable[[], None]) -> int:
    """Run a program's main function; turn errors meant for people into one message on stderr and a status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("udc_model").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except UdcError as error:
        logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("error: interrupted")
        return 130
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    """Treat SIGTERM as Ctrl-C, so that clean-up runs and the MLflow run ends as KILLED."""
    raise KeyboardInterrupt
