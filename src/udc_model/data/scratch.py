"""Where prepared images are while their splits are not known, and how they become the arrays of the splits.

`PixelScratch` has pixels, for ``data.packed: raw``; `udc_model.data.shards.writing.ShardScratch` has encoded images.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udc_model.config import SPLITS
from udc_model.data.channel_statistics import ChannelStatistics
from udc_model.data.stored_images import checksums_of
from udc_model.data.transforms import Preprocessing

AT_ONCE = 2**20  # bytes; decoding a file up to this size from memory takes half as long as from its handle
_BLOCK_BYTES = 32 * 2**20  # copied at a time, which bounds the memory for data sets of any size

Images = Callable[[Sequence[int]], NDArray[np.uint8]]  # positions to prepared images (n, S, S, C)


class Checked(NamedTuple):
    """A valid image; a tuple, which passes between processes faster than a dataclass.

    Attributes
    ----------
    width, height : decoded size, pixels.
    sha256 : digest of the decoded pixels.
    scratch_row : row of the prepared image in the scratch file.
    is_reduced : the image has colours, but its pixels became grey.
    """

    width: int
    height: int
    sha256: str
    scratch_row: int
    is_reduced: bool = False


@dataclass(frozen=True)
class SourceFile:
    """A file before its images are decoded.

    Attributes
    ----------
    content : None if the file is not read at once.
    n_bytes : size of the file.
    stamp : what `Scratch.find` recognises it by; empty for nothing.
    """

    content: bytes | None = None
    n_bytes: int = 0
    stamp: bytes = b""


@dataclass(frozen=True)
class Decoded:
    """An image in a worker process, which has to be written.

    Attributes
    ----------
    image : RGB or grey.
    prepared : (S, S, C), made of it, contiguous.
    traits : an item of `udc_model.data.quality.traits.TRAITS`.
    file : that it is of.
    form : format of the file.
    """

    image: Image.Image
    prepared: NDArray[np.uint8]
    traits: bytes
    file: SourceFile
    form: str


class Writer(Protocol):
    """Writes images in a worker process; the result goes to `Scratch.keep` in the process that started it."""

    def __call__(self, checked: Checked, decoded: Decoded) -> Any:
        """Write an image; returns `Checked`, or what becomes it in `Scratch.keep`."""
        ...


class Scratch(Protocol):
    """Prepared images whose splits are not known; each has a ``scratch_row``."""

    @property
    def traits(self) -> Path:
        """File of `udc_model.data.quality.traits`, one item per scratch row."""
        ...

    def create(self) -> None:
        """Create what `writer` needs."""
        ...

    def writer(self) -> AbstractContextManager[Writer]:
        """Writes images of this process."""
        ...

    def source_file(self, path: Path) -> SourceFile:
        """What `writer` needs of a file besides its images; nothing if the file cannot be read."""
        ...

    def find(self, path: Path) -> Checked | None:
        """The image of a file that was not changed since it was kept; None otherwise."""
        ...

    def keep(self, result: Any, is_reusable: bool) -> Any:
        """Keep the result of a `Writer`, for `find` if it is reusable; other results are returned as they are."""
        ...

    def flush(self) -> None:
        """Write what was kept to the files; until then, it cannot be read and is lost if the process is killed."""
        ...

    def images(self, rows: Sequence[int], preprocessing: Preprocessing) -> Images:
        """A function that reads prepared images; ``rows`` are the scratch rows of the positions."""
        ...

    def write_splits(
        self, folder: Path, members: Mapping[str, Sequence[dict[str, Any]]], preprocessing: Preprocessing
    ) -> PackedSplits:
        """Write the images of all splits.

        Parameters
        ----------
        members : rows of `udc_model.data.packed.write_packed`, by split.
        """
        ...

    def remove(self) -> None:
        """Delete what is needed no more when the splits are written."""
        ...


@dataclass(frozen=True)
class PackedSplits:
    """What is known when the images of all splits are written.

    Attributes
    ----------
    digest : of the pixels; the text of the manifest is added to it.
    checksums : (N,) `checksums_of` all prepared images, in the order of splits and rows.
    statistics : of the training images.
    info : entries of ``dataset.json``.
    """

    digest: Any
    checksums: NDArray[np.uint32]
    statistics: ChannelStatistics
    info: dict[str, Any]


@dataclass(frozen=True)
class PixelScratch:
    """A file of the pixels of prepared images, S x S x C bytes each; the rows of rejected images are zero."""

    path: Path

    @property
    def traits(self) -> Path:
        """File of `udc_model.data.quality.traits`."""
        return self.path.with_suffix(".traits")

    def create(self) -> None:
        """Create the empty files."""
        for path in (self.path, self.traits):
            path.touch()

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Open the files; images are written to their scratch rows."""
        with self.path.open("r+b") as images, self.traits.open("r+b") as traits:
            next_row = 0

            def write(checked: Checked, decoded: Decoded) -> Checked:
                nonlocal next_row
                for file, item in ((images, decoded.prepared.data), (traits, decoded.traits)):
                    if checked.scratch_row != next_row:
                        file.seek(checked.scratch_row * memoryview(item).nbytes)
                    file.write(item)
                next_row = checked.scratch_row + 1
                return checked

            yield write

    def source_file(self, path: Path) -> SourceFile:
        """Size and contents; no stamp, because a scratch file does not outlive its preparation."""
        status, content = status_and_content(path, AT_ONCE)
        return SourceFile(content, status.st_size if status else 0)

    def find(self, path: Path) -> Checked | None:
        """None: a scratch file does not outlive its preparation."""
        return None

    def keep(self, result: Any, is_reusable: bool) -> Any:
        """Return the result, whose image is written."""
        return result

    def flush(self) -> None:
        """Nothing: a `Writer` has written each image."""

    def images(self, rows: Sequence[int], preprocessing: Preprocessing) -> Images:
        """A function that reads prepared images; ``rows`` are the scratch rows of the positions."""
        shape = _shape(preprocessing)
        return lambda indices: np.concatenate(
            [np.empty((0, *shape), np.uint8), *_stored_rows(self.path, [rows[i] for i in indices], shape)]
        )

    def write_splits(
        self, folder: Path, members: Mapping[str, Sequence[dict[str, Any]]], preprocessing: Preprocessing
    ) -> PackedSplits:
        """Write an array of pixels for each split."""
        digest, statistics = hashlib.sha256(), ChannelStatistics(preprocessing.channels)
        checksums: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]
        shape = _shape(preprocessing)
        for split in SPLITS:
            rows = members[split]
            with _npy_writer(folder / f"{split}.npy", len(rows), shape) as handle:
                for block in _stored_rows(self.path, [row["scratch_row"] for row in rows], shape):
                    checksums.append(checksums_of(block))
                    handle.write(block.data)
                    digest.update(block.data)
                    if split == "train":
                        statistics.add(block)
        return PackedSplits(digest, np.concatenate(checksums), statistics, {})

    def remove(self) -> None:
        """Delete the files."""
        self.path.unlink()
        self.traits.unlink()


