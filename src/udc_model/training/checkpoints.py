"""Checkpoints of a training run on disk: written atomically, verified when read, and used by equal inputs only."""

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
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from udc_model.errors import Interrupted, UdcError
from udc_model.records import Record

logger = logging.getLogger(__name__)

CHECKPOINTS = Path(".udc") / "checkpoints"  # below the repository's root, ignored by git and DVC; of all experiments
_FORMAT = "2"  # of the metadata; files of version 0.1.0 have none
_NUM_FILES = 2  # checkpoints in a folder
_BLOCK = 2**25  # bytes of which a digest is computed at a time
_MAX_HEADER = 2**24  # bytes of a header that is read without its tensors
_SUFFIX = ".safetensors"
_ENVIRONMENT = {
    "code": "code",
    "torch": "torch version",
    "timm": "timm version",
    "hardware": "hardware or number of threads",
}  # names of inputs that are no data


_OBJECT = TypeAdapter(dict[str, Any])


class _Metadata(Record):
    progress: str
    inputs: str
    run_key: str


class _Header(Record):
    metadata: _Metadata = Field(alias="__metadata__")


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    Parameters
    ----------
    tensors : on the CPU.
    progress : plain values of the state.
    inputs : everything that determines the result of the training run.
    run_key : key of the MLflow run, see `udc_model.tracking.run`.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    inputs: dict[str, Any]
    run_key: str

    @classmethod
    def parse(cls, contents: bytes) -> Checkpoint:
        """Parse the contents of a file; `SafetensorError` or `ValueError` if it is no checkpoint."""
        length = int.from_bytes(contents[:8], "little")  # of safetensors' header, which is JSON
        if length > _MAX_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        metadata = _Header.model_validate(json.loads(contents[8 : 8 + length])).metadata
        progress, inputs = (_OBJECT.validate_json(text) for text in (metadata.progress, metadata.inputs))
        return cls(load(contents), progress, inputs, metadata.run_key)


