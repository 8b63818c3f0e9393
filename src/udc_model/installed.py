"""The installed package: its version, a digest of its code, what pip installs it from; and which one a project uses."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field

import udc_model
from udc_model.errors import UdcError
from udc_model.records import Record, read_record

DISTRIBUTION = "udc-model"
PIN = Path("udc.json")  # in a project; the stages of its dvc.yaml depend on version and code
_CODE = (".py", ".c", ".h")
_DIGITS = 16  # of a digest
_MAX_BYTES = 2**16  # of a pin


@dataclass(frozen=True)
class Installed:
    """A version of this package.

    Parameters
    ----------
    version : as ``0.2.0``.
    code : digest of its Python and C code: two states of a source tree may have the same version.
    """

    version: str
    code: str

    def __str__(self) -> str:
        return f"{DISTRIBUTION} {self.version} (code {self.code})"


class Pin(Record):
    """The version of this package that a project uses, and the digests of the files that ``udc init`` wrote."""

    version: Annotated[str, Field(max_length=100)]
    code: Annotated[str, Field(max_length=100)]
    files: Annotated[dict[str, str], Field(default_factory=dict)]

    @property
    def installed(self) -> Installed:
        """The version that was installed."""
        return Installed(self.version, self.code)


@cache
def installed() -> Installed:
    """The version of this package that is running."""
    package = Path(udc_model.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in _CODE):
        digest.update(f"{path.relative_to(package).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
                      .encode())  # fmt: skip
    return Installed(_version(), digest.hexdigest()[:_DIGITS])


def read_pin(folder: Path) -> Pin | None:
    """The pin of the project in a folder; None if it has none, as the repository of this package."""
    path = folder / PIN
    if not path.exists():
        return None
    return read_record(path, Pin, "restore it (git checkout udc.json)", _MAX_BYTES)


def check_pin(folder: Path = Path()) -> None:
    """Check that the project in a folder, if it has a pin, uses the installed version of this package.

    Raises
    ------
    UdcError
        It uses another one. Results of two versions would be mixed, and DVC would not notice.
    """
    pin = read_pin(folder)
    if pin is not None and pin.installed != installed():
        raise UdcError(f"{PIN}: this project uses {pin.installed}, but {installed()} is installed; `udc upgrade` moves "
                       "the project to it, or install the other one (make setup)")  # fmt: skip


def requirement() -> str:
    """What pip installs to get this version: a release, or the wheel, archive, repository or folder it came from.

    No user, password, query or fragment of an address is in it.
    """
    if (tree := _source_tree()) is not None:
        return f"{DISTRIBUTION} @ {tree.as_uri()}"
    try:
        origin = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        origin = None
    return _direct_requirement(json.loads(origin)) if origin else f"{DISTRIBUTION}=={_version()}"


def _direct_requirement(origin: dict[str, Any]) -> str:
    """The requirement of a ``direct_url.json`` (PEP 610)."""
    parts = urlsplit(origin["url"])
    host = parts.netloc.rpartition("@")[2]
    vcs = origin.get("vcs_info")
    if vcs and parts.scheme == "ssh" and parts.username:
        host = f"{parts.username}@{host}"  # the name of an account of the server, as git
    url = urlunsplit((parts.scheme, host, quote(parts.path, safe="/%:@+~,="), "", ""))
    subdirectory = f"#subdirectory={origin['subdirectory']}" if origin.get("subdirectory") else ""
    if vcs:
        return f"{DISTRIBUTION} @ {vcs['vcs']}+{url}@{vcs['commit_id']}{subdirectory}"
    return f"{DISTRIBUTION} @ {url}{subdirectory}"


def _version() -> str:
    if (tree := _source_tree()) is not None:
        return str(tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    return version(DISTRIBUTION)


@cache
def _source_tree() -> Path | None:
    """The folder with ``pyproject.toml`` from which the code runs, as in an editable installation; None otherwise."""
    package = Path(udc_model.__file__).resolve().parent
    tree = package.parents[1]
    file = tree / "pyproject.toml"
    is_tree = package.parent.name == "src" and file.is_file()
    return tree if is_tree and re.search(rf'^name = "{DISTRIBUTION}"$', file.read_text("utf-8"), re.MULTILINE) else None
