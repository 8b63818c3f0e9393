"""Fetches a data set into a folder of the project and lets DVC track it; the folder is complete or absent."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from udc_model.data.source_record import RECORD
from udc_model.errors import UdcError, one_line
from udc_model.fetch.huggingface_sets import fetch_huggingface
from udc_model.fetch.image_folder import check_disk, safe_name
from udc_model.fetch.torchvision_sets import fetch_torchvision
from udc_model.files import atomic_folder, size_text

if TYPE_CHECKING:
    from dvc.repo import Repo

logger = logging.getLogger(__name__)

RAW = Path("data/raw")
_SCHEMES = ("s3", "gs", "https", "http", "remote")
_DISK = 2  # bytes on disk for each byte imported: DVC's cache and the project
_SECRET = re.compile(r"(signature|credential|token|secret|password|api_?key|\bsig)=", re.IGNORECASE)
_LOUD = ("gcsfs", "s3fs", "aiobotocore", "botocore", "fsspec", "asyncio")  # log tracebacks of failed requests


@dataclass(frozen=True)
class Fetched:
    """A data set in the project: its folder or archive, and what it contains, in words."""

    path: Path
    contents: str


@dataclass(frozen=True)
class Options:
    """Choices within a data set of Hugging Face: configuration, columns of images and labels; None to find them."""

    config: str | None = None
    image: str | None = None
    label: str | None = None


def fetch(name: str, target: Path | None = None, options: Options | None = None) -> Fetched:
    """Fetch a data set and let DVC track it.

    Parameters
    ----------
    name : ``torchvision:NAME``, ``huggingface:NAME[@REVISION]``, or an address that ``dvc import-url`` takes.
    target : folder (file for an archive) to create; default: the last part of the name, in ``data/raw``.

    Raises
    ------
    UdcError
        The name is unknown, the target exists, or the data set cannot be fetched. The target does not exist then.
    """
    options = options or Options()
    kind, _, rest = name.partition(":")
    if kind not in ("torchvision", "huggingface", *_SCHEMES) or not rest:
        raise UdcError(f"{name}: must be torchvision:NAME, huggingface:NAME or an address that begins with "
                       f"{', '.join(f'{scheme}://' for scheme in _SCHEMES)}")  # fmt: skip
    if options != Options() and kind != "huggingface":
        raise UdcError("--config, --image, --label: apply to huggingface:NAME only")
    target = target or RAW / _default_name(name)
    with _repository() as repository:
        _check_target(repository, target)
        if kind in _SCHEMES:
            return _import(repository, name, target)
        with atomic_folder(target) as folder:
            record = (fetch_torchvision(rest, folder) if kind == "torchvision"
                      else fetch_huggingface(rest, folder, options.config, options.image, options.label))  # fmt: skip
            if not record["images"]:
                raise UdcError(f"{name}: has no labelled images")
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (folder / RECORD).write_text(text, encoding="utf-8")
        with _removed_on_error(target):
            repository.add([str(target)])
        return Fetched(target, _contents(record))


def _default_name(name: str) -> str:
    """The last part of a name or address, without a revision."""
    parts = urlsplit(name.partition("@")[0] if name.startswith("huggingface:") else name)
    return safe_name(PurePosixPath(parts.path).name or parts.hostname or "")


def _contents(record: dict[str, Any]) -> str:
    counts = ", ".join(f"{split} {count:,}" for split, count in record["images"].items())
    licence = record["license"] or f"not recorded, see {record['url']}"
    return (f"{sum(record['images'].values()):,} images of {len(record['classes'])} classes ({counts}); revision "
            f"{record['revision']}; licence: {licence}")  # fmt: skip


@contextmanager
def _repository() -> Iterator[Repo]:
    """The DVC repository of the current folder, without DVC's own output; its errors become one line."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repository, redirect_stdout(io.StringIO()), _quiet("dvc"):
            yield repository
    except NotDvcRepoError:
        raise UdcError(f"{Path.cwd()}: is not in a DVC repository; run udc fetch in the project's folder") from None
    except DvcException as error:
        raise UdcError(_with_cause(error)) from None


