"""Checkpoints of a training on disk: whole or not there, checked when read, and of one training alone."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from udc_model.errors import PrunedError, UdcError

logger = logging.getLogger(__name__)

CHECKPOINTS = Path(".udc") / "checkpoints"  # under the repository's root: git-ignored, outside DVC, of all experiments
_KEPT = 2
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint as it was found: its tensors, its plain values, and the key of the run that it belongs to."""

    path: Path
    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    run_key: str


class CheckpointFolder:
    """The checkpoints of one training, which ``inputs`` determine; see `open_checkpoints`.

    A file is named by epoch, step and the SHA-256 of its contents; the last two are kept.

    Parameters
    ----------
    minutes : between two checkpoints within an epoch.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], minutes: float) -> None:
        self.folder, self.inputs, self.minutes = folder, dict(inputs), minutes
        self.found = self._newest()
        self.run_key = self.found.run_key if self.found else uuid.uuid4().hex
        self.last = self.found.path if self.found else None
        self._saved = time.monotonic()

    def take(self) -> Checkpoint | None:
        """The checkpoint that was found, once: its tensors are large."""
        found, self.found = self.found, None
        return found

    def due(self) -> bool:
        """Whether the last checkpoint is older than ``minutes``."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, epoch: int, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint, before the first step ``step`` of ``epoch`` that it does not know (both from 0).

        Raises
        ------
        UdcError
            It cannot be written; earlier ones are as they were.
        """
        scratch = self.folder / f"writing{_SUFFIX}.partial"
        metadata = {
            "progress": json.dumps(progress),
            "inputs": json.dumps(self.inputs, sort_keys=True),
            "run_key": self.run_key,
        }
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch, metadata)
            with scratch.open("r+b") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                os.fsync(handle.fileno())
            self.last = scratch.rename(self.folder / f"{epoch:06d}-{step:09d}-{digest}{_SUFFIX}")
            _sync_folder(self.folder)
            for path in self._files()[_KEPT:]:
                path.unlink()
        except (OSError, SafetensorError) as error:
            scratch.unlink(missing_ok=True)
            raise UdcError(
                f"{self.folder}: the checkpoint of epoch {epoch + 1}, step {step}, cannot be written: {error}. "
                "Earlier ones are kept; make room and start again, to go on from there"
            ) from error
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete all of it, for it is not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"), reverse=True)

    def _newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; a warning names those that are not."""
        for path in self._files():
            try:
                return self._read(path)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                logger.warning("the checkpoint %s is damaged (%s); going on from the one before it", path, error)
                path.unlink(missing_ok=True)
        return None

    def _read(self, path: Path) -> Checkpoint:
        with path.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != path.stem.rpartition("-")[2]:
                raise ValueError("its contents are not those that were written")
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata()
        if differing := _differing(json.loads(metadata["inputs"]), json.loads(json.dumps(self.inputs))):
            raise UdcError(f"{path}: is of another training, for {differing}; delete {self.folder}")
        return Checkpoint(path, load_file(path), json.loads(metadata["progress"]), metadata["run_key"])


@contextmanager
def open_checkpoints(root: Path, inputs: Mapping[str, Any], minutes: float) -> Iterator[CheckpointFolder | None]:
    """The checkpoints below ``root`` of the training that ``inputs`` (JSON values) determine.

    They are deleted when the block ends well, or in a `PrunedError`; any other end keeps them. None, with a line in
    the log, if another process is at the same training.
    """
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / CHECKPOINTS / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is at this very training; this one keeps no checkpoints")
        yield None
        return
    except OSError as error:
        raise UdcError(f"{folder}: checkpoints cannot be kept there: {error}") from error
    try:
        checkpoints = CheckpointFolder(folder, inputs, minutes)
        try:
            yield checkpoints
        except PrunedError:
            checkpoints.remove()
            raise
        checkpoints.remove()
    finally:
        if not any(folder.glob(f"*{_SUFFIX}")):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


def _differing(there: Any, here: Any, name: str = "") -> str:
    """The first value that differs between two nested mappings, with both values; empty if none does."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            inner = _differing(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
            if inner:
                return inner
        return ""
    return "" if there == here else f"{name} is {here!r} here and {there!r} there"


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; where folders cannot be opened (Windows), do nothing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
