"""Paths of the files that pass between stages, and reading and atomic writing."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout

from udc_model.errors import UdcError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_JSON = 64 * 2**20  # bytes of a JSON file; a larger one is not read
_MAX_READS = 100  # attempts to read folders that are being replaced
_GRACE = 2.0  # seconds in which the children of a killed writer, which share its lock, end
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux: paths are relative to the current folder; both names change places


@dataclass(frozen=True)
class Workspace:
    """Paths of a pipeline's outputs below one folder: the project's root under DVC, or any other folder."""

    root: Path = Path()

    @property
    def prepared(self) -> Path:
        """Packed splits; written by ``prepare``."""
        return self.root / "data" / "prepared"

    @property
    def corrections(self) -> Path:
        """Corrections of labels, groups and images, which people write; read by ``prepare``."""
        return self.root / "data" / "corrections.csv"

    @property
    def resolved(self) -> Path:
        """The parameters that ``train`` and ``evaluate`` depend on; written by ``resolve``."""
        return self.root / "resolved"

    @property
    def model(self) -> Path:
        """Self-contained folder of the trained model; written by ``train``."""
        return self.root / "model"

    @property
    def training(self) -> Path:
        """Training curves and the record of the training run; written by ``train``."""
        return self.root / "training"

    @property
    def evaluation(self) -> Path:
        """Predictions, tables and plots; written by ``evaluate``."""
        return self.root / "evaluation"

    @property
    def metrics(self) -> Path:
        """Metrics file that ``dvc metrics`` reads; written by ``evaluate``."""
        return self.root / "metrics.json"

    @property
    def outputs(self) -> dict[Path, Path]:
        """What stages replace or delete, and beside each the file that shows that a stage has written it."""
        record = self.training / "record.json"
        return {
            self.prepared: self.prepared / "checksums.json",
            self.resolved: self.resolved / "train.yaml",
            self.model: self.model / "checksums.json",
            self.training: record,
            self.evaluation: self.evaluation / "policy.json",
            self.metrics: record,
        }


def check_outputs(workspace: Workspace) -> None:
    """Check that the stages replace only what stages have written.

    Raises
    ------
    UdcError
        An output has contents of another origin.
    """
    for path, marker in workspace.outputs.items():
        if has_contents(path) and not marker.is_file():
            raise UdcError(f"{path}: exists and was not written by a stage, which would replace it; move it to another "
                           "place, or choose another folder for the results")  # fmt: skip


def has_contents(path: Path) -> bool:
    """Whether a path exists and is not an empty folder; a link counts as contents."""
    is_empty = path.is_dir() and not any(path.iterdir())
    return path.is_symlink() or (path.exists() and not is_empty)


@contextmanager
def only_writer(workspace: Workspace) -> Iterator[None]:
    """Let no other process write outputs of the workspace until the block ends.

    The system releases the lock when the process ends, however it ends. Commands that only read do not take it.

    Raises
    ------
    UdcError
        Another process is writing; the message has its command and process id.
    """
    folder = _holder_file(workspace).parent
    lock = FileLock(_lock_file(workspace))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if running_writer(workspace):
                raise
            lock.acquire(timeout=_GRACE)
    except Timeout:
        # without a holder: another process has the lock and has not written the file yet
        _, holder = _read_holder(workspace) or (0, "another process")
        raise UdcError(
            f"{holder} is writing to {workspace.root.resolve()}; wait until it has ended, or stop it"
        ) from None
    except OSError as error:
        raise UdcError(f"{folder}: cannot be written: {error}") from error
    try:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        write_atomically(_holder_file(workspace), json.dumps({"pid": os.getpid(), "command": command}) + "\n")
        yield
    finally:
        lock.release()


def running_writer(workspace: Workspace) -> str | None:
    """Command and process id of the process that is writing outputs of the workspace; None if there is none.

    The process id alone may be that of another process by now.
    """
    pid, holder = _read_holder(workspace) or (None, None)
    return holder if pid is not None and _is_running(pid) and _is_locked(_lock_file(workspace)) else None


def _holder_file(workspace: Workspace) -> Path:
    return workspace.root / ".udc" / "writer.json"


def _lock_file(workspace: Workspace) -> Path:
    return workspace.root / ".udc" / "writer.lock"


def _read_holder(workspace: Workspace) -> tuple[int, str] | None:
    """Process id and description of the process that took the lock of a workspace last; None if it is not known."""
    try:
        content = json.loads(_holder_file(workspace).read_text(encoding="utf-8"))
        pid = int(content["pid"])
        return pid, f"{content['command']} (process {pid})"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _is_running(pid: int) -> bool:
    """Whether a process of this machine has this id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a scratch folder that replaces ``target`` when the block ends without an error.

    The folder ``target`` is complete or absent at any time. After an error it is what it was before. A folder that has
    been replaced and cannot be deleted is reported; the next writer tries again.

    Raises
    ------
    UdcError
        The target is a file, or the folder cannot be written. Errors of other files that the block raises are not
        changed.
    """
    scratch = _scratch_of(target)
    with ExitStack() as stack:
        with _named(target):
            if target.exists() and not target.is_dir():
                raise UdcError(f"{target}: is a file, not a folder; name another folder, or remove the file first")
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(target)
            stack.callback(try_to_remove, scratch)
            scratch.mkdir()
            stack.enter_context(_locked(scratch))
        try:
            yield scratch
        except OSError as error:
            if _is_below(error, scratch):
                raise UdcError(f"{target}: cannot be written: {error.strerror}") from error
            if error.filename is None and _is_lack_of_space(error):
                raise UdcError(f"{target}: cannot be completed: no space left on device; free disk space and run the "
                               "command again") from error  # fmt: skip
            raise
        with _named(target):
            _replace_folder(scratch, target)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Turn an error of the system into a :class:`UdcError` that names the file or folder that is written."""
    try:
        yield
    except OSError as error:
        raise UdcError(f"{target}: cannot be written: {error}") from error


