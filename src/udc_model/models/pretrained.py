"""Finds the file of ``model.weights``: by path, in the caches of torch and Hugging Face, or on the hub."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.error import URLError

import torch
from pydantic import Field

from udc_model.config import ModelParams
from udc_model.config.model import AUTO
from udc_model.config.presets import PRESETS
from udc_model.errors import UdcError
from udc_model.model_files.settings import STORED
from udc_model.model_files.shapes import expected_shapes
from udc_model.model_files.timm_networks import published_config
from udc_model.models.checkpoints import WEIGHT_FILES, weights_sha256
from udc_model.models.hub import HUB_NAME, cached_snapshot, download
from udc_model.records import Record, read_record

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
PREPROCESSOR = "preprocessor_config.json"  # in the folder of the weights; beside a file with the file's name before it
RANDOM = "model.weights: null trains from random weights"  # the end of a message without weights
_FILES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_MAX_JSON = 2**20  # bytes of a preprocessor_config.json

_Side = Annotated[int, Field(gt=0, le=2**16)]
_Mean = Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(min_length=1, max_length=3)]
_Deviation = Annotated[list[Annotated[float, Field(ge=1e-6, le=10)]], Field(min_length=1, max_length=3)]


class _Size(Record):
    shortest_edge: _Side | None = None
    height: _Side | None = None


class _Preprocessor(Record):
    size: _Side | _Size
    image_mean: _Mean
    image_std: _Deviation


class _PretrainedConfig(Record):
    input_size: Annotated[list[_Side], Field(min_length=3, max_length=3)]
    mean: _Mean
    std: _Deviation


class _TimmConfig(Record):
    pretrained_cfg: _PretrainedConfig | None = None


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


def published_name(params: ModelParams) -> str | None:
    """The repository on the Hugging Face hub with the ImageNet weights of the architecture; None if there is none."""
    if params.model_type == "timm":
        return published_config(params.timm.name).repository
    return PRESETS[params.fitting_preset].published if params.fitting_preset else None


def weights_name(params: ModelParams) -> str:
    """The value of ``model.weights``, with ``auto`` replaced by the name of the published weights.

    Raises
    ------
    UdcError
        It is ``auto``, and no weights are published for the architecture.
    """
    assert params.weights is not None
    if params.weights != AUTO:
        return params.weights
    name = published_name(params)
    if name is None:
        network = params.timm.name if params.model_type == "timm" else f"{params.model_type} of this size"
        raise UdcError(f"model.weights: auto: no weights are published for a {network}; name a file, or: {RANDOM}")
    return name


def resolve_weights(params: ModelParams) -> ModelParams:
    """Find the weights, and return the parameters with their name and SHA-256; unchanged if ``weights`` is null.

    Raises
    ------
    UdcError
        There are no such weights, they are not those of ``weights_sha256``, or timm has no network of the name.
    """
    if params.model_type == "timm":
        published_config(params.timm.name)  # an unknown name must not wait for training
    if params.weights is None:
        return params
    sha256 = weights_sha256(find_weights(params).path, params.weights_sha256)
    return params.model_copy(update={"weights": weights_name(params), "weights_sha256": sha256})


def find_weights(params: ModelParams) -> WeightsSource:
    """Find the weights ``model.weights``, and download them if ``model.download`` says so.

    Raises
    ------
    UdcError
        There are no such weights, or they cannot be downloaded. The message explains how to provide them by hand.
    """
    name = weights_name(params)
    path = Path(name).expanduser()
    if name == "imagenet":
        return _torchvision(params)
    if path.exists() or path.suffix in _FILES or not HUB_NAME.fullmatch(name):
        return _with_preprocessing(path, params)
    return _with_preprocessing(cached_snapshot(name, WEIGHT_FILES) or _from_hub(name, params), params)


def _torchvision(params: ModelParams) -> WeightsSource:
    from torchvision.models import get_model_weights, list_models

    size = params.fitting_preset or ""
    name = size.replace("resnet-", "resnet").replace("-", "_")
    if params.model_type == "timm" or name not in list_models():
        raise UdcError(
            f"model.weights: torchvision has no ImageNet weights for a {size or params.model_type + ' of this size'}; "
            "set model.preset to a resnet-18, 34, 50, 101 or 152, or a convnext-tiny, small, base or large"
        )
    url = str(get_model_weights(name).DEFAULT.url)
    return WeightsSource(_of_url(url, params.download), get_model_weights(name).DEFAULT.transforms().crop_size[0],
                         IMAGENET_MEAN, IMAGENET_STD)  # fmt: skip


def _of_url(url: str, may_download: bool) -> Path:
    """Return the file of a URL in torch's cache. The file name contains the start of its SHA-256, which is checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    prefix = path.stem.rsplit("-", 1)[-1]
    by_hand = f"download it on another machine and copy it to {path}; {RANDOM}"
    if not path.is_file():
        if not may_download:
            raise UdcError(f"model.weights: imagenet: {url} is not in torch's cache, and model.download is false; set "
                           f"model.download: true, or {by_hand}")  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s to %s", url, path)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise UdcError(f"model.weights: {url} cannot be downloaded ({error}); {by_hand}") from None
        return path
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if not digest.startswith(prefix):
        raise UdcError(f"model.weights: {path} is damaged (its SHA-256 starts with {digest[:8]}, not {prefix}); "
                       f"remove it, or download {url} again")  # fmt: skip
    return path


