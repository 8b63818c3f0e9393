"""Lists the images in tar shards of untrusted origin, as WebDataset writes them; nothing is extracted.

An image is read from its place in the file, so any process can begin anywhere, and only one image is in memory.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from udc_model.data.formats import SUFFIXES, BadImageError
from udc_model.data.sources.listing import is_utf8
from udc_model.data.sources.records import Rejection
from udc_model.errors import UdcError

MAX_MEMBER = 256 * 2**20  # bytes of an image
_MAX_HEADER = 2**20  # bytes of a header, such as a long name
_MAX_MEMBERS = 10_000_000
_BLOCK = 512  # bytes; a tar file consists of them


@dataclass(frozen=True, slots=True)
class ShardMember:
    """An image in an uncompressed tar file.

    Attributes
    ----------
    name : its name in the shard.
    offset, size : its place in the file, bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The encoded image.

        Raises
        ------
        BadImageError
            The shard cannot be read, or is shorter than when it was listed.
        """
        try:
            with self.shard.open("rb") as handle:
                handle.seek(self.offset)
                data = handle.read(self.size)
        except OSError as error:
            raise BadImageError(f"the shard cannot be read: {error.strerror}") from None
        if len(data) < self.size:
            raise BadImageError("the shard has become shorter since it was listed")
        return data


def is_shard(name: str) -> bool:
    """Whether a file name ends as a tar shard that `list_shard` reads."""
    return name.lower().endswith(".tar")


def list_shard(shard: Path) -> Iterator[ShardMember | Rejection]:
    """Yield the images of a shard in the order of the file: its members whose names end as those of images.

    Images that cannot be read are `Rejection` with their name in the shard.

    Raises
    ------
    UdcError
        The file cannot be read, or is damaged; after the members before the damage.
    """
    try:
        with _BoundedReads(shard) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
            for _ in range(_MAX_MEMBERS):
                item = tar.next()
                if item is None:
                    _check_end(handle, tar.offset)
                    return
                tar.members.clear()  # type: ignore[attr-defined]  # a list that only grows
                name = PurePosixPath(item.name).name
                if not item.isdir() and PurePosixPath(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                    yield _image(shard, item)
            raise tarfile.ReadError(f"has more than {_MAX_MEMBERS:,} members")
    except (OSError, tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UdcError(f"is no uncompressed tar file, or damaged: {text}") from None


def _image(shard: Path, item: tarfile.TarInfo) -> ShardMember | Rejection:
    if not is_utf8(item.name):
        return Rejection(item.name, "its name is not UTF-8; rename it")
    if not item.isreg() or item.issparse():
        return Rejection(item.name, "is a link, a device or a sparse file in the shard")
    if item.size > MAX_MEMBER:
        return Rejection(item.name, f"has {item.size:,} bytes; at most {MAX_MEMBER // 2**20} MiB are read")
    return ShardMember(shard, item.name, item.offset_data, item.size)


def _check_end(handle: io.FileIO, offset: int) -> None:
    """Check that the members end with the file, or with a block of zeros: tarfile ends silently at a damaged header."""
    handle.seek(offset)
    if any(handle.read(_BLOCK)):
        raise tarfile.ReadError("bad header")


class _BoundedReads(io.FileIO):
    """A file that refuses to read much at once: the size of a header is what the file says."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header has more than {_MAX_HEADER:,} bytes")
        return super().read(size)
