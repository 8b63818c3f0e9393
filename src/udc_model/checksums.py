"""Checksums of the files of a folder, stored in it: they reveal damaged bytes and files that do not belong together.

Folders of earlier versions have none and are read without this check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from udc_model.errors import UdcError
from udc_model.files import sha256_of
from udc_model.records import Record, read_record

CHECKSUMS = "checksums.json"
_MAX_BYTES = 2**16
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Checksums(Record):
    sha256: Annotated[dict[str, Sha256], Field(max_length=100)]


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Write ``checksums.json`` with the SHA-256 of some files of a folder."""
    digests = {name: sha256_of(folder / name) for name in names}
    (folder / CHECKSUMS).write_text(json.dumps({"sha256": digests}, indent=2) + "\n", encoding="utf-8")


def read_checksums(folder: Path, advice: str) -> dict[str, str]:
    """The SHA-256 of files by name; empty if the folder is of an earlier version.

    Raises
    ------
    UdcError
        ``checksums.json`` is damaged; the message ends with ``advice``.
    """
    path = folder / CHECKSUMS
    if not path.is_symlink() and not path.exists():
        return {}
    return read_record(path, _Checksums, advice, _MAX_BYTES).sha256


def check_contents(path: Path, contents: bytes, checksums: Mapping[str, str], advice: str) -> None:
    """Check the contents of a file against the checksum of its name, if there is one.

    Raises
    ------
    UdcError
        They differ; the message ends with ``advice``.
    """
    if path.name in checksums:
        check_digest(path, hashlib.sha256(contents).hexdigest(), checksums, advice)


def check_digest(path: Path, digest: str, checksums: Mapping[str, str], advice: str) -> None:
    """Check the SHA-256 of a file's contents, as `check_contents`."""
    if checksums.get(path.name, digest) != digest:
        raise UdcError(f"{path}: differs from its checksum in {CHECKSUMS}: the file was damaged or changed; {advice}")