def _from_hub(name: str, params: ModelParams) -> Path:
    """The downloaded snapshot of a repository; :class:`UdcError` if it must not or cannot be downloaded."""
    size = f", {published_bytes(params) / 1e6:,.0f} MB" if name == published_name(params) else ""
    file = f"{name.rpartition('/')[2]}.safetensors"
    by_hand = (
        f"or run `udc weights fetch {name} --to {file}` on a machine with a network, copy {file} and "
        f"{file}.{PREPROCESSOR} here and set model.weights: {file}; {RANDOM}"
    )
    if not params.download:
        raise UdcError(
            f"model.weights: {name} (model.safetensors{size}) is neither a path nor in the Hugging Face cache, and "
            f"model.download is false; set model.download: true to download it, {by_hand}"
        )
    try:
        weights = download(name)
    except UdcError as error:
        raise UdcError(f"model.weights: {error}; {by_hand}") from None
    logger.info("%s", weights.to_text())
    return weights.folder


def published_bytes(params: ModelParams) -> int:
    """Bytes of the published weights of the architecture, in float32."""
    labels = {"id2label": {str(i): str(i) for i in range(IMAGENET_CLASSES)}}
    stored = STORED[params.model_type](**params.architecture.model_dump() | labels)
    return 4 * sum(math.prod(shape) for _, shape in expected_shapes(stored))


def _with_preprocessing(path: Path, params: ModelParams) -> WeightsSource:
    """The source of a path, with the preprocessing that is recorded in its folder, beside the file, or in timm."""
    recorded = read_preprocessing(path)
    if recorded is not None:
        return WeightsSource(path, *recorded)
    if params.model_type == "timm":
        published = published_config(params.timm.name)
        return WeightsSource(path, published.image_size, published.mean, published.std)
    if path.exists():
        logger.warning("model.weights: %s: mean and standard deviation of the images that it was trained on are not "
                       "recorded, so images are normalised as for random weights; they belong into %s",
                       path, preprocessor_file(path))  # fmt: skip
    return WeightsSource(path)


def preprocessor_file(path: Path) -> Path:
    """Where the preprocessing of the weights at a path is recorded: in the folder, or beside the file."""
    return path / PREPROCESSOR if path.is_dir() else path.with_name(f"{path.name}.{PREPROCESSOR}")


def read_preprocessing(path: Path) -> tuple[int | None, tuple[float, ...], tuple[float, ...]] | None:
    """Image size, mean and standard deviation that are recorded for the weights at a path; None if they are not."""
    advice = "set model.weights to a complete folder, or to the file of the weights"
    file = preprocessor_file(path)
    if file.is_file():
        config = read_record(file, _Preprocessor, advice, _MAX_JSON)
        size = config.size if isinstance(config.size, int) else config.size.shortest_edge or config.size.height
        return size, _floats(config.image_mean), _floats(config.image_std)
    if (path / "config.json").is_file():
        timm = read_record(path / "config.json", _TimmConfig, advice).pretrained_cfg
        if timm is not None:
            return timm.input_size[-1], _floats(timm.mean), _floats(timm.std)
    return None


def _floats(values: list[float]) -> tuple[float, ...]:
    return tuple(map(float, values))
