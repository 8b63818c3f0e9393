"""Walks a folder: separates images from everything else, with a reason for each file that is left out."""

from __future__ import annotations

import os
import stat
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
    _list(root, "", {_identity(root)}, listing)
    for paths in (listing.images, listing.folders):
        paths.sort()
    listing.rejected.sort(key=lambda item: item.path)
    listing.left_out.sort(key=lambda item: item.path)
    return listing


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _list(folder: Path, prefix: str, ancestors: set[tuple[int, int]], listing: Listing) -> None:
    """List one folder; ``prefix`` is its path with ``/`` at the end, or empty."""
    if prefix.count("/") > _MAX_DEPTH:
        listing.rejected.append(Rejection(prefix[:-1], f"more than {_MAX_DEPTH} folders in folders"))
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        listing.rejected.append(Rejection(prefix[:-1], f"the folder cannot be read: {error.strerror}"))
        return
    for entry in found:
        path = prefix + entry.name
        if entry.name == RECORD:
            continue
        if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_NAMES:
            listing.left_out.append(LeftOut(path, SYSTEM_FILE))
        elif _is_folder(entry):
            identity = _identity(Path(entry.path))
            if identity in ancestors:
                listing.rejected.append(Rejection(path, "is a link to a folder that contains it; remove the link"))
                continue
            listing.folders.append(path)
            _list(Path(entry.path), f"{path}/", ancestors | {identity}, listing)
        else:
            _classify(entry, path, listing)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _classify(entry: os.DirEntry[str], path: str, listing: Listing) -> None:
    """Add one file to a list by what it is; only regular files are opened."""
    has_image_suffix = f".{path.rpartition('.')[2].lower()}" in SUFFIXES
    try:
        mode = entry.stat().st_mode
    except OSError:
        if has_image_suffix:  # probably lost: an image that DVC did not check out
            listing.rejected.append(Rejection(path, "is a link to a file that does not exist"))
        else:
            listing.left_out.append(LeftOut(path, "link to a file that does not exist"))
        return
    if not stat.S_ISREG(mode):
        listing.left_out.append(LeftOut(path, "socket, pipe or device"))
    elif not _is_utf8(path):
        listing.rejected.append(Rejection(path, "its name is not UTF-8; rename it"))
    elif has_image_suffix:
        listing.images.append(path)  # the decoder checks the contents
    else:
        _classify_by_contents(entry.path, path, listing)


def _classify_by_contents(file: str, path: str, listing: Listing) -> None:
    try:
        with Path(file).open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError as error:
        listing.rejected.append(Rejection(path, f"the file cannot be opened: {error.strerror}"))
        return
    advice = conversion_advice(head, path)
    if advice is not None:
        listing.rejected.append(Rejection(path, advice))
    elif image_format(head) is not None:
        listing.images.append(path)
    else:
        listing.left_out.append(LeftOut(path, NOT_AN_IMAGE))


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
