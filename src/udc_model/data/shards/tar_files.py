"""Writes shards: tar files of encoded images, as WebDataset reads them, with stable limits and reproducible bytes."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udc_model.files import atomic_file

TARGET_BYTES = 8 * 2**20  # mean size of a shard
_LARGEST = 4  # times TARGET_BYTES; then a shard ends in any case
_BLOCK = 512  # bytes; a tar file consists of them
_END = bytes(2 * _BLOCK)


def member_bytes(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Bytes (n,) that images of so many bytes (n,) take in a tar file: a header, and complete blocks."""
    return np.asarray(_BLOCK + -(-lengths.astype(np.int64) // _BLOCK) * _BLOCK)


def shard_limits(digests: NDArray[np.uint8], lengths: NDArray[np.uint32]) -> list[int]:
    """Where shards end, such that images which are added or removed change the shards around them only.

    An image ends its shard by its own digest, with a probability proportional to its bytes (content-defined chunking,
    Muthitacharoen et al. 2001), or when the shard has four times the mean size.

    Parameters
    ----------
    digests : (n, 32) SHA-256 of the images, in their order.
    lengths : (n,) bytes of the encoded images.

    Returns
    -------
    For each shard, the position after its last image.
    """
    sizes = member_bytes(lengths)
    draws = np.ascontiguousarray(digests[:, :8]).view(">u8").ravel() / 2.0**64
    is_last = draws < sizes / TARGET_BYTES
    limits, size = [], 0
    for position in range(len(sizes)):
        size += int(sizes[position])
        if is_last[position] or size >= _LARGEST * TARGET_BYTES:
            limits.append(position + 1)
            size = 0
    return limits if not size else [*limits, len(sizes)]


def shard_name(digests: NDArray[np.uint8], lengths: NDArray[np.uint32], checksums: NDArray[np.uint32]) -> str:
    """The name of a shard, which follows from its contents.

    Parameters
    ----------
    digests : (n, 32) SHA-256 of the images' pixels.
    lengths, checksums : (n,) bytes, and CRC-32, of the encoded images.
    """
    content = digests.tobytes() + lengths.astype("<u4").tobytes() + checksums.astype("<u4").tobytes()
    return hashlib.sha256(content).hexdigest()[:32] + ".tar"


def write_shard(path: Path, names: Sequence[str], images: Iterable[bytes]) -> None:
    """Write a tar file of encoded images; it depends on nothing but them and their names."""
    with atomic_file(path) as scratch, scratch.open("wb") as handle:
        for name, image in zip(names, images, strict=True):
            header = tarfile.TarInfo(name)
            header.size = len(image)
            handle.write(header.tobuf(tarfile.USTAR_FORMAT))
            handle.write(image + bytes(-len(image) % _BLOCK))
        handle.write(_END)


def first_offsets(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Offset (n,) of each image in a tar file of images of so many bytes (n,)."""
    sizes = member_bytes(lengths)
    return np.asarray(np.cumsum(sizes) - sizes + _BLOCK)


def shard_bytes(lengths: NDArray[np.uint32]) -> int:
    """Size of a tar file of images of so many bytes (n,)."""
    return int(member_bytes(lengths).sum()) + len(_END)
