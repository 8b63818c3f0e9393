"""Decodes and checks every image on all cores, and writes the valid ones to a scratch file as prepared images."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from udc_model.data.decode import BadImageError, decode_rgb
from udc_model.data.sources import ImageSource, Rejection, join_for_message
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError

_CHUNK = 32  # images per task: small enough for a smooth progress bar, large enough to hide the overhead of a task
_MIN_IMAGES_FOR_POOL = 256  # fewer images take less time than the start of worker processes


@dataclass(frozen=True, slots=True)
class Checked:
    """A valid image: its decoded size in pixels and the SHA-256 of its decoded RGB pixels."""

    width: int
    height: int
    sha256: str


Outcome = Checked | Rejection


def check_images(source: ImageSource, preprocessing: Preprocessing, max_pixels: int, scratch: Path) -> list[Outcome]:
    """Decode every image of a source once and write its prepared image to ``scratch``.

    Parameters
    ----------
    source : the N images to check.
    preprocessing : defines the prepared image.
    max_pixels : largest width x height of an image, pixels; larger images are rejected before they are decoded.
    scratch : file to write, N x stored_size x stored_size x 3 bytes; the rows of rejected images are zero.

    Returns
    -------
    One outcome per record, in the order of the records.

    Raises
    ------
    UdcError
        A worker process was killed.
    """
    side = preprocessing.stored_size
    with scratch.open("wb") as handle:
        handle.truncate(len(source.records) * side * side * 3)
    paths = [record.path for record in source.records]
    task = _Task(source.root, preprocessing, max_pixels, scratch)
    chunks = [(start, paths[start : start + _CHUNK]) for start in range(0, len(paths), _CHUNK)]
    outcomes: list[Outcome] = []
    with tqdm(total=len(paths), desc="checking images", unit="img", disable=None) as bar:
        for part in _run(task, chunks, source.pixels):
            outcomes.extend(part)
            bar.update(len(part))
    return outcomes


def check_space(folder: Path, n_images: int, stored_size: int) -> None:
    """Raise :class:`UdcError` unless the prepared images fit on the disk of ``folder``, before one is decoded.

    The images are there twice for a moment: in the order of the paths, and by split.
    """
    needed = 2 * n_images * stored_size * stored_size * 3
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UdcError(
            f"{folder.parent}: needs {needed / 2**30:.1f} GiB for {n_images:,} prepared images of {stored_size} px, "
            f"but {free / 2**30:.1f} GiB are free; free some, or lower data.image_size"
        )


def raise_for_rejections(rejected: list[Rejection], on_bad_image: str, n_images: int) -> None:
    """Raise one error that lists all rejected images, unless they may be skipped.

    Parameters
    ----------
    rejected : the rejected images.
    on_bad_image : ``error`` or ``skip``.
    n_images : number of all images, rejected ones included.

    Raises
    ------
    UdcError
        ``on_bad_image`` is not ``skip``, or every image is rejected.
    """
    if not rejected or (on_bad_image == "skip" and len(rejected) < n_images):
        return
    lines = join_for_message([f"{item.path}: {item.reason}" for item in rejected], "\n  ")
    raise UdcError(
        f"{len(rejected)} of {n_images} image(s) cannot be used:\n  {lines}\n"
        "Fix or remove them, or set data.on_bad_image: skip to leave them out (left_out.csv lists them)."
    )


@dataclass(frozen=True)
class _Task:
    root: Path
    preprocessing: Preprocessing
    max_pixels: int
    scratch: Path

    def check(self, start: int, paths: list[str]) -> list[Outcome]:
        """Check the files of one chunk; ``start`` is the row of its first image."""
        images = ((path, self._decode(path)) for path in paths)
        return self.store(start, images)

    def _decode(self, path: str) -> Image.Image | BadImageError:
        try:
            return decode_rgb(self.root / path, self.max_pixels)
        except BadImageError as error:
            return error
        except MemoryError:
            return BadImageError("the image does not fit into memory; lower data.max_pixels")

    def store(self, start: int, images: Iterator[tuple[str, Image.Image | BadImageError]]) -> list[Outcome]:
        """Write decoded images to the scratch file from row ``start`` on."""
        outcomes: list[Outcome] = []
        row_bytes = self.preprocessing.stored_size**2 * 3
        with self.scratch.open("r+b") as handle:
            for row, (path, image) in enumerate(images, start):
                if isinstance(image, BadImageError):
                    outcomes.append(Rejection(path, str(image)))
                    continue
                handle.seek(row * row_bytes)
                handle.write(self.preprocessing.to_stored(image).tobytes())
                digest = hashlib.sha256(b"%d x %d:" % image.size + image.tobytes()).hexdigest()
                outcomes.append(Checked(*image.size, digest))
        return outcomes


def _run(task: _Task, chunks: list[tuple[int, list[str]]], pixels: NDArray[np.uint8] | None) -> Iterator[list[Outcome]]:
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if pixels is not None:
        for start, paths in chunks:
            images = (Image.fromarray(pixels[start + k]).convert("RGB") for k in range(len(paths)))
            yield task.store(start, zip(paths, images, strict=True))
    elif processes == 1 or sum(len(paths) for _, paths in chunks) < _MIN_IMAGES_FOR_POOL:
        for start, paths in chunks:
            yield task.check(start, paths)
    else:
        # "spawn": forking a process that has threads (a progress bar's, a library's) can deadlock.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            try:
                starts, paths_of = zip(*chunks, strict=True)
                yield from pool.map(task.check, starts, paths_of)
            except BrokenProcessPool:
                raise UdcError(
                    "a process that checks images was killed, probably because memory ran out; "
                    "lower data.max_pixels, or close other programs"
                ) from None