def _check_target(repository: Repo, target: Path) -> None:
    root = Path(repository.root_dir).resolve()
    if root not in target.resolve().parents:
        raise UdcError(f"--to: {target} is not in the project {root}, so DVC cannot track it")
    if target.exists() or target.is_symlink():
        raise UdcError(f"--to: {target} exists; remove it, or choose another folder with --to")
    if _dvc_file(target).exists():
        raise UdcError(f"--to: {_dvc_file(target)} exists; `dvc pull {target}` restores the data set, or choose "
                       "another folder with --to")  # fmt: skip


def _dvc_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.dvc")


@contextmanager
def _removed_on_error(target: Path) -> Iterator[None]:
    """Remove the target and its ``.dvc`` file if the block does not end well; an interrupt counts."""
    try:
        yield
    except BaseException:
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        _dvc_file(target).unlink(missing_ok=True)
        raise


def _import(repository: Repo, url: str, target: Path) -> Fetched:
    """``dvc import-url``, after checks that DVC does not make: size, free disk, names that leave the folder."""
    parts = urlsplit(url)
    if "@" in parts.netloc or _SECRET.search(parts.query):
        raise UdcError("the address contains a user or a signature, which DVC would write into a file of the repository"
                       "; use a DVC remote (remote://NAME/path), whose credentials stay outside of git")  # fmt: skip
    suffix = PurePosixPath(parts.path).suffix
    if parts.scheme in ("http", "https") and target.suffix != suffix:
        raise UdcError(f"--to: {target} must end in {suffix or 'no suffix'}, as the address, for a file is fetched")
    size, count = _remote_size(repository, url)
    size_of = "unknown size" if size is None else size_text(size)
    logger.info("%s: importing %d file(s), %s", url, count, size_of)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_disk(target, _DISK * (size or 0), url)
    with _removed_on_error(target), _quiet(*_LOUD), _one_line_errors(url):
        repository.imp_url(url, str(target))
    return Fetched(target, f"{count:,} file(s), {size_of}; `dvc update {_dvc_file(target)}` fetches a newer version")


def _remote_size(repository: Repo, url: str) -> tuple[int | None, int]:
    """Total bytes (None if unknown) and number of files at an address.

    Raises
    ------
    UdcError
        There is nothing at the address, it cannot be read, or a name would leave the folder.
    """
    from dvc.fs import parse_external_url

    with _quiet(*_LOUD), _one_line_errors(url):
        filesystem, root = parse_external_url(url, config=repository.config)
        if not filesystem.isdir(root):
            return filesystem.info(root).get("size"), 1
        found = filesystem.find(root, detail=True)
        entries = found.values() if isinstance(found, dict) else [filesystem.info(path) for path in found]
    total = 0
    for entry in entries:
        relative = entry["name"].removeprefix(root).lstrip("/")
        if any(part in ("..", ".", "") for part in relative.split("/")) or "\\" in relative or "\0" in relative:
            raise UdcError(f"{url}: contains the name {relative!r}, which leads out of the folder; nothing was fetched")
        total += entry.get("size") or 0
    if not entries:
        raise UdcError(f"{url}: is empty")
    return total, len(entries)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let libraries log nothing: their errors are raised too, and their tracebacks may contain credentials."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    try:
        yield
    except UdcError:
        raise
    except FileNotFoundError:
        raise UdcError(f"{url}: there is nothing at this address, or it cannot be reached") from None
    except Exception as error:  # of boto, google, aiohttp and DVC
        missing = "; install the extra: pip install 'udc-model[cloud]'" if _is_missing_extra(error) else ""
        raise UdcError(f"{url}: cannot be fetched ({_with_cause(error)}){missing}") from None


def _is_missing_extra(error: Exception) -> bool:
    from dvc.fs import RemoteMissingDepsError

    return isinstance(error, ImportError | RemoteMissingDepsError)


def _with_cause(error: BaseException) -> str:
    """The messages of an error and of its cause."""
    causes = (each for each in (error, error.__cause__) if each is not None)
    return ": ".join(dict.fromkeys(map(one_line, causes)))[:500]
