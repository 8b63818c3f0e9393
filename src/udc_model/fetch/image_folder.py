"""Writes labelled images as a folder that ``data.source: auto`` reads: class folders, inside split folders if any."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from udc_model.errors import UdcError
from udc_model.files import size_text

_MAX_CLASSES = 10_000
_MAX_NAME = 100  # characters of a class folder; file systems allow 255 bytes


class ImageFolderWriter:
    """Writes images below a folder and counts them.

    File names contain nothing of the source but the characters that :func:`safe_name` leaves, so no file lies outside
    of the folder.

    Attributes
    ----------
    images : number of images by split; the key is ``all`` for a data set without splits.
    renamed : class folders whose name differs from the name of the class.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, int] = {}
        self.renamed: dict[str, str] = {}
        self._class_of: dict[str, str] = {}  # by the class folder's name in lower case
        self._folder_of: dict[str, str] = {}
        self._lines: list[str] = []

    @property
    def classes(self) -> list[str]:
        """Names of the class folders, sorted."""
        return sorted(self._folder_of.values())

    @property
    def digest(self) -> str:
        """SHA-256 over path and content of all images."""
        return hashlib.sha256("\n".join(sorted(self._lines)).encode()).hexdigest()

    def add(self, split: str | None, label: str, name: str, content: bytes) -> None:
        """Write one image.

        Parameters
        ----------
        split : split folder; None for a data set without splits.
        label : name of the class, as the source has it.
        name : file name; unsafe characters are replaced.
        content : bytes of the image file.

        Raises
        ------
        UdcError
            Two classes, or two images of one class, would have the same path, there are too many classes, or the file
            cannot be written.
        """
        relative = "/".join([*([split] if split else []), self._class_folder(label), safe_name(name)])
        path = self.folder / relative
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as handle:
                handle.write(content)
        except FileExistsError:
            raise UdcError(f"{relative}: two images have this path; the data set cannot be written as files") from None
        except OSError as error:  # a full disk is no damage of the source
            raise UdcError(f"{path}: cannot be written: {error.strerror}") from None
        self._lines.append(f"{relative} {hashlib.sha256(content).hexdigest()}")
        self.images[split or "all"] = self.images.get(split or "all", 0) + 1

    def _class_folder(self, label: str) -> str:
        if label in self._folder_of:
            return self._folder_of[label]
        if len(self._folder_of) == _MAX_CLASSES:
            raise UdcError(f"more than {_MAX_CLASSES:,} classes; the labels are probably not classes")
        folder = safe_name(label)
        taken_by = self._class_of.setdefault(folder.casefold(), label)  # file systems of macOS ignore case
        if taken_by != label:
            raise UdcError(f"the classes {taken_by!r} and {label!r} would both be the folder {folder!r}")
        if folder != label:
            self.renamed[folder] = label
        self._folder_of[label] = folder
        return folder


def safe_name(name: str) -> str:
    """A name as one visible part of a path: separators and characters that file systems refuse become ``_``.

    Raises
    ------
    UdcError
        Nothing would remain of the name, or it is too long.
    """
    safe = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name).strip()
    safe = re.sub(r"^\.+|[. ]+$", "_", safe)
    if not safe.strip("_"):
        raise UdcError(f"the name {name!r} cannot be the name of a file or folder")
    if len(safe.encode()) > _MAX_NAME * 2 or len(safe) > _MAX_NAME:
        raise UdcError(f"the name {name[:40]!r}… has more than {_MAX_NAME} characters")
    return safe


def png(image: Image.Image) -> bytes:
    """An image as PNG, which is lossless."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def check_disk(folder: Path, needed: int, name: str) -> None:
    """Raise :class:`UdcError` if fewer than ``needed`` bytes are free where ``folder`` is or will be."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UdcError(f"{name}: needs {size_text(needed)}, but {existing} has {size_text(free)} free; "
                       "make room, or choose another disk")  # fmt: skip


def description(name: str, revision: str, url: str, licence: str | None, writer: ImageFolderWriter,
                files: dict[str, str], **others: Any) -> dict[str, Any]:  # fmt: skip
    """The record of a fetched data set. It contains no time and no path, so that the same data gives the same bytes."""
    return {
        "name": name, "revision": revision, "url": url, "license": licence, "images": writer.images,
        "classes": writer.classes, "renamed_classes": writer.renamed, **others, "files": files,
        "digest": writer.digest,
    }  # fmt: skip
