"""Weights on the Hugging Face hub and in its local cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udc_model.errors import UdcError, one_line
from udc_model.files import sha256_of

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SAFETENSORS = "model.safetensors"
_INDEX = f"{SAFETENSORS}.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_SETTINGS = ("config.json", "preprocessor_config.json")


class UnreachableError(UdcError):
    """The hub cannot be reached, or does not have the repository."""


@dataclass(frozen=True)
class HubWeights:
    """Weights of a repository, in the local cache.

    Attributes
    ----------
    name : of the repository, as ``microsoft/resnet-18``.
    folder : snapshot in the cache.
    files : size (bytes) and SHA-256 of each file of the weights, by its name, as the hub states them.
    license : as the hub states it; None if it does not.
    """

    name: str
    folder: Path
    files: dict[str, tuple[int, str]]
    license: str | None

    def to_text(self) -> str:
        """One line with name, size, licence and SHA-256."""
        parts = [f"{name}, {size / 1e6:,.1f} MB, SHA-256 {sha256}" for name, (size, sha256) in self.files.items()]
        return f"weights {self.name}: {'; '.join(parts)}; licence: {self.license or 'not stated'}"


def cached_snapshot(name: str, weight_files: Iterable[str]) -> Path | None:
    """The snapshot of ``main`` of a repository in the local cache, if it has one of the files; otherwise None."""
    repository = _cache() / f"models--{name.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if any((snapshot / each).is_file() for each in weight_files) else None


def _cache() -> Path:
    """The cache of huggingface_hub, as its ``constants`` define it; the library may not be installed."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home, "hub")
    return Path(os.path.expandvars(Path(cache).expanduser()))


def download(name: str) -> HubWeights:
    """Download the safetensors and settings of a repository into the local cache, and check them.

    Raises
    ------
    UdcError
        The extra ``[hub]`` is missing, the hub cannot be reached or has no such weights, or what came is not what the
        hub states; such a file is removed.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise UdcError(f"{name}: needs the extra hub: pip install 'udc-model[hub]'") from None
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=30)
    except Exception as error:  # huggingface_hub raises exceptions of several libraries
        raise UnreachableError(f"{name}: cannot be downloaded ({_described(error)})") from None
    files = _weight_files(name, info)
    patterns = [*files, *([_INDEX] if SAFETENSORS not in files else []), *_SETTINGS]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise UdcError(f"{name}: cannot be downloaded ({_described(error)}); try again to resume") from None
    for file, (_, sha256) in files.items():
        path = folder / file
        if (digest := sha256_of(path)) != sha256:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise UdcError(f"{name}: {file} was downloaded with the SHA-256 {digest}, but the hub states "
                           f"{sha256}; the file was removed: fetch it again")  # fmt: skip
    return HubWeights(name, folder, files, getattr(info.card_data, "license", None))


def _weight_files(name: str, info: Any) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of the safetensors of a repository, by file name."""
    siblings = {each.rfilename: each for each in info.siblings or []}
    names = [SAFETENSORS] if SAFETENSORS in siblings else sorted(filter(_SHARD.fullmatch, siblings))
    files = {each: siblings[each].lfs for each in names}
    if not files or any(lfs is None for lfs in files.values()):
        raise UdcError(
            f"{name}: the repository has no {SAFETENSORS} with a SHA-256; it has {', '.join(siblings)[:200]}"
        )
    return {each: (int(lfs.size), str(lfs.sha256)) for each, lfs in files.items() if lfs is not None}


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"[:300]
