"""Checkpoints of a training on disk: whole or not there, checked when read, and of one training alone."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from udc_model.errors import PrunedError, UdcError

logger = logging.getLogger(__name__)

CHECKPOINTS = Path(".udc") / "checkpoints"  # under the repository's root: git-ignored, outside DVC, of all experiments
_KEPT = 2
_BLOCK = 2**25  # bytes that are summed up at a time
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors, plain values, what determines the training, and the key of its run."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    inputs: dict[str, Any]
    run_key: str

    @classmethod
    def parse(cls, contents: bytes) -> Checkpoint:
        """Read the contents of a checkpoint file; `SafetensorError`, `ValueError` or `KeyError` if it is none."""
        length = int.from_bytes(contents[:8], "little")  # of safetensors' header, which is JSON
        metadata = json.loads(contents[8 : 8 + length])["__metadata__"]
        progress, inputs = (json.loads(metadata[name]) for name in ("progress", "inputs"))
        return cls(load(contents), progress, inputs, metadata["run_key"])


class CheckpointFolder:
    """The checkpoints of one training, which ``inputs`` determine; see `open_checkpoints`.

    A file is named by epoch, step and a digest of its contents; the last two are kept.

    Parameters
    ----------
    minutes : between two checkpoints within an epoch.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], minutes: float) -> None:
        self.folder, self.inputs, self.minutes = folder, dict(inputs), minutes
        self.run_key = uuid.uuid4().hex
        self.last: Path | None = None
        self._contents = self._newest()
        self._saved = time.monotonic()

    def take(self) -> bytes | None:
        """The contents of the checkpoint that was found, once, for they are large; see `Checkpoint.parse`."""
        contents, self._contents = self._contents, None
        return contents

    def due(self) -> bool:
        """Whether the last checkpoint is older than ``minutes``."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, epoch: int, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint, before the first step ``step`` of ``epoch`` that it does not know (both from 0).

        ``tensors`` are on the CPU.

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
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, metadata)
            with scratch.open("r+b") as handle, ThreadPoolExecutor(1) as executor:
                synced = executor.submit(os.fsync, handle.fileno())
                with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as contents:
                    digest = _digest(contents)
                synced.result()
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

    def _newest(self) -> bytes | None:
        """The contents of the newest checkpoint that is whole; a warning names those that are not."""
        for path in self._files():
            try:
                return self._read(path)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                logger.warning("the checkpoint %s is damaged (%s); going on from the one before it", path, error)
                path.unlink(missing_ok=True)
        return None

    def _read(self, path: Path) -> bytes:
        contents = path.read_bytes()
        if _digest(contents) != path.stem.rpartition("-")[2]:
            raise ValueError("its contents are not those that were written")
        found = Checkpoint.parse(contents)
        if differing := _differing(found.inputs, json.loads(json.dumps(self.inputs))):
            raise UdcError(f"{path}: is of another training, for {differing}; delete {self.folder}")
        self.run_key, self.last = found.run_key, path
        return contents


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


def _digest(contents: bytes | mmap.mmap) -> str:
    """SHA-256 of the SHA-256 of each block, for blocks can be summed side by side while the training waits."""
    with memoryview(contents) as view, ThreadPoolExecutor() as executor:

        def of_block(start: int) -> bytes:
            with view[start : start + _BLOCK] as block:
                return hashlib.sha256(block).digest()

        return hashlib.sha256(b"".join(executor.map(of_block, range(0, len(view), _BLOCK)))).hexdigest()


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
