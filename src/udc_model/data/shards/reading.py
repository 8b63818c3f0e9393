"""Reads prepared images of encoded ones at known places in files; nothing is kept in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from udc_model.data.encoding import decode_prepared, max_bytes
from udc_model.data.formats import BadImageError
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.records import Record

SHARDS = "shards"  # folder of the tar files
SHARDS_FILE = "shards.json"
PLACE = np.dtype([("shard", np.uint32), ("offset", np.uint64), ("length", np.uint32)])  # of an encoded image, in bytes

_NAME = re.compile(rf"{SHARDS}/[0-9a-f]{{32}}\.tar")
_MAX_SHARDS = 2**20


class _Shard(Record):
    url: Annotated[str, Field(pattern=rf"^{_NAME.pattern}$")]
    nsamples: Annotated[int, Field(ge=1, lt=2**32)]
    filesize: Annotated[int, Field(ge=1, lt=2**53)]


class ShardList(Record):
    """``shards.json``, in the format of the index of webdataset's ``wids``."""

    shardlist: Annotated[list[_Shard], Field(max_length=_MAX_SHARDS)]

    def check_files(self, folder: Path, advice: str) -> list[Path]:
        """The shards; :class:`UdcError` if one is missing or has another size."""
        paths = [folder / shard.url for shard in self.shardlist]
        for path, shard in zip(paths, self.shardlist, strict=True):
            try:
                size = path.stat().st_size
            except OSError as error:
                raise UdcError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
            if size != shard.filesize:
                raise UdcError(f"{path}: has {size:,} bytes instead of {shard.filesize:,}; {advice}")
        return paths


class EncodedPixels:
    """The prepared images (N, S, S, C) of N encoded images; indexing decodes them, and a slice is lazy.

    Parameters
    ----------
    paths : files of encoded images.
    places : (N,) of `PLACE`; ``shard`` is the position in ``paths``.
    preprocessing : made the images.
    advice : how to get the files back; the end of a message.
    """

    def __init__(
        self, paths: Sequence[Path], places: NDArray[np.void], preprocessing: Preprocessing, advice: str
    ) -> None:
        self._paths, self._places, self._preprocessing, self._advice = paths, places, preprocessing, advice

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, C)."""
        side = self._preprocessing.stored_size
        return len(self), side, side, self._preprocessing.channels

    def __getitem__(self, rows: Any) -> Any:
        """An image (S, S, C), or images (n, S, S, C); for a slice, `EncodedPixels` that are not read yet.

        Raises
        ------
        UdcError
            An image is missing or damaged.
        """
        places = self._places[rows]
        if isinstance(rows, slice):
            return EncodedPixels(self._paths, places, self._preprocessing, self._advice)
        if places.ndim == 0:
            return self._read(places)
        images = np.empty((len(places), *self.shape[1:]), np.uint8)
        for image, place in zip(images, places, strict=True):
            image[:] = self._read(place)
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """All images in memory."""
        return np.asarray(self[np.arange(len(self))], dtype)

    def _read(self, place: np.void) -> NDArray[np.uint8]:
        path = self._paths[place["shard"]]
        try:
            return decode_prepared(read_encoded(path, place), self._preprocessing)
        except (OSError, BadImageError) as error:
            raise UdcError(f"{path}: the image at byte {place['offset']:,} cannot be read ({error}); "
                           f"{self._advice}") from None  # fmt: skip


def read_encoded(path: Path, place: np.void) -> bytes:
    """The bytes at a place of a file; the file is not kept open, because there may be more files than a process may
    have open."""
    with path.open("rb", buffering=0) as handle:
        handle.seek(int(place["offset"]))
        return handle.read(int(place["length"]))


def check_places(index: Path, places: NDArray[np.void], sizes: Sequence[int], preprocessing: Preprocessing,
                 advice: str) -> None:  # fmt: skip
    """Check that all places are inside the shards, and that none has more bytes than an encoded image.

    Parameters
    ----------
    index : the file of the places, for messages.
    sizes : bytes of each shard.

    Raises
    ------
    UdcError
        A place is outside, or too large.
    """
    if not len(places):
        return
    shards, limit = places["shard"], max_bytes(preprocessing)
    if shards.max() >= len(sizes):
        raise UdcError(f"{index}: names shard {shards.max():,}, but there are {len(sizes):,}; {advice}")
    lengths, end = places["length"].astype(np.uint64), np.array(sizes, np.uint64)[shards]
    is_outside = lengths > end - np.minimum(places["offset"], end)  # a sum might overflow
    if (bad := is_outside | (lengths > limit) | (lengths == 0)).any():
        row = int(np.flatnonzero(bad)[0])
        raise UdcError(f"{index}: image {row:,} is said to have {lengths[row]:,} bytes at byte "
                       f"{places['offset'][row]:,} of a shard of {sizes[shards[row]]:,}; {advice}")  # fmt: skip
