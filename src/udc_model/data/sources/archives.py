"""Unpacks zip and tar archives of untrusted origin: no path leaves the folder, no links, a bounded size."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from udc_model.data.sources.finder import unsafe_path
from udc_model.data.sources.records import printable
from udc_model.errors import UdcError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_MAX_FILES = 10_000_000
_MAX_RATIO = 200  # of unpacked to packed bytes; images hardly shrink, a bomb shrinks a thousandfold
_MIN_BOMB = 2**28  # bytes below which the ratio does not matter
_BLOCK = 2**20


def is_archive(path: Path) -> bool:
    """Whether a file name ends as an archive that `unpack` reads."""
    return path.name.lower().endswith(SUFFIXES)


def unpack(archive: Path, target: Path) -> None:
    """Write the files of an archive into a new folder.

    Raises
    ------
    UdcError
        The archive is damaged or encrypted, would not fit on the disk, is a bomb, or a member is a link, a device or
        has a path outside the folder. Nothing is extracted then that lies outside ``target``.
    """
    free = shutil.disk_usage(target.parent).free
    packed = archive.stat().st_size
    written = 0
    try:
        with _members(archive) as members:
            for count, (name, size, stream) in enumerate(members, 1):
                _check(archive, name, count, written + size, packed, free)
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as handle:
                    while block := stream.read(_BLOCK):
                        written += len(block)
                        _check(archive, name, count, written, packed, free)
                        handle.write(block)
    except UdcError:
        raise
    except FileExistsError as error:
        raise UdcError(f"{archive}: contains {printable(str(error.filename))} twice") from None
    except (
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        raise UdcError(f"{archive}: cannot be unpacked: {error}") from None
    except Exception as error:  # zlib.error, lzma.LZMAError
        raise UdcError(f"{archive}: cannot be unpacked: {error!r}") from None


def _check(archive: Path, name: str, count: int, size: int, packed: int, free: int) -> None:
    if (reason := unsafe_path(name)) is not None:
        raise UdcError(f"{archive}: the member {printable(name)} {reason}; nothing was used")
    if count > _MAX_FILES:
        raise UdcError(f"{archive}: has more than {_MAX_FILES:,} files")
    if size > max(_MIN_BOMB, _MAX_RATIO * packed):
        raise UdcError(f"{archive}: {packed:,} bytes unpack to more than {size:,}; unpack it by hand if you trust it")
    if size > free:
        raise UdcError(f"{archive}: does not fit on the disk unpacked ({free:,} bytes are free)")


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, int, IO[bytes]]]]:
    """Yield the regular files of an archive, one after the other: name, declared size in bytes, contents."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            yield _zip_members(archive, file)
    else:
        with tarfile.open(archive, "r:*") as file:
            yield _tar_members(archive, file)


def _zip_members(archive: Path, file: zipfile.ZipFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    items = file.infolist()
    # Some programs of Windows separate folders by \, which the format does not allow.
    is_windows = not any("/" in item.filename for item in items)
    for item in items:
        name = item.filename.replace("\\", "/") if is_windows else item.filename
        kind = item.external_attr >> 28
        if name.endswith("/"):
            continue
        if kind not in (0, 8):  # unknown, or a regular file of Unix
            raise UdcError(f"{archive}: the member {printable(name)} is a link or a device; nothing was used")
        with file.open(item) as stream:
            yield name, item.file_size, stream


def _tar_members(archive: Path, file: tarfile.TarFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for item in file:
        if item.isdir():
            continue
        stream = file.extractfile(item) if item.isreg() else None
        if stream is None:
            raise UdcError(f"{archive}: the member {printable(item.name)} is a link or a device; nothing was used")
        with stream:
            yield item.name, item.size, stream