class CheckpointFolder:
    """The checkpoints of the training run that ``inputs`` determine; see `open_checkpoints`.

    A file's name has epoch, step and a digest of its contents. The folder holds the two newest. Those of further
    members of an ensemble are in folders within it.

    Parameters
    ----------
    minutes : time between two checkpoints within an epoch.

    Attributes
    ----------
    run_key : key of the MLflow run; a resumed training run has the same.
    last : the newest valid checkpoint; None if there is none.
    current : the folder of the member that is trained; this one for a single network.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], minutes: float) -> None:
        self.folder, self.inputs, self.minutes = folder, dict(inputs), minutes
        self.run_key = uuid.uuid4().hex
        self.last: Path | None = None
        self.current = self
        self._member = ""
        self._contents = self._newest()
        self._saved = time.monotonic()

    def of_member(self, number: int, members: int) -> CheckpointFolder:
        """The checkpoints of a member (from 0) of an ensemble; the first one's are in this folder.

        Raises
        ------
        UdcError
            The folder of the member cannot be created.
        """
        if number > 0:
            folder = self.folder / f"member-{number + 1}"
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise UdcError(f"{folder}: checkpoints cannot be written there: {error}") from error
            self.current = CheckpointFolder(folder, self.inputs, self.minutes)
            self.current.run_key = self.run_key
        if members > 1:
            self.current._member = f" of member {number + 1} of {members}"
        return self.current

    def take_contents(self) -> bytes | None:
        """The contents of the checkpoint to resume from (see `Checkpoint.parse`), then None, to free the memory."""
        contents, self._contents = self._contents, None
        return contents

    def position(self) -> str:
        """Where the newest checkpoint is in the training run, for messages."""
        if self.last is None:
            return f"before the first step{self._member}"
        epoch, step = (int(number) for number in self.last.stem.split("-")[:2])
        place = f"after epoch {epoch}{self._member}"
        if step > 0:
            place = f"in epoch {epoch + 1}{self._member}, after {step} steps"
        return f"{place} (checkpoint {self.last})"

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than ``minutes``."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, epoch: int, step: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint of the state before step ``step`` of ``epoch`` (both from 0); ``tensors`` are on the CPU.

        Raises
        ------
        UdcError
            It cannot be written. Earlier checkpoints are unchanged.
        """
        scratch = self.folder / f"writing{_SUFFIX}.partial"
        metadata = {
            "format": _FORMAT,
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
            for path in newest_first(self.folder)[_NUM_FILES:]:
                path.unlink()
        except (OSError, SafetensorError) as error:
            scratch.unlink(missing_ok=True)
            raise UdcError(
                f"{self.folder}: the checkpoint of epoch {epoch + 1}, step {step}, cannot be written: {error}; "
                "earlier checkpoints are unchanged: free disk space and start the training run again to resume"
            ) from error
        self._saved = time.monotonic()

    def keep_last(self) -> None:
        """Delete all checkpoints but the newest."""
        for path in newest_first(self.folder)[1:]:
            path.unlink()

    def remove(self) -> None:
        """Delete all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest(self) -> bytes | None:
        """The contents of the newest valid checkpoint; deletes damaged ones with a warning.

        Raises
        ------
        UdcError
            The system could not read one, which says nothing about its contents, or it is of another training run.
        """
        for path in newest_first(self.folder):
            try:
                return self._read(path)
            except FileNotFoundError:  # deleted meanwhile
                continue
            except OSError as error:
                raise UdcError(
                    f"{path}: the checkpoint cannot be read: {error.strerror or error}; no checkpoint is deleted: fix "
                    "the cause and start the training run again, or delete this file to resume from the one before it"
                ) from error
            except (SafetensorError, ValueError, RecursionError) as error:
                reason = " ".join(str(error).split())[:300]
                logger.warning("checkpoint %s is damaged (%s); using the one before it", path, reason)
                path.unlink(missing_ok=True)
        return None

    def _read(self, path: Path) -> bytes:
        contents = verified_contents(path)
        checkpoint = Checkpoint.parse(contents)
        if difference := first_difference(checkpoint.inputs, json.loads(json.dumps(self.inputs))):
            raise UdcError(f"{path}: belongs to another training run: {difference}; delete {self.folder}")
        self.run_key, self.last = checkpoint.run_key, path
        return contents


def checkpoint_folder(root: Path, inputs: Mapping[str, Any]) -> Path:
    """The folder below ``root`` with the checkpoints of the training run that ``inputs`` (JSON values) determine."""
    return root / CHECKPOINTS / hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def open_checkpoints(root: Path, inputs: Mapping[str, Any], minutes: float) -> Iterator[CheckpointFolder | None]:
    """The checkpoints below ``root`` of the training run that ``inputs`` (JSON values) determine.

    They are deleted when the block ends without an error. If another process has them open, the context is None, with
    a warning. Another warning names checkpoints that cannot be used only because of the code or the machine.
    """
    folder = checkpoint_folder(root, inputs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process runs the same training run; this one writes no checkpoints")
        yield None
        return
    except OSError as error:
        raise UdcError(f"{folder}: checkpoints cannot be written there: {error}") from error
    checkpoints = CheckpointFolder(folder, inputs, minutes)
    try:
        if checkpoints.last is None:
            _warn_of_unusable(root / CHECKPOINTS, json.loads(json.dumps(inputs)))
        yield checkpoints
        checkpoints.remove()
    except Interrupted:  # its message has the epoch
        raise
    except BaseException:
        if any(folder.rglob(f"*{_SUFFIX}")):
            position = checkpoints.current.position()
            logger.warning("the state %s is stored; the same command resumes from it", position)
        raise
    finally:
        if not any(folder.rglob(f"*{_SUFFIX}")):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink(missing_ok=True)
        lock.release()


def verified_contents(path: Path) -> bytes:
    """The contents of a checkpoint; `ValueError` if they do not match the digest in its name, `OSError` without it."""
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if _digest(mapped) != path.stem.rpartition("-")[2]:  # before anything is allocated
            raise ValueError("its contents do not match the digest in its name")
        return mapped[:]


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder."""
    return sorted(folder.glob(f"*{_SUFFIX}"), reverse=True)


def _warn_of_unusable(root: Path, inputs: dict[str, Any]) -> None:
    """Log one line for each folder whose checkpoints have the same ``inputs`` but other code, torch or hardware."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        for path in newest_first(folder)[:1]:
            try:
                metadata = read_header(path)
                other = json.loads(metadata["inputs"])
                differing = [name for name in inputs.keys() | other.keys() if inputs.get(name) != other.get(name)]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # damaged
            if "format" not in metadata:
                logger.warning("checkpoints in %s are of an older version, which this one cannot resume; delete the "
                               "folder", folder)  # fmt: skip
            elif differing and _ENVIRONMENT.keys() >= set(differing):
                names = " and ".join(text for name, text in _ENVIRONMENT.items() if name in differing)
                logger.warning("checkpoints in %s are of the same parameters and data but of other %s; "
                               "this training run starts from the beginning", folder, names)  # fmt: skip


def read_header(path: Path) -> dict[str, str]:
    """The metadata of a checkpoint, from safetensors' header alone; `ValueError` or `KeyError` if it is damaged."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"a header of {length} bytes")
        return dict(json.loads(handle.read(length))["__metadata__"])


def _digest(contents: bytes | mmap.mmap) -> str:
    """SHA-256 of the SHA-256 of each block; the blocks are hashed in parallel, because the training run waits."""
    with memoryview(contents) as view, ThreadPoolExecutor() as executor:

        def of_block(start: int) -> bytes:
            with view[start : start + _BLOCK] as block:
                return hashlib.sha256(block).digest()

        return hashlib.sha256(b"".join(executor.map(of_block, range(0, len(view), _BLOCK)))).hexdigest()


def first_difference(there: Any, here: Any, name: str = "") -> str:
    """The first value that differs between two nested mappings, with both values; empty if they are equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            inner = first_difference(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
            if inner:
                return inner
        return ""
    return "" if there == here else f"{name} is {there!r} there and {here!r} here"


def _sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename survives a power failure; not on Windows, which cannot open folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