def status_and_content(path: Path, limit: int) -> tuple[os.stat_result | None, bytes | None]:
    """The status of a file, and its contents if they have at most ``limit`` bytes; None for what cannot be read."""
    try:
        with path.open("rb", buffering=0) as handle:
            status = os.fstat(handle.fileno())  # first: if the file changes now, it has another status later
            return status, handle.read() if status.st_size <= limit else None
    except (OSError, ValueError):  # decoding it gives the reason
        return None, None


def _shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    return preprocessing.stored_size, preprocessing.stored_size, preprocessing.channels


@contextmanager
def _npy_writer(path: Path, n: int, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    with path.open("wb") as handle:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(handle, header)
        yield handle


def _stored_rows(path: Path, rows: Sequence[int], shape: tuple[int, ...]) -> Iterable[NDArray[np.uint8]]:
    """Yield blocks (n, S, S, C) of rows. They are read, because mapped pages would count as memory of the process."""
    row_bytes = math.prod(shape)
    per_block = max(1, _BLOCK_BYTES // row_bytes)
    with path.open("rb", buffering=0) as handle:
        for start in range(0, len(rows), per_block):
            chunks = []
            for row in rows[start : start + per_block]:
                handle.seek(row * row_bytes)
                chunks.append(handle.read(row_bytes))
            yield np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, *shape)
