"""The images of an uploaded zip archive. Nothing is unpacked to disk, and no name of the archive is used as a path."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

from udc_model.errors import UdcError
from udc_model.inference.inputs import BadInput, ImageInput, Input

MOST_FILES = 2000  # of an archive
_MOST_BYTES = 4 * 2**30  # of all files together, uncompressed
_MOST_BYTES_OF_FILE = 64 * 2**20
_LARGEST_READ = 8 * 2**20  # bytes; the list of files of an archive is read at once, and takes ten times the memory
_CHUNK = 2**20
_ADVICE = "unpack it, and decide the folder with udc predict or udc score"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


class _BoundedReads:
    """A file of which no large part is read at once: `zipfile` believes the size that an archive states for its list.

    Parameters
    ----------
    file : opened for reading bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """At most `_LARGEST_READ` bytes, or an error."""
        if size > _LARGEST_READ:
            raise UdcError(f"the archive lists more than {MOST_FILES:,} files; {_ADVICE}")
        return self._file.read(size)


def images_in_archive(file: IO[bytes]) -> Iterator[Input]:
    """The files of a zip archive, one after the other, without folders and hidden files.

    Sizes are those that are read, not those that the archive states.

    Raises
    ------
    UdcError
        The file is no zip archive, is damaged, or has too many or too large files.
    """
    try:
        bounded: Any = _BoundedReads(file)
        with zipfile.ZipFile(bounded) as archive:
            members = [each for each in archive.infolist() if not each.is_dir() and not _is_hidden(each.filename)]
            if not members:
                raise UdcError("the archive has no files")
            if len(members) > MOST_FILES:
                raise UdcError(f"the archive has {len(members):,} files, at most {MOST_FILES:,} are allowed; {_ADVICE}")
            total = 0
            for member in members:
                each = _read(archive, member)
                total += len(each.source) if isinstance(each, ImageInput) and isinstance(each.source, bytes) else 0
                if total > _MOST_BYTES:
                    raise UdcError(f"the files of the archive have more than {_MOST_BYTES // 2**30} GiB; {_ADVICE}")
                yield each
    except _DAMAGED as error:
        raise UdcError(f"the file cannot be read as a zip archive: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__


def _is_hidden(name: str) -> bool:
    """Whether a file is one that systems add to archives."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") and part.strip(".") for part in parts) or "__MACOSX" in parts


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Input:
    """A file of an archive, whose size is bounded."""
    contents = bytearray()
    try:
        with archive.open(member) as stream:
            while chunk := stream.read(_CHUNK):
                contents += chunk
                if len(contents) > _MOST_BYTES_OF_FILE:
                    return BadInput(member.filename, f"has more than {_MOST_BYTES_OF_FILE // 2**20} MiB")
    except _DAMAGED as error:
        reason = "is encrypted" if member.flag_bits & 1 else f"cannot be read: {_reason(error)}"
        return BadInput(member.filename, reason)
    return ImageInput(member.filename, bytes(contents))
