"""The state of a preparation with shards: encoded images of the files that were read, however it ended.

It is the folder ``.udc/prepare``, because DVC deletes outputs before a stage runs. While a preparation runs, images are
appended to it in the order in which they are read, so a killed preparation continues where it was. When the shards are
written, it has hard links to them, which take no space as long as the shards exist, and 1.5 KB for each image; the
next preparation reads only the files that are new or have another size or time of modification.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udc_model.data.channel_statistics import ChannelStatistics
from udc_model.data.encoding import decoder_versions, encode, max_bytes
from udc_model.data.quality.traits import TRAITS
from udc_model.data.scratch import AT_ONCE, Checked, Decoded, Images, SourceFile, Writer, status_and_content
from udc_model.data.shards.reading import PLACE, SHARDS, EncodedPixels, read_encoded
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.files import atomic_folder, write_atomically

RECORD = np.dtype([
    ("stamp", "S32"),  # of a file, or empty; digits, because numpy drops null bytes at the end
    ("width", np.uint32),
    ("height", np.uint32),
    ("sha256", np.uint8, (32,)),  # of the decoded pixels
    ("is_reduced", np.bool_),
    ("is_jpeg", np.bool_),  # otherwise WebP
    ("place", PLACE),  # shard 0 is `_IMAGES`; the others follow in the order of `_SHARD_NAMES`
    ("encoded_crc32", np.uint32),
    ("prepared_crc32", np.uint32),  # of the pixels of the prepared image
    ("sums", np.int64, (3, 3)),  # of `ChannelStatistics`; the first columns
])  # fmt: skip
_PACKED_RECORD = struct.Struct("=32sII32s??IQIII72s")  # of RECORD
_IMAGES, _TRAITS, _RECORDS, _SETTINGS, _SHARD_NAMES = (
    "images.bin", "traits.bin", "records.bin", "settings.json", "shards.txt",
)  # fmt: skip
_BLOCK = 2**14  # rows copied at a time


class Encoded(NamedTuple):
    """An image on its way from a worker process: ``record`` is an item of `RECORD` without its place."""

    checked: Checked
    record: bytes
    traits: bytes
    content: bytes


class InterimImages:
    """Encoded images in a folder: `udc_model.data.scratch.Scratch` for ``data.packed: shards``.

    Worker processes get a copy, which only encodes.

    Parameters
    ----------
    folder : the folder, which only one process writes to.
    preprocessing : makes the prepared images.
    settings : everything else that the images depend on. With other settings, nothing in the folder is used.

    Attributes
    ----------
    advice : what to do if the folder is damaged; the end of a message.
    """

    def __init__(self, folder: Path, preprocessing: Preprocessing, settings: dict[str, Any]) -> None:
        self.folder, self.preprocessing = folder, preprocessing
        everything = {"preprocessing": preprocessing.to_dict(), "decoders": decoder_versions(), "code": _code_digest()}
        self._settings = json.dumps(everything | settings, indent=2, sort_keys=True) + "\n"
        self.advice = f"delete {folder} and run the stage again"
        self._log: _Log | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_log": None}

    @property
    def traits(self) -> Path:
        """File of `udc_model.data.quality.traits`, one item per scratch row."""
        return self.folder / _TRAITS

    def create(self) -> None:
        """Open the folder; images of other settings are deleted, and incomplete ones at its end."""
        settings = self.folder / _SETTINGS
        if not settings.is_file() or settings.read_text(encoding="utf-8") != self._settings:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_atomically(settings, self._settings)
        for name in (_IMAGES, _TRAITS, _RECORDS, _SHARD_NAMES):
            (self.folder / name).touch()
        self._log = _Log(self.folder)

    def source_file(self, path: Path) -> SourceFile:
        """A file's size and stamp, and its contents if it is small enough to be stored as it is."""
        status, content = status_and_content(path, max(AT_ONCE, max_bytes(self.preprocessing)))
        return SourceFile() if status is None else SourceFile(content, status.st_size, _stamp(path, status))

    def find(self, path: Path) -> Checked | None:
        """The image of a file that was not changed since it was written; None otherwise."""
        assert self._log is not None
        if self._log.is_new:
            return None
        try:
            return self._log.find(_stamp(path, path.stat()))
        except (OSError, ValueError):
            return None

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Encode images of this process; the process with the folder keeps them."""

        def write(checked: Checked, decoded: Decoded) -> Encoded:
            jpeg = decoded.file.content if decoded.form == "JPEG" else None
            content, is_jpeg = encode(decoded.image, decoded.prepared, self.preprocessing, jpeg)
            statistics = ChannelStatistics(self.preprocessing.channels)
            statistics.add(decoded.prepared)
            sums = np.zeros(RECORD["sums"].shape, np.int64)
            sums[:, : statistics.sums.shape[1]] = statistics.sums
            record = _PACKED_RECORD.pack(
                decoded.file.stamp,
                checked.width,
                checked.height,
                bytes.fromhex(checked.sha256),
                checked.is_reduced,
                is_jpeg,
                *(0, 0, len(content)),
                zlib.crc32(content),
                zlib.crc32(decoded.prepared.data),
                sums.tobytes(),
            )
            return Encoded(checked, record, decoded.traits, content)

        yield write

    def keep(self, result: Any, is_reusable: bool) -> Any:
        """Append an image to the folder; returns it with its row there. Other results are returned as they are."""
        if not isinstance(result, Encoded):
            return result
        assert self._log is not None
        return self._log.append(result, is_reusable)

    def flush(self) -> None:
        """Write the images that were kept."""
        assert self._log is not None
        self._log.flush()

    def images(self, rows: Sequence[int], preprocessing: Preprocessing) -> Images:
        """A function that reads prepared images; ``rows`` are the scratch rows of the positions."""
        places = self.records()["place"][np.asarray(rows, dtype=np.intp)]
        pixels = EncodedPixels(self.paths(), places, preprocessing, self.advice)
        return lambda indices: np.asarray(pixels[np.asarray(indices, dtype=np.intp)])

    def records(self) -> NDArray[np.void]:
        """The `RECORD` of all rows."""
        return np.fromfile(self.folder / _RECORDS, RECORD)

    def paths(self) -> list[Path]:
        """The files that ``place`` names by position."""
        names = (self.folder / _SHARD_NAMES).read_text(encoding="utf-8").split()
        return [self.folder / _IMAGES, *(self.folder / SHARDS / name for name in names)]

    def read(self, paths: Sequence[Path], record: np.void) -> bytes:
        """The encoded image of a row; :class:`UdcError` if it is damaged."""
        path = paths[record["place"]["shard"]]
        try:
            content = read_encoded(path, record["place"])
        except OSError as error:
            raise UdcError(f"{path}: cannot be read ({error.strerror}); {self.advice}") from None
        if zlib.crc32(content) != record["encoded_crc32"]:
            raise UdcError(f"{path}: is damaged; {self.advice}")
        return content

    def replace(self, rows: NDArray[np.intp], places: NDArray[np.void], shards: Sequence[Path]) -> None:
        """Keep only some images, which are now in shards.

        Parameters
        ----------
        rows : (n,) of the images.
        places : (n,) of `PLACE` in ``shards``.
        """
        records = self.records()[rows]
        records["place"] = places
        records["place"]["shard"] += 1
        if self._log is not None:
            self._log.close()
        with atomic_folder(self.folder) as folder:
            (folder / SHARDS).mkdir()
            for shard in shards:
                os.link(shard, folder / SHARDS / shard.name)
            (folder / _SHARD_NAMES).write_text("\n".join(shard.name for shard in shards), encoding="utf-8")
            items = np.memmap(self.traits, TRAITS, mode="r") if len(rows) else np.empty(0, TRAITS)
            with (folder / _TRAITS).open("wb") as traits:
                for start in range(0, len(rows), _BLOCK):
                    traits.write(items[rows[start : start + _BLOCK]].tobytes())
            records.tofile(folder / _RECORDS)
            (folder / _SETTINGS).write_text(self._settings, encoding="utf-8")


class _Log:
    """The open files of a folder of `InterimImages`; images are appended to them."""

    def __init__(self, folder: Path) -> None:
        records = np.fromfile(folder / _RECORDS, RECORD)
        n = min(len(records), (folder / _TRAITS).stat().st_size // TRAITS.itemsize)
        place, end = records["place"][:n], (folder / _IMAGES).stat().st_size
        is_incomplete = (place["shard"] == 0) & (place["offset"] + place["length"] > end)
        self._n = n = int(np.flatnonzero(is_incomplete)[0]) if is_incomplete.any() else n
        self._records, self._end = records[:n], end
        self._pending: list[tuple[Encoded, bool]] = []
        self._order = np.argsort(self._records["stamp"], kind="stable")
        self._stamps = self._records["stamp"][self._order]
        self._files = [self._opened(folder / _IMAGES, end), self._opened(folder / _TRAITS, n * TRAITS.itemsize),
                       self._opened(folder / _RECORDS, n * RECORD.itemsize)]  # fmt: skip

    @staticmethod
    def _opened(path: Path, size: int) -> BinaryIO:
        os.truncate(path, size)
        return path.open("ab")

    @property
    def is_new(self) -> bool:
        """Whether there were no images when the folder was opened."""
        return not len(self._records)

    def find(self, stamp: bytes) -> Checked | None:
        position = int(np.searchsorted(self._stamps, np.bytes_(stamp)))
        if position == len(self._stamps) or self._stamps[position] != np.bytes_(stamp):
            return None
        row = int(self._order[position])
        record = self._records[row]
        return Checked(int(record["width"]), int(record["height"]), record["sha256"].tobytes().hex(), row,
                       bool(record["is_reduced"]))  # fmt: skip

    def append(self, image: Encoded, is_reusable: bool) -> Checked:
        self._pending.append((image, is_reusable))
        row, self._n = self._n, self._n + 1
        return Checked(*image.checked[:3], row, image.checked.is_reduced)

    def flush(self) -> None:
        """Write what was appended, the records last: they count only if the images are complete."""
        if not self._pending:
            return
        images, is_reusable = zip(*self._pending, strict=True)
        records = np.frombuffer(b"".join(image.record for image in images), RECORD).copy()
        ends = self._end + np.cumsum(records["place"]["length"], dtype=np.uint64)
        records["place"]["offset"] = ends - records["place"]["length"]
        records["stamp"][~np.array(is_reusable)] = b""
        contents, traits = (b"".join(parts) for parts in zip(*((i.content, i.traits) for i in images), strict=True))
        for file, items in zip(self._files, (contents, traits, records.tobytes()), strict=True):
            file.write(items)
            file.flush()
        self._end, self._pending = int(ends[-1]), []

    def close(self) -> None:
        for file in self._files:
            file.close()


def _stamp(path: Path, status: os.stat_result) -> bytes:
    """Identifies a file by its path, size and time of modification; 32 digits."""
    text = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32].encode()


def _code_digest() -> str:
    """SHA-256 of the code of the images' way: after a change of it, all files are read again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
