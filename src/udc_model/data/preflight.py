"""What preparing a source will take, before it starts: disk space, time and memory."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path

from PIL import Image, features

from udc_model.data.sources import ImageSource
from udc_model.data.transforms import Preprocessing
from udc_model.data.workers import number_of_workers
from udc_model.errors import UdcError

logger = logging.getLogger(__name__)

LARGEST_RAW = 32 * 2**30  # bytes of pixels up to which data.packed: auto is raw
SHARE_OF_PIXELS = {"raw": 1.0, "shards": 0.1}  # bytes of prepared images; shards of photographs have 0.1 to 0.4
_MIN_IMAGES = 2000  # fewer images take seconds
_SAMPLE = 32  # images whose headers are read
_SECONDS_PER_IMAGE, _SECONDS_PER_PIXEL = 1e-3, 1.2e-8  # of one core, for JPEG
_WORKER_BYTES = 150 * 2**20  # of a worker process without an image
_COPIES = 3  # decoded forms of an image that are in memory at once


def check_space(folder: Path, n_images: int, preprocessing: Preprocessing, share: float = 1.0) -> int:
    """Raise :class:`UdcError` unless the prepared images fit on the disk of ``folder``; returns the bytes they need.

    The images are there twice for a moment: in the order of the paths, and by split.

    Parameters
    ----------
    share : bytes of the prepared images as a share of their pixels.
    """
    side = preprocessing.stored_size
    needed = int(2 * n_images * side * side * preprocessing.decoding.channels * share)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UdcError(
            f"{folder.parent}: needs {needed / 2**30:.1f} GiB for {n_images:,} prepared images of {side} px, "
            f"but {free / 2**30:.1f} GiB are free; free some, or lower data.image_size"
        )
    return needed


def packed_form(packed: str, n_images: int, preprocessing: Preprocessing) -> str:
    """The form of the prepared images, ``raw`` or ``shards``, that ``data.packed`` prescribes.

    ``auto`` depends on the number and size of the images only, so it is the same on each machine.

    Raises
    ------
    UdcError
        Shards cannot be written here.
    """
    n_bytes = n_images * preprocessing.stored_size**2 * preprocessing.channels
    if packed == "raw" or (packed == "auto" and n_bytes <= LARGEST_RAW):
        return "raw"
    if packed == "auto":
        logger.info("data.packed: shards, because %s images of %d px have %.1f GiB of pixels, more than %d GiB",
                    f"{n_images:,}", preprocessing.stored_size, n_bytes / 2**30, LARGEST_RAW / 2**30)  # fmt: skip
    if not features.check("webp"):
        raise UdcError("data.packed: shards need Pillow with WebP; install its wheel (pip install --force-reinstall "
                       "pillow), or set data.packed: raw")  # fmt: skip
    return "shards"


def estimate(source: ImageSource, preprocessing: Preprocessing, disk_bytes: int) -> str | None:
    """One line about time, disk and memory that preparing a source will take, or None if it is only seconds.

    It follows from the sizes in the headers of a few images, evenly chosen; no image is decoded for it.

    Parameters
    ----------
    disk_bytes : from `check_space`.
    """
    n_images = len(source.records)
    if source.pixels is not None or n_images < _MIN_IMAGES:
        return None
    sizes = [_pixels(source.root / record.path) for record in source.records[:: -(-n_images // _SAMPLE)]]
    workers = number_of_workers(n_images)
    seconds = n_images * (_SECONDS_PER_IMAGE + _SECONDS_PER_PIXEL * sum(sizes) / len(sizes)) / workers
    memory = workers * (_WORKER_BYTES + _COPIES * preprocessing.decoding.channels * max(sizes))
    duration = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
    gibibytes = f"{disk_bytes / 2**30:.1f} GiB of disk and {memory / 2**30:.1f} GiB of memory"
    return f"reading the images takes roughly {duration} with {workers} process(es), {gibibytes}"


def _pixels(path: Path) -> int:
    """Width x height in the header of an image; 0 if it cannot be read, whose reason is found when it is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.width * image.height
    except Exception:  # Pillow raises errors of every kind on damaged files
        return 0
