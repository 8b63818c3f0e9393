"""Decodes and checks every image on all cores, and writes the valid ones to a scratch file as prepared images.

Images deeper than 8 bits need a range that depends on all of them. So the first pass only measures them, and a second
one decodes them again with that range. Other images are decoded once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from udc_model.config import DataParams
from udc_model.config.data import IntensityRange
from udc_model.data.decode import decode_frames, to_channels
from udc_model.data.formats import BadImageError
from udc_model.data.frames import Frame
from udc_model.data.intensity import DeepValues, automatic_range, fixed_range, percentile_range
from udc_model.data.quality.traits import measure
from udc_model.data.scratch import Checked, Decoded, Scratch, SourceFile, Writer
from udc_model.data.sources import ImageRecord, ImageSource, Rejection, join_for_message
from udc_model.data.transforms import Preprocessing, pixels_of
from udc_model.data.workers import number_of_workers, run_in_workers
from udc_model.errors import UdcError

logger = logging.getLogger(__name__)

_FIRST = (0,)
_KILLED = "decoding it ended the process (crash, no memory) or took longer than 5 minutes"


Outcome = Checked | Rejection
_Result = Checked | Rejection | DeepValues  # DeepValues: measured, and to be decoded again


@dataclass(frozen=True)
class Audit:
    """The checked images of a source.

    Attributes
    ----------
    records : one record per image. A frame of a file has the path ``name#2``, and the file is its group if it has none.
    outcomes : one outcome per record.
    preprocessing : the preprocessing with the range of deep images.
    traits : file of `udc_model.data.quality.traits`, one item per scratch row.
    """

    records: list[ImageRecord]
    outcomes: list[Outcome]
    preprocessing: Preprocessing
    traits: Path


class _File(NamedTuple):
    """A file to decode: the numbers of the frames that are needed, from 0, and their scratch rows."""

    path: str
    numbers: tuple[int, ...]
    rows: tuple[int, ...]

    def only(self, condition: Callable[[int, int], bool]) -> _File:
        """Reduce to the frames whose number and row fulfil a condition."""
        pairs = [pair for pair in zip(self.numbers, self.rows, strict=True) if condition(*pair)]
        return _File(self.path, tuple(number for number, _ in pairs), tuple(row for _, row in pairs))


def check_images(source: ImageSource, preprocessing: Preprocessing, params: DataParams, scratch: Scratch) -> Audit:
    """Decode every image of a source and write its prepared image, and what is measured of it, to ``scratch``.

    Parameters
    ----------
    source : the images to check.
    preprocessing : defines the prepared image.
    params : section ``data``, of which ``intensity`` applies here.
    scratch : gets the images. Those of files that it has already are not read again.

    Raises
    ------
    UdcError
        Too many worker processes were killed, or deep images have no range.
    """
    scratch.create()
    limits = fixed_range(params.intensity)
    decoding = replace(preprocessing.decoding, intensity=limits, dicom_windows=params.intensity == "auto")
    task = _Task(source.root, replace(preprocessing, decoding=decoding), scratch, needs_range=limits is None)
    if source.pixels is not None:
        frames = (Frame(Image.fromarray(pixels)) for pixels in source.pixels)
        stored = []
        with scratch.writer() as writer:
            for row, (record, frame) in enumerate(zip(source.records, frames, strict=True)):
                stored.append(_outcome(record, scratch.keep(task.store(frame, row, writer, SourceFile()), False)))
                scratch.flush()
        return Audit(source.records, stored, task.preprocessing, scratch.traits)
    files = [_File(record.path, _FIRST, (row,)) for row, record in enumerate(source.records)]
    results: dict[int, _Result] = {}
    totals = task.run("checking images", task.without_found(files, results), results)
    records, rows = source.records, list(range(len(files)))
    if totals:
        records, rows, files = _expanded(source.records, totals)
        later = [file.only(lambda number, row: number > 0) for file in files if len(file.rows) > 1]
        task.run("checking frames", later, results)
    if task.needs_range and any(isinstance(result, DeepValues) for result in results.values()):
        parts = (file.only(lambda _, row: isinstance(results[row], DeepValues)) for file in files)
        deep = [file for file in parts if file.rows]
        task = task.with_range(params.intensity, deep, [results[row] for file in deep for row in file.rows])
        task.run("decoding deep images", deep, results)
    outcomes = [_outcome(record, results[row]) for record, row in zip(records, rows, strict=True)]
    n_reduced = sum(isinstance(outcome, Checked) and outcome.is_reduced for outcome in outcomes)
    if n_reduced:
        logger.info("converted %s colour image(s) to grey, because num_channels of the model is 1", f"{n_reduced:,}")
    return Audit(records, outcomes, task.preprocessing, scratch.traits)


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
    """What worker processes do with a file.

    Attributes
    ----------
    needs_range : deep images are only measured.
    has_common_range : the range of deep images follows from all of them, so an image depends on other files too.
    """

    root: Path
    preprocessing: Preprocessing
    scratch: Scratch
    needs_range: bool
    has_common_range: bool = False

    def without_found(self, files: Sequence[_File], results: dict[int, _Result]) -> list[_File]:
        """The files that have to be read; ``results`` gets those of the others, by scratch row."""
        remaining = []
        for file in files:
            found = self.scratch.find(self.root / file.path)
            if found is None:
                remaining.append(file)
            else:
                results[file.rows[0]] = found
        if len(remaining) < len(files):
            logger.info("%s of %s files are not read again: they did not change since they were prepared",
                        f"{len(files) - len(remaining):,}", f"{len(files):,}")  # fmt: skip
        return remaining

    def run(self, title: str, files: Sequence[_File], results: dict[int, _Result]) -> dict[int, int]:
        """Check files in worker processes.

        Parameters
        ----------
        title : title of the progress bar.
        results : gets the result of each frame, by scratch row.

        Returns
        -------
        The number of frames of each file that has several, by the row of its first one.
        """
        totals: dict[int, int] = {}
        done = iter(files)
        with tqdm(total=len(files), desc=title, unit="img", disable=None) as bar:
            for part in run_in_workers(self.check, files, _killed, number_of_workers(len(files))):
                for (frames, total), file in zip(part, done, strict=False):
                    is_file = total == 1 and file.numbers == _FIRST and not self.has_common_range
                    results.update(zip(file.rows, (self.scratch.keep(each, is_file) for each in frames), strict=True))
                    if total > 1:
                        totals[file.rows[0]] = total
                self.scratch.flush()
                bar.update(len(part))
        return totals

    def check(self, files: Iterable[_File]) -> list[tuple[list[Any], int]]:
        """Decode frames; return their results, and the number of frames of interest, for each file."""
        with self.scratch.writer() as writer:
            return [self._check(file, writer) for file in files]

    def _check(self, file: _File, writer: Writer) -> tuple[list[Any], int]:
        results: list[Any] = []
        total, source = 1, self.scratch.source_file(self.root / file.path)
        try:
            for row, frame in self._frames(file, source.content):
                total = frame.total if self.preprocessing.decoding.frames == "each" else 1
                results.append(self.store(frame, row, writer, source))
        except BadImageError as error:
            reason = str(error)
        except MemoryError:
            reason = "the image does not fit into memory; lower data.max_pixels"
        else:
            reason = "damaged: the frame is missing"
        return results + [Rejection(file.path, reason)] * (len(file.rows) - len(results)), total

    def _frames(self, file: _File, content: bytes | None = None) -> Iterator[tuple[int, Frame]]:
        """Decode the frames of a file that are needed; yields them with their scratch rows."""
        needed = dict(zip(file.numbers, file.rows, strict=True))
        name = file.path.rpartition("/")[2]
        frames = decode_frames(self.root / file.path if content is None else content, self.preprocessing.decoding, name)
        for number, frame in enumerate(frames):
            if number in needed:
                yield needed.pop(number), frame
            if not needed:
                break

    def store(self, frame: Frame, row: int, writer: Writer, source: SourceFile) -> Any:
        """Write a frame of a file, or measure the range of a deep one (`DeepValues`)."""
        if frame.deep is not None and self.needs_range:
            return DeepValues.of(frame.deep)
        decoding = self.preprocessing.decoding
        decoded = frame.to_image(decoding.intensity)
        image = to_channels(decoded, decoding.channels)
        pixels, stored = pixels_of(image), self.preprocessing.stored_image(image)
        prepared = pixels if stored is image else pixels_of(stored)
        traits = measure(pixels, stored, frame.facts, source.n_bytes)
        digest = hashlib.sha256(b"%d x %d:" % image.size)
        digest.update(pixels.data)
        is_reduced = image is not decoded and image.mode == "L" and _has_colours(decoded)
        form = frame.facts.form if frame.deep is None else ""
        checked = Checked(*image.size, digest.hexdigest(), row, is_reduced)
        return writer(checked, Decoded(image, prepared, traits, source, form))

    def with_range(
        self, intensity: Literal["auto"] | IntensityRange, deep: Sequence[_File], measured: Iterable[_Result]
    ) -> _Task:
        """Choose the range of deep files from their measured values; returns the task that decodes them with it."""
        values = DeepValues.union([result for result in measured if isinstance(result, DeepValues)])
        if intensity == "auto":
            limits, reason = automatic_range(values)
        else:
            limits, reason = percentile_range(intensity, values, _Histogram(self, values).of(deep))
        logger.info("data.intensity: in %s file(s) with more than 8 bits, %g becomes black and %g white (%s)",
                    f"{len(deep):,}", *limits, reason)  # fmt: skip
        decoding = replace(self.preprocessing.decoding, intensity=limits)
        preprocessing = replace(self.preprocessing, decoding=decoding)
        return replace(self, preprocessing=preprocessing, needs_range=False, has_common_range=True)


@dataclass(frozen=True)
class _Histogram:
    """Counts the values of deep files, in worker processes."""

    task: _Task
    values: DeepValues

    def of(self, files: Sequence[_File]) -> NDArray[np.int64]:
        """Return the histogram of all files."""
        counts = self.values.empty_histogram()
        processes = number_of_workers(len(files))
        for part in run_in_workers(self, files, lambda file: self.values.empty_histogram(), processes):
            counts += part
        return counts

    def __call__(self, files: Iterable[_File]) -> NDArray[np.int64]:
        counts = self.values.empty_histogram()
        for file in files:
            for _, frame in self.task._frames(file):
                if frame.deep is not None:
                    counts += self.values.histogram(frame.deep)
        return counts


def _killed(file: _File) -> list[tuple[list[_Result], int]]:
    return [([Rejection(file.path, _KILLED)] * len(file.rows), 1)]


def _has_colours(image: Image.Image) -> bool:
    from PIL import ImageChops

    red, green, blue = image.split()
    return any(ImageChops.difference(red, channel).getbbox() is not None for channel in (green, blue))


def _expanded(
    records: Sequence[ImageRecord], totals: dict[int, int]
) -> tuple[list[ImageRecord], list[int], list[_File]]:
    """Make every frame an image.

    Parameters
    ----------
    records : one record per file; its position is the scratch row of the first frame.
    totals : number of frames of the files with several, by position.

    Returns
    -------
    Record and scratch row of each image, and the files with all their frames.
    """
    images: list[ImageRecord] = []
    files: list[_File] = []
    next_row = len(records)
    for row, record in enumerate(records):
        total = totals.get(row, 1)
        files.append(_File(record.path, tuple(range(total)), (row, *range(next_row, next_row + total - 1))))
        next_row += total - 1
        if total == 1:
            images.append(record)
        else:
            group = record.group or record.path
            images += [replace(record, path=f"{record.path}#{k}", group=group) for k in range(1, total + 1)]
    return images, [row for file in files for row in file.rows], files


def _outcome(record: ImageRecord, result: _Result) -> Outcome:
    """Return the outcome of an image; a rejection gets the path of the frame."""
    assert not isinstance(result, DeepValues)
    return replace(result, path=record.path) if isinstance(result, Rejection) else result
