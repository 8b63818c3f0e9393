"""What is measured of each image when it is decoded: a thumbnail, colours, sharpness, and facts about its file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from udc_model.data.quality.fingerprints import THUMBNAIL

_GRID = 4  # cells of the sides of the coarse thumbnail
_EDGE = 16  # pixels of each edge that are measured, evenly spaced
_CENTRE = 48  # pixels of the sides of the part whose sharpness is measured
_LONGEST_TEXT = 48  # bytes of the camera's name
_MAKE, _MODEL, _DATE, _DATE_TAKEN = 271, 272, 306, 36867

TRAITS = np.dtype([
    ("thumbnail", np.uint8, (THUMBNAIL, THUMBNAIL)),  # grey
    ("grid", np.uint8, (_GRID, _GRID, 3)),  # mean colours
    ("edges", np.uint8, (4, _EDGE, 3)),  # pixels of the first and last row, and of the first and last column
    ("sharpness", np.float32),  # mean squared difference of neighbours in the centre, divided by twice the variance
    ("file_bytes", np.int64),
    ("quantisation", np.float32),  # mean of the JPEG tables; 0 for other formats
    ("form", "S8"),
    ("camera", f"S{_LONGEST_TEXT}"),  # EXIF
    ("date", "S19"),  # EXIF, as "2024:05:31 12:00:00"
])  # fmt: skip
_NUMBERS_AND_TEXTS = struct.Struct(f"=fqf8s{_LONGEST_TEXT}s19s")  # of TRAITS; longer texts are cut off


@dataclass(frozen=True)
class FileFacts:
    """What a file says about its image: format, mean of the JPEG quantisation tables, EXIF camera and date."""

    form: str = ""
    quantisation: float = 0.0
    camera: str = ""
    date: str = ""

    @classmethod
    def of(cls, image: Image.Image) -> FileFacts:
        """The facts of an image that is open; those that are damaged are empty, since the pixels do not need them."""
        try:
            return cls(image.format or "", _quantisation(image), *_exif(image))
        except Exception:  # Pillow raises errors of every kind on damaged metadata
            return cls(image.format or "")


NO_FACTS = FileFacts()


def _quantisation(image: Image.Image) -> float:
    tables = getattr(image, "quantization", None) or {}
    return sum(map(sum, tables.values())) / max(1, sum(map(len, tables.values())))


def _exif(image: Image.Image) -> tuple[str, str]:
    """Camera and date."""
    exif = image.getexif()
    if not exif:
        return "", ""
    camera = " ".join(str(exif.get(tag, ""))[:_LONGEST_TEXT].strip("\0 ") for tag in (_MAKE, _MODEL)).strip()
    date = exif.get_ifd(ExifTags.IFD.Exif).get(_DATE_TAKEN) or exif.get(_DATE) or ""
    return camera, str(date)[:19].strip("\0 ")


def measure(pixels: NDArray[np.uint8], prepared: Image.Image, facts: FileFacts, file_bytes: int) -> bytes:
    """Measure an image; returns one item of `TRAITS` as bytes.

    Parameters
    ----------
    pixels : (H, W, C) decoded image.
    prepared : (S, S) prepared image, from which the thumbnail is made.
    """
    if prepared.width % THUMBNAIL == 0:
        small = prepared.reduce(prepared.width // THUMBNAIL)  # three times as fast
    else:
        small = prepared.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    grid, edges = small.reduce(THUMBNAIL // _GRID), pixels[_edge_positions(*pixels.shape[:2])]
    if pixels.shape[2] == 1:
        grid, edges = grid.convert("RGB"), edges.repeat(3, axis=2)
    texts = (text.encode("utf-8", "replace") for text in (facts.form, facts.camera, facts.date))
    return b"".join((
        small.convert("L").tobytes(),
        grid.tobytes(),
        edges.tobytes(),
        _NUMBERS_AND_TEXTS.pack(_sharpness(pixels), file_bytes, facts.quantisation, *texts),
    ))  # fmt: skip


@lru_cache(maxsize=256)
def _edge_positions(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns (4, _EDGE) of pixels of the edges, evenly spaced from the first to the last."""
    down, right = (np.arange(_EDGE) * (side - 1) // (_EDGE - 1) for side in (height, width))
    first = np.zeros(_EDGE, np.intp)
    return np.stack((first, first + height - 1, down, down)), np.stack((right, right, first, first + width - 1))


def _sharpness(pixels: NDArray[np.uint8]) -> float:
    height, width, channels = pixels.shape
    top, left = max(0, (height - _CENTRE) // 2), max(0, (width - _CENTRE) // 2)
    centre = pixels[top : top + _CENTRE, left : left + _CENTRE, channels // 2].astype(np.float32)
    centre -= centre.sum() / centre.size
    variance = float(centre.ravel() @ centre.ravel()) / centre.size
    if variance < 1 or min(centre.shape) < 2:
        return 0.0
    down, right = (centre[1:] - centre[:-1]).ravel(), (centre[:, 1:] - centre[:, :-1]).ravel()
    return float(down @ down + right @ right) / (down.size + right.size) / (2 * variance)


class StoredTraits:
    """The traits of N images in a file that `measure` filled; thumbnails are read when they are needed.

    Parameters
    ----------
    path : the file.
    rows : (N,) items of the images in it.
    """

    def __init__(self, path: Path, rows: NDArray[np.intp]) -> None:
        self._path = path
        self._items = np.memmap(path, TRAITS, mode="r") if len(rows) else np.empty(0, TRAITS)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def among(self, kept: NDArray[np.bool_]) -> StoredTraits:
        """The traits of some of the images, which a mask (N,) selects."""
        return StoredTraits(self._path, self._rows[kept])

    def values(self, name: str, indices: NDArray[np.intp] | slice = slice(None)) -> NDArray[Any]:
        """One field of `TRAITS` of some images, or of all."""
        return np.array(self._items[name][self._rows[indices]])

    def thumbnails(self, indices: NDArray[np.intp] | slice) -> NDArray[np.uint8]:
        """The thumbnails (n, S, S) of some images."""
        return np.array(self._items["thumbnail"][self._rows[indices]])
