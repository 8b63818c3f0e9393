"""Checksums of the files of a folder, stored in it: they reveal damaged bytes and files that do not belong together.

Folders of earlier versions have none and are read without this check.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from udc_model.errors import UdcError
from udc_model.records import Record, read_record

CHECKSUMS = "checksums.json"
_MAX_BYTES = 2**16
_MAX_FILES = 100
_SHA256 = "[0-9a-f]{64}"
Sha256 = Annotated[str, Field(pattern=f"^{_SHA256}$")]
_Crc32 = Annotated[int, Field(ge=0, lt=2**32)]


class Checksums(Record):
    """Checksums of files by name; a folder of an earlier version has none, or no CRC-32.

    The SHA-256 identifies the contents. The CRC-32, of the contents followed by their SHA-256, is what is compared when
    a file is read: it takes a third of the time and finds every damage of at most 32 bits in a row.
    """

    sha256: Annotated[dict[str, Sha256], Field(max_length=_MAX_FILES)] = Field(default_factory=dict)
    crc32: Annotated[dict[str, _Crc32], Field(max_length=_MAX_FILES)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _same_names(self) -> Checksums:
        if self.crc32 and self.crc32.keys() != self.sha256.keys():
            raise ValueError("crc32 and sha256: must have the same names")
        return self

    def check(self, path: Path, contents: bytes, advice: str) -> None:
        """Compare the contents of a file with the checksum of its name, if there is one.

        Raises
        ------
        UdcError
            They differ; the message ends with ``advice``.
        """
        sha256, crc32 = self.sha256.get(path.name), self.crc32.get(path.name)
        if sha256 is None:
            return
        if crc32 is None:
            is_equal = hashlib.sha256(contents).hexdigest() == sha256
        else:
            is_equal = _crc32(contents, sha256) == crc32
        if not is_equal:
            raise UdcError(f"{path}: differs from its checksum in {CHECKSUMS}: the file was damaged or changed; "
                           f"{advice}")  # fmt: skip


def check_cached_blob(path: Path, sha256: str, what: str = "") -> None:
    """Check a file of a cache of Hugging Face, whose large files are links to a file with their SHA-256 as its name.

    Parameters
    ----------
    path : of any file.
    sha256 : that it has.
    what : beginning of the message.

    Raises
    ------
    UdcError
        The file is stored under another SHA-256: it is damaged.
    """
    stored_as = path.resolve().name
    if path.is_symlink() and re.fullmatch(_SHA256, stored_as) and sha256 != stored_as:
        raise UdcError(f"{what}{path} is damaged or incomplete (its SHA-256 is {sha256}, not {stored_as}); "
                       f"remove {path.resolve()} and fetch it again")  # fmt: skip


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Write ``checksums.json`` with the checksums of some files of a folder."""
    sha256: dict[str, str] = {}
    crc32: dict[str, int] = {}
    for name in names:
        contents = (folder / name).read_bytes()
        sha256[name] = hashlib.sha256(contents).hexdigest()
        crc32[name] = _crc32(contents, sha256[name])
    (folder / CHECKSUMS).write_text(json.dumps({"sha256": sha256, "crc32": crc32}, indent=2) + "\n", encoding="utf-8")


def _crc32(contents: bytes, sha256: str) -> int:
    return zlib.crc32(sha256.encode(), zlib.crc32(contents))


def read_checksums(folder: Path, advice: str) -> Checksums:
    """The checksums of a folder's files; none if the folder is of an earlier version.

    Raises
    ------
    UdcError
        ``checksums.json`` is damaged; the message ends with ``advice``.
    """
    path = folder / CHECKSUMS
    if not path.is_symlink() and not path.exists():
        return Checksums()
    return read_record(path, Checksums, advice, _MAX_BYTES)
