"""Walks a folder: separates images from everything else, with a reason for each file that is left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from udc_model.data.formats import HEAD_BYTES, SUFFIXES, conversion_advice, image_format
from udc_model.data.source_record import RECORD
from udc_model.data.sources.records import LeftOut, Rejection

SYSTEM_FILE = "hidden or system file"
NOT_AN_IMAGE = "not an image"
_MAX_DEPTH = 64  # folders in folders
_SYSTEM_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin",
                           "system volume information"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that may be an image."""

    path: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is searched."""

    path: str


Entry = ImageFile | Folder | Rejection | LeftOut


@dataclass
class Listing:
    """The contents of a folder; all paths are relative to it, use ``/`` and are sorted.

    Attributes
    ----------
    images : files that may be images, by their suffix or, if that is no image's, by their first bytes.
    folders : folders at any depth, except those left out.
    rejected : images that cannot be used.
    left_out : other files, and folders that are not searched.
    others : the files among ``left_out`` that are no system files.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def others(self) -> list[str]:
        """The files among ``left_out`` that are no system files: tables, texts, …"""
        return [item.path for item in self.left_out if item.reason == NOT_AN_IMAGE]


def list_folder(root: Path) -> Listing:
    """List a folder and all folders below it; links to folders are followed.

    A folder that cannot be read or that contains itself by a link is among the rejected paths.
    """
    listing = Listing()
    for entry in walk_folder(root):
        match entry:
            case ImageFile(path):
                listing.images.append(path)
            case Folder(path):
                listing.folders.append(path)
            case Rejection():
                listing.rejected.append(entry)
            case LeftOut():
                listing.left_out.append(entry)
    for paths in (listing.images, listing.folders):
        paths.sort()
    listing.rejected.sort(key=lambda item: item.path)
    listing.left_out.sort(key=lambda item: item.path)
    return listing


def walk_folder(root: Path) -> Iterator[Entry]:
    """Yield what `list_folder` lists, files by path; in memory are the names in one folder and in those above it."""
    yield from _walk(root, "", {_identity(root)})


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _walk(folder: Path, prefix: str, ancestors: set[tuple[int, int]]) -> Iterator[Entry]:
    """Walk one folder; ``prefix`` is its path with ``/`` at the end, or empty."""
    if prefix.count("/") > _MAX_DEPTH:
        yield Rejection(prefix[:-1], f"more than {_MAX_DEPTH} folders in folders")
        return
    try:
        with os.scandir(folder) as entries:
            # with / at the end of folders, the names sort as the complete paths do
            found = sorted((f"{entry.name}/", False) if _is_folder(entry) else (entry.name, _is_regular(entry))
                           for entry in entries)  # fmt: skip
    except OSError as error:
        yield Rejection(prefix[:-1], f"the folder cannot be read: {error.strerror}")
        return
    for entry, is_regular in found:
        name = entry.rstrip("/")
        path = prefix + name
        if name == RECORD:
            continue
        if name.startswith(".") or name.casefold() in _SYSTEM_NAMES:
            yield LeftOut(path, SYSTEM_FILE)
        elif entry != name:
            identity = _identity(folder / name)
            if identity in ancestors:
                yield Rejection(path, "is a link to a folder that contains it; remove the link")
                continue
            yield Folder(path)
            yield from _walk(folder / name, f"{path}/", ancestors | {identity})
        elif is_regular and _has_image_suffix(path) and is_utf8(path):
            yield ImageFile(path)  # the decoder checks the contents
        else:
            yield _classified(folder / name, path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file or a link to one; of a file, the folder says so, and it is not asked itself."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _has_image_suffix(path: str) -> bool:
    return f".{path.rpartition('.')[2].lower()}" in SUFFIXES


def _classified(file: Path, path: str) -> Entry:
    """What a file is that is no regular file with a readable name and the suffix of an image."""
    try:
        mode = file.stat().st_mode
    except OSError:
        if _has_image_suffix(path):  # probably lost: an image that DVC did not check out
            return Rejection(path, "is a link to a file that does not exist")
        return LeftOut(path, "link to a file that does not exist")
    if not stat.S_ISREG(mode):
        return LeftOut(path, "socket, pipe or device")
    if not is_utf8(path):
        return Rejection(path, "its name is not UTF-8; rename it")
    return _classified_by_contents(file, path)


def _classified_by_contents(file: Path, path: str) -> Entry:
    try:
        with file.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError as error:
        return Rejection(path, f"the file cannot be opened: {error.strerror}")
    advice = conversion_advice(head, path)
    if advice is not None:
        return Rejection(path, advice)
    return ImageFile(path) if image_format(head) is not None else LeftOut(path, NOT_AN_IMAGE)


def is_utf8(path: str) -> bool:
    """Whether a path, as Python decodes those of the system, is UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
