"""Files of a data set on the Hugging Face hub: resolved to a commit, downloaded, or found in the local cache."""

from __future__ import annotations

import glob
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from udc_model.checksums import check_cached_blob
from udc_model.errors import UdcError, one_line
from udc_model.fetch.image_folder import check_disk
from udc_model.files import sha256_of, size_text

logger = logging.getLogger(__name__)

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"\w[\w-]*")
_MAX_CARD = 5_000_000  # bytes of a README.md
_DISK = 2  # bytes on disk for each byte downloaded: Parquet files in the cache, images in the project

Choice = Callable[[list[str], dict[str, Any]], list[str]]


@dataclass(frozen=True)
class HubFiles:
    """Files of one commit in the local cache.

    Attributes
    ----------
    repository : full name, as ``AI-Lab-Makerere/beans``.
    revision : commit hash.
    folder : the snapshot folder of the cache.
    card : the YAML header of README.md; empty if there is none.
    names : paths of the chosen files below ``folder``.
    """

    repository: str
    revision: str
    folder: Path
    card: dict[str, Any]
    names: list[str] = field(default_factory=list)

    def sha256(self) -> dict[str, str]:
        """SHA-256 of each chosen file.

        Raises
        ------
        UdcError
            A file is missing, or does not have the SHA-256 under which the cache stores it.
        """
        digests = {}
        for name in self.names:
            path = self.folder / name
            if not path.is_file():
                raise UdcError(f"{path}: missing in the cache of Hugging Face; fetch again with network access")
            digests[name] = sha256_of(path)
            check_cached_blob(path, digests[name])
        return digests


def open_hub_files(name: str, choose: Choice) -> HubFiles:
    """Download the chosen files of a data set, or find them in the cache if the hub cannot be reached.

    Parameters
    ----------
    name : ``NAME`` or ``NAME@REVISION``; a revision is a branch, a tag or a commit.
    choose : returns the files to use, given all files of the repository and the YAML header of its README.md.

    Raises
    ------
    UdcError
        The extra ``hub`` is missing, or the data set neither exists on the hub nor in the cache.
    """
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise UdcError(f"huggingface:{name}: needs the extra hub: pip install 'udc-model[hub]'") from None
    repository, _, revision = name.partition("@")
    if not _NAME.fullmatch(repository):
        raise UdcError(f"huggingface:{name}: must be huggingface:NAME or huggingface:OWNER/NAME, with or without "
                       "@REVISION")  # fmt: skip
    if constants.HF_HUB_OFFLINE:
        return _from_cache(repository, revision, choose, "HF_HUB_OFFLINE is set")
    try:
        info = HfApi().dataset_info(repository, revision=revision or None, files_metadata=True, timeout=30)
    except HfHubHTTPError as error:
        raise UdcError(f"huggingface:{name}: {one_line(error)}; check the name, or log in with `hf auth login` if "
                       "the data set is private or gated") from None  # fmt: skip
    except Exception as error:  # of several HTTP libraries
        return _from_cache(repository, revision, choose, f"{type(error).__name__}: {one_line(error)}")
    try:
        return _download(name, info, choose)
    except UdcError:
        raise
    except Exception as error:
        raise UdcError(f"huggingface:{name}: the download failed ({one_line(error)}); fetch again to resume") from None


def _download(name: str, info: Any, choose: Choice) -> HubFiles:
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    card: dict[str, Any] = {}
    if "README.md" in sizes:
        card = read_card(Path(hf_hub_download(info.id, "README.md", repo_type="dataset", revision=info.sha)))
    names = choose(sorted(sizes), card)
    total = sum(sizes[each] for each in names)
    check_disk(Path(constants.HF_HUB_CACHE), _DISK * total, f"huggingface:{name}")
    logger.info("huggingface:%s: %d file(s) of %s at commit %s", name, len(names), size_text(total), info.sha[:12])
    if not sys.stderr.isatty():
        disable_progress_bars()
    patterns = [glob.escape(each) for each in names]
    folder = snapshot_download(info.id, repo_type="dataset", revision=info.sha, allow_patterns=patterns)
    return HubFiles(info.id, info.sha, Path(folder), card, names)


def _from_cache(name: str, revision: str, choose: Choice, reason: str) -> HubFiles:
    """Files of a data set that was downloaded earlier, by this command or by another program."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    pattern = f"datasets--{name.replace('/', '--')}" if "/" in name else f"datasets--*{name}"
    folders = [path for path in sorted(cache.glob(pattern)) if path.name.rpartition("--")[2] == name.rpartition("/")[2]]
    repositories = [path.name.removeprefix("datasets--").replace("--", "/") for path in folders]
    pinned = f"{name}@{revision}" if revision else name
    if len(folders) > 1:
        raise UdcError(f"huggingface:{name}: the cache has {' and '.join(repositories)}; name one of them")
    snapshot = _snapshot(folders[0], revision) if folders else None
    if snapshot is None:
        raise UdcError(
            f"huggingface:{pinned}: not in the cache {cache}, and the hub cannot be reached ({reason}); run `udc fetch "
            f"huggingface:{pinned}` on a machine with network access and copy {cache} from there, or set HF_HOME"
        )
    logger.info("huggingface:%s: using commit %s from the cache (%s)", name, snapshot.name[:12], reason)
    card = read_card(snapshot / "README.md") if (snapshot / "README.md").is_file() else {}
    files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if not path.is_dir()]
    return HubFiles(repositories[0], snapshot.name, snapshot, card, choose(sorted(files), card))


def _snapshot(repository: Path, revision: str) -> Path | None:
    """The cached folder of a revision; without a revision that of ``main``, or the only one."""
    snapshots = repository / "snapshots"
    if not re.fullmatch(r"[\w./-]*", revision) or ".." in revision:
        return None
    reference = repository / "refs" / (revision or "main")
    if reference.is_file():
        revision = reference.read_text(encoding="utf-8").strip()
    elif not revision:
        commits = [path.name for path in snapshots.glob("*")]
        if len(commits) > 1:
            raise UdcError(f"{repository}: has several commits; add one of them as @REVISION: {', '.join(commits)}")
        revision = "".join(commits)
    folder = snapshots / revision
    return folder if _COMMIT.fullmatch(revision) and folder.is_dir() else None


def read_card(path: Path) -> dict[str, Any]:
    """The YAML header of a README.md; empty if there is none.

    Raises
    ------
    UdcError
        The header is not valid YAML.
    """
    try:
        with path.open("rb") as handle:
            text = handle.read(_MAX_CARD).decode("utf-8", errors="replace")
        match = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, flags=re.DOTALL)
        card = yaml.safe_load(match[1]) if match else {}
    except (OSError, yaml.YAMLError) as error:
        raise UdcError(f"{path}: its YAML header cannot be read: {one_line(error)}") from None
    return card if isinstance(card, dict) else {}