def _is_below(error: OSError, folder: Path) -> bool:
    """Whether an error names a file in a folder."""
    name = error.filename
    return isinstance(name, str | bytes) and Path(os.fsdecode(name)).is_relative_to(folder)


def _is_lack_of_space(error: OSError) -> bool:
    # numpy reports an incomplete write with a text of its own, without the system's reason
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or bool(re.search(r"\d requested and \d+ written", str(error)))


def _replace_folder(source: Path, target: Path) -> None:
    """Rename a folder to ``target``. On Linux an existing target gets the name of ``source`` in the same instant."""
    if target.is_symlink() or target.exists():
        exchange = getattr(ctypes.CDLL(None), "renameat2", None)
        if exchange is not None and not exchange(_AT_FDCWD, bytes(source), _AT_FDCWD, bytes(target), _RENAME_EXCHANGE):
            return
        _replace_by_renaming(source, target)
        return
    source.rename(target)


def _replace_by_renaming(source: Path, target: Path) -> None:
    """Replace a folder on other systems, and on file systems without the exchange: it is absent for a moment."""
    replaced = target.with_name(f".{target.name}.replaced.{os.getpid()}.partial")
    target.rename(replaced)
    try:
        source.rename(target)
    except OSError:
        replaced.rename(target)
        raise
    try_to_remove(replaced)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Mark a file or folder as in use: its lock is released by the system when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _scratch_of(target: Path) -> Path:
    """Where this process writes a file or folder before it replaces ``target``."""
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def _remove_abandoned(target: Path) -> None:
    """Remove what killed writers of ``target`` have left beside it."""
    for leftover in target.parent.glob(f".{target.name}.*.partial"):
        if is_abandoned(leftover):
            try_to_remove(leftover)


def is_abandoned(scratch: Path) -> bool:
    """Whether the writer of a scratch file or folder was killed: the process in its name does not run on this machine,
    and no process of another machine is in a `_locked` block of it."""
    try:
        pid = int(scratch.name.split(".")[-2])
    except ValueError:  # of another program
        return False
    return (pid == os.getpid() or not _is_running(pid)) and not _is_locked(scratch)


def _is_locked(path: Path) -> bool:
    """Whether a process is in a `_locked` block of a file or folder, or has another exclusive lock of it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two processes may ask at once
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_json(path: Path, advice: str, max_bytes: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file; :class:`UdcError` that ends with ``advice`` if it is missing, damaged or too large.

    See `udc_model.records` for JSON whose values are checked too.
    """
    return parse_json(read_bytes(path, advice, max_bytes), str(path), advice)


