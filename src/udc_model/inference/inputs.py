"""Lists images to decide: files, folders, standard input, and lists of paths."""

from __future__ import annotations

import os
import re
import stat
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import cast

from udc_model.data.formats import SUFFIXES
from udc_model.data.sources.listing import ImageFile, walk_folder
from udc_model.data.sources.records import Rejection, printable
from udc_model.data.sources.shards import ShardMember
from udc_model.errors import UdcError

STDIN = "-"
_MAX_BYTES = 256 * 2**20  # of an image from standard input or another stream, whose size is not known before
_MAX_PATH = 32 * 1024  # bytes of a line in a list of paths
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class ImageInput:
    """An image to decide.

    Parameters
    ----------
    name : path, or ``-`` for standard input.
    source : path of the file, place in a shard, or the encoded image.
    """

    name: str
    source: Path | ShardMember | bytes


@dataclass(frozen=True)
class BadInput:
    """An input that is no image; ``reason`` says why, without the name."""

    name: str
    reason: str

    def __str__(self) -> str:
        """One line, without characters that control a terminal."""
        return f"{printable(self.name)}: {self.reason}"


Input = ImageInput | BadInput


def list_inputs(paths: Sequence[str], list_file: str | None = None) -> Iterator[Input]:
    """The images of files, folders and a list of paths, one after the other.

    Parameters
    ----------
    paths : files, folders, whose images are listed by path, or ``-`` for an image on standard input. The images of
        folders, and paths that are given twice, are listed once.
    list_file : file with one path per line, or between null characters (``find -print0``); ``-`` is standard input.

    Raises
    ------
    UdcError
        There is no input, standard input is needed twice, or the list cannot be read.
    """
    if not paths and list_file is None:
        raise UdcError("nothing to decide: name images or folders, - for standard input, or --from-list FILE")
    if [*paths, list_file].count(STDIN) > 1:
        raise UdcError("- (standard input) is given twice")
    return _inputs(paths, None if list_file is None else listed_paths(list_file))


def _inputs(paths: Sequence[str], listed: Iterable[str] | None) -> Iterator[Input]:
    seen: set[str] = set()
    for path in paths:
        for image in _stdin() if path == STDIN else inputs_at(path):
            if image.name not in seen:
                seen.add(image.name)
                yield image
    for path in listed or ():
        yield from inputs_at(path)


def _stdin() -> Iterator[Input]:
    yield _read_stream(STDIN, cast(BufferedReader, sys.stdin.buffer))


def inputs_at(path: str) -> Iterator[Input]:
    """The image of a file, or those of a folder, one after the other."""
    if _URL.match(path):
        yield BadInput(path, "is a URL; download it first (curl -LO URL), then predict the file")
        return
    file = Path(path)
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        yield BadInput(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}")
        return
    if stat.S_ISDIR(mode):
        is_empty = True
        for image in _in_folder(file):
            is_empty = False
            yield image
        if is_empty:
            yield BadInput(path, "no images in this folder")
    elif not stat.S_ISREG(mode):
        try:
            with file.open("rb") as stream:
                yield _read_stream(path, stream)
        except OSError as error:
            yield BadInput(path, f"cannot be opened: {error.strerror}")
    elif advice := _unpack_advice(file):
        yield BadInput(path, advice)
    else:
        yield ImageInput(str(file), file)


def _in_folder(folder: Path) -> Iterator[Input]:
    """The images below a folder by path, by the same rules as in a data set."""
    for entry in walk_folder(folder):
        if isinstance(entry, ImageFile):
            yield ImageInput(str(folder / entry.path), folder / entry.path)
        elif isinstance(entry, Rejection):
            yield BadInput(str(folder / entry.path), entry.reason)


def _unpack_advice(path: Path) -> str | None:
    """How to unpack a file that is an archive; None if it is not."""
    if path.suffix.lower() in SUFFIXES:
        return None
    try:
        if zipfile.is_zipfile(path):
            return f"is a zip archive; unpack it first (unzip {path} -d FOLDER), then predict the folder"
        if tarfile.is_tarfile(path):
            return f"is a tar archive; unpack it first (tar -xf {path} -C FOLDER), then predict the folder"
    except (OSError, tarfile.TarError, EOFError, ValueError):
        pass  # decoding gives the reason
    if re.search(r"\.(7z|rar|gz|bz2|xz|zst)$", path.name, re.IGNORECASE):
        return "is a compressed file; unpack it first, then predict its images"
    return None


def _read_stream(name: str, stream: BufferedReader) -> Input:
    """The image on a stream, whose size is bounded."""
    try:
        data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        return BadInput(name, f"cannot be read: {error.strerror}")
    if len(data) > _MAX_BYTES:
        return BadInput(name, f"has more than {_MAX_BYTES // 2**20} MiB; write it to a file and predict that")
    return ImageInput(name, data)


def listed_paths(file: str) -> Iterator[str]:
    """The paths in a list, one after the other; they are relative to the current folder."""
    try:
        # _paths_of closes it
        stream = cast(BufferedReader, sys.stdin.buffer) if file == STDIN else Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise UdcError(f"--from-list {file}: cannot be read: {error.strerror}") from None
    return _paths_of(stream, file)


def _paths_of(stream: BufferedReader, file: str) -> Iterator[str]:
    with stream:
        try:
            for number, part in enumerate(_parts(stream), 1):
                if len(part) >= _MAX_PATH:
                    raise UdcError(f"--from-list {file}: path {number} has more than {_MAX_PATH // 1024} KiB")
                if part:
                    yield os.fsdecode(part)
        except OSError as error:
            raise UdcError(f"--from-list {file}: cannot be read: {error.strerror}") from None


def _parts(stream: BufferedReader) -> Iterator[bytes]:
    """The lines of a stream, or the parts between null characters if its beginning has one."""
    rest, separator = b"", b""
    while chunk := stream.read1(_MAX_PATH):
        separator = separator or (b"\0" if b"\0" in chunk else b"\n")
        *parts, rest = (rest + chunk).split(separator)
        yield from parts if separator == b"\0" else (part.rstrip(b"\r") for part in parts)
        if len(rest) >= _MAX_PATH:
            break
    yield rest if len(rest) >= _MAX_PATH else rest.rstrip(b"\r\n")
