"""Finds published weights by name: torchvision's ImageNet weights, and the Hugging Face cache and hub."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.error import URLError

import torch
from pydantic import Field

from udc_model.config.presets import PRESETS
from udc_model.errors import UdcError
from udc_model.records import Record, read_record

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_HUB_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]


_MAX_JSON = 2**20  # bytes of a preprocessor_config.json

_Side = Annotated[int, Field(gt=0, le=2**16)]
_Channels = Field(min_length=1, max_length=3)


class _Size(Record):
    shortest_edge: _Side | None = None
    height: _Side | None = None


class _Preprocessor(Record):
    size: _Side | _Size
    image_mean: Annotated[list[Annotated[float, Field(ge=-10, le=10)]], _Channels]
    image_std: Annotated[list[Annotated[float, Field(ge=1e-6, le=10)]], _Channels]


@dataclass(frozen=True)
class WeightsSource:
    """Location of weights, and the preprocessing they were trained with; None if it is not recorded.

    Attributes
    ----------
    path : file or folder of the weights.
    image_size : side of the images, pixels.
    mean, std : of each channel (R, G, B), for pixel values scaled to [0, 1].
    """

    path: Path
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def find_weights(weights: str, model_type: str, architecture: dict[str, object]) -> WeightsSource:
    """Find the weights ``model.weights`` and download them if necessary.

    Parameters
    ----------
    weights : a path, ``imagenet``, or a repository on the Hugging Face hub such as ``microsoft/resnet-50``.
    model_type, architecture : the network; ``imagenet`` selects the weights of this network.

    Raises
    ------
    UdcError
        There are no such weights, or they cannot be downloaded. The message explains how to provide them by hand.
    """
    path = Path(weights).expanduser()
    if weights == "imagenet":
        return _torchvision(model_type, architecture)
    if path.exists() or path.suffix in _FILES or not _HUB_NAME.fullmatch(weights):
        return _folder(path)
    return _folder(_in_hub_cache(weights) or _from_hub(weights))


def _torchvision(model_type: str, architecture: dict[str, object]) -> WeightsSource:
    from torchvision.models import get_model_weights, list_models

    size = next((name for name, preset in PRESETS.items() if preset.model_type == model_type
                 and all(architecture[key] == value for key, value in preset.settings.items())), "")  # fmt: skip
    name = size.replace("resnet-", "resnet").replace("-", "_")
    if name not in list_models():
        raise UdcError(
            f"model.weights: torchvision has no ImageNet weights for a {size or model_type + ' of this size'}; "
            "set model.preset to a resnet-18, 34, 50, 101 or 152, or a convnext-tiny, small, base or large"
        )
    url = str(get_model_weights(name).DEFAULT.url)
    return WeightsSource(_download(url), get_model_weights(name).DEFAULT.transforms().crop_size[0],
                         IMAGENET_MEAN, IMAGENET_STD)  # fmt: skip


def _download(url: str) -> Path:
    """Return the file of a URL in torch's cache. The file name contains the start of its SHA-256, which is checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    prefix = path.stem.rsplit("-", 1)[-1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s to %s", url, path)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise UdcError(
                f"model.weights: {url} cannot be downloaded ({error}); download it on another machine and copy it to "
                f"{path}"
            ) from None
        return path
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if not digest.startswith(prefix):
        raise UdcError(f"model.weights: {path} is damaged (its SHA-256 starts with {digest[:8]}, not {prefix}); "
                       f"remove it, or download {url} again")  # fmt: skip
    return path


def _in_hub_cache(name: str) -> Path | None:
    """Return the newest snapshot of a repository in the local Hugging Face cache, or None."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    repository = cache / f"models--{name.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def _from_hub(name: str) -> Path:
    by_hand = (
        "download its config.json, preprocessor_config.json and model.safetensors from "
        f"https://huggingface.co/{name} into a folder, and set model.weights to that folder"
    )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UdcError(
            f"model.weights: {name} is neither a path nor in the Hugging Face cache; install the extra "
            f"(pip install 'udc-model[hub]') to download it, or {by_hand}"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # huggingface_hub raises exceptions of several libraries
        reason = f"{type(error).__name__}: {error}"
        raise UdcError(f"model.weights: {name} cannot be downloaded ({reason}); {by_hand}") from None


def _folder(path: Path) -> WeightsSource:
    """Return the source of a path, with the settings of its ``preprocessor_config.json`` if that exists."""
    config_path = path / "preprocessor_config.json"
    if not config_path.is_file():
        return WeightsSource(path)
    advice = "set model.weights to a complete folder, or to the file of the weights"
    config = read_record(config_path, _Preprocessor, advice, _MAX_JSON)
    size = config.size if isinstance(config.size, int) else config.size.shortest_edge or config.size.height
    mean, std = (tuple(map(float, values)) for values in (config.image_mean, config.image_std))
    return WeightsSource(path, size, mean, std)
