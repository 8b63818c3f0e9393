"""Checkpoints on disk: complete or absent, verified when read, and each for one training run only."""

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

from udc_model.errors import UdcError

logger = logging.getLogger(__name__)

CHECKPOINTS = Path(".udc") / "checkpoints"  # at the repository's root, shared by all experiments; outside git and DVC
_KEPT = 2
_BLOCK = 2**25  # bytes hashed at a time
_SUFFIX = ".safetensors"
_LARGEST_HEADER = 2**27  # bytes
_IDENTITY = ("params", "data", "weights")  # of the inputs: what a person asked for, not the code and hardware


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint.

    Parameters
    ----------
    tensors : weights, optimiser state and averages by name.
    progress : plain values.
    inputs : what determines the training run, see `open_checkpoints`.
    run_key : key of the MLflow run that a resumed training run continues.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    inputs: dict[str, Any]
    run_key: str

    @classmethod
    def parse(cls, contents: bytes) -> Checkpoint:
        """Parse a checkpoint file; `SafetensorError`, `ValueError` or `KeyError` if it is damaged."""
        length = int.from_bytes(contents[:8], "little")  # of the safetensors header, which is JSON
        metadata = json.loads(contents[8 : 8 + length])["__metadata__"]
        progress, inputs = (json.loads(metadata[name]) for name in ("progress", "inputs"))
        return cls(load(contents), progress, inputs, metadata["run_key"])


class CheckpointFolder:
    """The checkpoints of one training run; see `open_checkpoints`.

    A file's name has the epoch, the step and a digest of its contents. The last two files stay on disk.

    Parameters
    ----------
    folder : the folder of the files.
    inputs : what determines the training run.
    minutes : between two checkpoints within an epoch.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], minutes: float) -> None:
        self.folder, self.inputs, self.minutes = folder, dict(inputs), minutes
        self.run_key = uuid.uuid4().hex
        self.last: Path | None = None
        self._contents = self._newest()
        self._saved = time.monotonic()

    def take(self) -> bytes | None:
        """Contents of the newest checkpoint, once, because they are large; None if there is none."""
        contents, self._contents = self._contents, None
        return contents

    def due(self) -> bool:
        """Whether the last checkpoint is older than ``minutes``."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, epoch: int, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint.

        Parameters
        ----------
        epoch, step : the next step, both from 0.
        tensors : on the CPU.
        progress : values that JSON can store.

        Raises
        ------
        UdcError
            The checkpoint cannot be written; earlier ones are unchanged.
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
                "Earlier ones are unchanged; make room and start again to resume from the last one"
            ) from error
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete all checkpoints of the training run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        """The files, newest first."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"), reverse=True)

    def _newest(self) -> bytes | None:
        """Contents of the newest complete checkpoint; a warning names damaged ones."""
        for path in self._files():
            try:
                return self._read(path)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                logger.warning("the checkpoint %s is damaged (%s); trying the one before it", path, error)
                path.unlink(missing_ok=True)
        return None

    def _read(self, path: Path) -> bytes:
        contents = path.read_bytes()
        if _digest(contents) != path.stem.rpartition("-")[2]:
            raise ValueError("its contents changed after it was written")
        checkpoint = Checkpoint.parse(contents)
        if difference := _first_difference(checkpoint.inputs, json.loads(json.dumps(self.inputs))):
            raise UdcError(f"{path}: is of another training run: {difference}; delete {self.folder}")
        self.run_key, self.last = checkpoint.run_key, path
        return contents


@contextmanager
def open_checkpoints(root: Path, inputs: Mapping[str, Any], minutes: float) -> Iterator[CheckpointFolder | None]:
    """Open the checkpoints of one training run; they are deleted if the block ends without an error.

    Parameters
    ----------
    root : of the repository.
    inputs : JSON values on which every bit of the training run depends: a checkpoint of other inputs is not used.
    minutes : between two checkpoints within an epoch.

    Yields
    ------
    The checkpoints, or None with a warning if another process is running the same training run.

    Raises
    ------
    UdcError
        The folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / CHECKPOINTS / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is running the same training run; this one writes no checkpoints")
        yield None
        return
    except OSError as error:
        raise UdcError(f"{folder}: checkpoints cannot be written there: {error}") from error
    try:
        checkpoints = CheckpointFolder(folder, inputs, minutes)
        if checkpoints.last is None and (difference := _unusable_checkpoints(root / CHECKPOINTS, inputs)):
            logger.warning("%s; this training run starts from the beginning", difference)
        yield checkpoints
        checkpoints.remove()
    finally:
        if not any(folder.glob(f"*{_SUFFIX}")):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


def _digest(contents: bytes | mmap.mmap) -> str:
    """SHA-256 of the blocks' SHA-256; the blocks are hashed in parallel."""
    with memoryview(contents) as view, ThreadPoolExecutor() as executor:

        def of_block(start: int) -> bytes:
            with view[start : start + _BLOCK] as block:
                return hashlib.sha256(block).digest()

        return hashlib.sha256(b"".join(executor.map(of_block, range(0, len(view), _BLOCK)))).hexdigest()


def _first_difference(stored: Any, current: Any, name: str = "") -> str:
    """The first value that differs between two nested mappings, with both values; empty if none does."""
    if isinstance(stored, dict) and isinstance(current, dict):
        for key in sorted(stored.keys() | current.keys()):
            difference = _first_difference(stored.get(key), current.get(key), f"{name}.{key}".lstrip("."))
            if difference:
                return difference
        return ""
    return "" if stored == current else f"{name} is {current!r} now and was {stored!r}"


def _unusable_checkpoints(folder: Path, inputs: Mapping[str, Any]) -> str:
    """A sentence about checkpoints of the same parameters and data that other code or hardware wrote; empty if none."""
    current = json.loads(json.dumps(inputs))
    for path in sorted(folder.glob(f"*/*{_SUFFIX}")):
        stored = _stored_inputs(path)
        if not stored or not all(_agree(stored.get(name), current.get(name)) for name in _IDENTITY):
            continue
        changed = [name for name in current if name not in _IDENTITY and stored.get(name) != current[name]]
        if changed:
            return f"the checkpoints in {path.parent} cannot be used, because {', '.join(changed)} changed"
    return ""


def _agree(stored: Any, current: Any) -> bool:
    """Whether two nested mappings have the same values; keys that only one version has are ignored."""
    if isinstance(stored, dict) and isinstance(current, dict):
        return all(_agree(stored[key], current[key]) for key in stored.keys() & current.keys())
    return bool(stored == current)


def _stored_inputs(path: Path) -> dict[str, Any]:
    """The inputs in a checkpoint's header; empty if it is damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                return {}
            return dict(json.loads(json.loads(file.read(length))["__metadata__"]["inputs"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; on Windows, where folders cannot be opened, this does nothing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
