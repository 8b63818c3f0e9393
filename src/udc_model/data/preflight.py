"""What preparing a source will take, before it starts: disk space, time and memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from udc_model.data.decode import decode
from udc_model.data.formats import BadImageError
from udc_model.data.sources import ImageSource
from udc_model.data.transforms import Preprocessing
from udc_model.data.workers import number_of_workers, run_one_by_one
from udc_model.errors import UdcError

_MIN_IMAGES = 2000  # fewer images take seconds
_SAMPLE = 8  # images that are decoded for the estimate
_WORKER_BYTES = 150 * 2**20  # of a worker process without an image
_COPIES = 3  # decoded forms of an image that are in memory at once


def check_space(folder: Path, n_images: int, preprocessing: Preprocessing) -> int:
    """Raise :class:`UdcError` unless the prepared images fit on the disk of ``folder``; returns the bytes they need.

    The images are there twice for a moment: in the order of the paths, and by split.
    """
    side = preprocessing.stored_size
    needed = 2 * n_images * side * side * preprocessing.decoding.channels
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UdcError(
            f"{folder.parent}: needs {needed / 2**30:.1f} GiB for {n_images:,} prepared images of {side} px, "
            f"but {free / 2**30:.1f} GiB are free; free some, or lower data.image_size"
        )
    return needed


def estimate(source: ImageSource, preprocessing: Preprocessing, disk_bytes: int) -> str | None:
    """One line about time, disk and memory that preparing a source will take, or None if it is only seconds.

    A few images, evenly chosen, are decoded for it. No result depends on the estimate.

    Parameters
    ----------
    disk_bytes : from `check_space`.
    """
    n_images = len(source.records)
    if source.pixels is not None or n_images < _MIN_IMAGES:
        return None
    paths = [source.root / record.path for record in source.records[:: -(-n_images // _SAMPLE)]]
    costs = [cost for cost, _ in run_one_by_one(partial(_measure, preprocessing), paths, lambda path: (0.0, 0))]
    workers = number_of_workers(n_images)
    seconds = sum(cost[0] for cost in costs) / len(costs) * n_images / workers
    largest = max(cost[1] for cost in costs)
    memory = workers * (_WORKER_BYTES + _COPIES * preprocessing.decoding.channels * largest)
    duration = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
    gibibytes = f"{disk_bytes / 2**30:.1f} GiB of disk and {memory / 2**30:.1f} GiB of memory"
    return (f"reading the images takes about {duration} with {workers} process(es), {gibibytes} "
            f"(estimated from {len(costs)} images)")  # fmt: skip


def _measure(preprocessing: Preprocessing, paths: Iterable[Path]) -> tuple[float, int]:
    """Seconds to prepare one image, and its number of pixels; 0 for an image that cannot be used."""
    started = time.perf_counter()
    for path in paths:
        try:
            image = decode(path, preprocessing.decoding)
        except (BadImageError, MemoryError):  # listed with its reason when all images are read
            break
        preprocessing.to_stored(image)
        return time.perf_counter() - started, image.width * image.height
    return 0.0, 0
