"""Prepared images on disk, each compared with its checksum when it is first read."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from udc_model.errors import UdcError

if TYPE_CHECKING:
    from udc_model.data.shards.reading import EncodedPixels

IMAGE_CHECKSUMS = "image_checksums.npy"


def checksums_of(images: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """CRC-32 (n,) of images (n, …).

    It reveals every changed byte, and every change within 4 bytes, of an image; of other changes 1 in 4 billion remains
    unseen. It is three times as fast as SHA-256 and, unlike a digest of blocks, needs no bytes but those of the image.
    """
    return np.fromiter(map(zlib.crc32, images), np.uint32, len(images))


class StoredImages:
    """Prepared images (N, S, S, C) uint8. Indexing copies them into memory and checks them; a slice is lazy.

    Processes that are forked share what was checked.

    Parameters
    ----------
    path : the file, for messages.
    pixels : (N, S, S, C), memory-mapped or encoded.
    checksums : (N,) of `checksums_of`; None checks nothing.
    advice : how to get the file back; the end of a message.
    """

    def __init__(
        self, path: Path, pixels: NDArray[np.uint8] | EncodedPixels, checksums: NDArray[np.uint32] | None, advice: str
    ) -> None:
        self._path, self._pixels, self._checksums, self._advice = path, pixels, checksums, advice
        self._is_checked: NDArray[np.bool_] = (
            np.ones(len(pixels), bool) if checksums is None or not len(pixels)
            else np.frombuffer(mmap.mmap(-1, len(pixels)), bool)
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, C)."""
        return self._pixels.shape

    def __getitem__(self, rows: Any) -> Any:
        """An image (S, S, C) or images (n, S, S, C) in memory; for a slice, `StoredImages` that are not read yet."""
        if isinstance(rows, slice):
            part = object.__new__(StoredImages)
            part.__dict__ |= self.__dict__ | {"_pixels": self._pixels[rows], "_is_checked": self._is_checked[rows]}
            if self._checksums is not None:
                part._checksums = self._checksums[rows]
            return part
        images = np.array(self._pixels[rows])
        if not self._is_checked[rows].all():
            self._check(np.atleast_1d(np.asarray(rows)), images.reshape(-1, *self.shape[1:]))
        return images

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """All images in memory."""
        images = np.array(self._pixels)
        if not self._is_checked.all():
            self._check(np.arange(len(self)), images)
        return images if dtype is None else images.astype(dtype)

    def _check(self, rows: NDArray[np.intp], images: NDArray[np.uint8]) -> None:
        if self._checksums is None:
            return
        damaged = rows[checksums_of(images) != self._checksums[rows]]
        if len(damaged):
            raise UdcError(f"{self._path}: image {damaged[0]} differs from its checksum: the file was damaged or "
                           f"changed; {self._advice}")  # fmt: skip
        self._is_checked[rows] = True