def parse_json(contents: bytes, origin: str, advice: str) -> dict[str, Any]:
    """The JSON object in the contents of a file; ``origin`` names it in messages."""
    try:
        value = json.loads(contents.decode("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("must contain a JSON object")
    except (ValueError, RecursionError) as error:
        raise UdcError(f"{origin}: cannot be read ({error}); {advice}") from None
    return value


def read_bytes(path: Path, advice: str, max_bytes: int) -> bytes:
    """The contents of a regular file of at most ``max_bytes``; :class:`UdcError` otherwise, without reading it."""
    with open_regular(path, advice) as (handle, size):
        if size > max_bytes:
            raise UdcError(f"{path}: has {size:,} bytes, more than the {max_bytes:,} that are read; {advice}")
        return handle.read(max_bytes)


@contextmanager
def open_regular(path: Path, advice: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file that is open for reading, and its size in bytes.

    Raises
    ------
    UdcError
        The file is missing, cannot be read, or is no regular file (a folder, a device, or a named pipe, which would
        block until somebody writes to it); the message ends with ``advice``.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UdcError(f"{path}: is not a regular file; {advice}")
            yield handle, status.st_size
    except FileNotFoundError:
        raise UdcError(f"{path}: no such file; {advice}") from None
    except IsADirectoryError:
        raise UdcError(f"{path}: is not a regular file; {advice}") from None
    except OSError as error:
        raise UdcError(f"{path}: cannot be read ({error.strerror or error}); {advice}") from None


def read_consistently(folders: Sequence[Path], read: Callable[[], Result]) -> Result:
    """The result of ``read``, which reads files of folders that `atomic_folder` may replace at any moment.

    It is repeated if a folder was replaced meanwhile, so all files are of the same version of each folder.

    Raises
    ------
    UdcError
        ``read`` raises it. If a folder is missing while a process writes, the message names the process.
    """
    for _ in range(_MAX_READS - 1):
        with _held(folders) as before:
            try:
                result = read()
            except UdcError as error:
                if before != [_identity(folder) for folder in folders]:
                    continue
                missing = next((folder for folder, found in zip(folders, before, strict=True) if found is None), None)
                if missing is not None and (writer := running_writer(Workspace(missing.parent))):
                    raise UdcError(f"{missing}: is missing while {writer} runs; try again when it has ended") from error
                raise
            if before == [_identity(folder) for folder in folders]:
                return result
    return read()


@contextmanager
def _held(folders: Sequence[Path]) -> Iterator[list[tuple[int, int, int] | None]]:
    """Yield the identities of folders, which stay open: no other folder gets the inode of one that is deleted."""
    with ExitStack() as stack:
        identities = []
        for folder in folders:
            descriptor = None
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
            identities.append(None if descriptor is None else _identity(descriptor))
        yield identities


def _identity(folder: Path | int) -> tuple[int, int, int] | None:
    """What differs between a folder, or an open one, and one that replaced it; None if there is none."""
    try:
        status = os.stat(folder)  # noqa: PTH116 (Path has none for a descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def remove_oldest(folder: Path, pattern: str, count: int) -> None:
    """Delete the files in ``folder`` that match ``pattern``, except the ``count`` modified last."""
    for path in sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)[:-count]:
        path.unlink(missing_ok=True)


def write_atomically(target: Path, text: str) -> None:
    """Write a UTF-8 text file that is complete or absent at any time.

    Raises
    ------
    UdcError
        The file cannot be written.
    """
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as scratch:
            scratch.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield the path of a scratch file that replaces ``target``, in an existing folder, when the block ends without an
    error.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    scratch = _scratch_of(target)
    _remove_abandoned(target)
    try:
        yield scratch
        scratch.replace(target)
    except BaseException:
        with suppress(OSError):
            scratch.unlink()
        raise


def check_target(path: Path, suffix: str) -> None:
    """Check that a file can be written, before something expensive computes its contents.

    Raises
    ------
    UdcError
        The path is a folder or in no folder, its suffix is another one, or the folder cannot be written.
    """
    if path.is_dir():
        raise UdcError(f"{path}: is a folder; name a file, as {path / f'model{suffix}'}")
    if path.suffix.lower() != suffix:
        raise UdcError(f"{path}: the name of the file must end in {suffix}, as {path.with_suffix(suffix)}")
    _check_writable(path)


def _check_writable(path: Path) -> None:
    """Check that a file or folder can be created in the folder of a path."""
    if not path.parent.is_dir():
        kind = "is a file, not a folder" if path.parent.exists() else "does not exist; create it first"
        raise UdcError(f"{path}: the folder {path.parent} {kind}")
    scratch = _scratch_of(path)
    try:
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        raise UdcError(f"{path}: cannot be written: {error.strerror}") from None


def check_new_folder(path: Path) -> None:
    """Check that a folder can be written where nothing is lost, before something expensive computes its contents.

    Raises
    ------
    UdcError
        The path is a file or a folder with contents, in no folder, or cannot be written.
    """
    if has_contents(path):
        raise UdcError(f"{path}: exists and is not an empty folder; name a new folder, or remove it first")
    _check_writable(path)


def make_folder(path: Path) -> Path:
    """Create a folder, and those above it, unless it exists; :class:`UdcError` if it cannot be created."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UdcError(f"{path}: is no folder and cannot become one: {error.strerror}") from None
    return path


def json_text(value: Any, indent: str = "") -> str:
    """JSON with a line for each field; a list of plain values, such as a row of a matrix, is on one line."""
    inner = f"{indent}  "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(name, ensure_ascii=False)}: {json_text(item, inner)}"
                 for name, item in value.items()]  # fmt: skip
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and not {dict, list}.isdisjoint(map(type, value)):
        return "[\n" + ",\n".join(f"{inner}{json_text(item, inner)}" for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def size_text(size: float) -> str:
    """A number of bytes with its unit, for a person."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def try_to_remove(path: Path) -> None:
    """Remove a file or folder, also a write-protected folder; log a warning if that fails."""
    try:
        try:
            _remove(path)
        except PermissionError:
            for folder, _, _ in os.walk(path):
                Path(folder).chmod(0o700)
            _remove(path)
    except OSError as error:
        logger.warning("%s: cannot be deleted: %s; delete it", path, error.strerror)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
