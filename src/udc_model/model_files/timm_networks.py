"""Networks of the library timm (extra ``[timm]``): which there are, their published weights, and how one is built."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from udc_model.errors import UdcError

if TYPE_CHECKING:
    from torch import nn

COUNTER = "num_batches_tracked"  # of a BatchNorm: the only weights that are integers
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class PublishedTimm:
    """The published weights of a network.

    Attributes
    ----------
    repository : on the Hugging Face hub; None if there are none.
    head : name of the last layer in timm's state dict, as ``classifier`` or ``head.fc``.
    image_size : side of the images that they were trained on, pixels.
    mean, std : of each channel (R, G, B), for pixel values scaled to [0, 1].
    """

    repository: str | None
    head: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published_config(name: str) -> PublishedTimm:
    """What timm knows about the weights of a network; see `build_network` for the errors."""
    config = _timm(name).get_pretrained_cfg(name)
    repository = None if config.hf_hub_filename else config.hf_hub_id
    head = config.classifier if isinstance(config.classifier, str) else ""
    return PublishedTimm(repository, head, config.input_size[-1], tuple(config.mean), tuple(config.std))


def build_network(name: str, num_channels: int, drop_path_rate: float) -> nn.Module:
    """A network with random weights and without its last layer.

    Raises
    ------
    UdcError
        timm is not installed, has no network of this name, or cannot build it with these settings.
    """
    options: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate > 0 else {}
    timm = _timm(name)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, in_chans=num_channels, **options)
        num_features(network)
    except Exception as error:  # each network has its own checks
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UdcError(f"model.timm: {name} cannot be used with num_channels {num_channels} and drop_path_rate "
                       f"{drop_path_rate:g}: {reason}") from None  # fmt: skip
    state = network.state_dict().items()
    integers = [key for key, value in state if not value.is_floating_point() and not key.endswith(COUNTER)]
    if integers:
        raise UdcError(f"model.timm.name: {name} has weights of integers ({integers[0]}), which model folders do not "
                       "store; choose another network")  # fmt: skip
    return network


@cache
def shapes_and_features(name: str, num_channels: int, drop_path_rate: float) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shape of each weight of a network, by its name, and the number of features; nothing is allocated."""
    import torch

    with torch.device("meta"):
        network = build_network(name, num_channels, drop_path_rate)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}, num_features(network)


def num_features(network: nn.Module) -> int:
    """Number of features that a network of `build_network` computes of an image."""
    return int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]


def _timm(name: str) -> Any:
    """The library; :class:`UdcError` if it is not installed or has no network of this name."""
    try:
        import timm
    except ImportError:
        raise UdcError("model.model_type: timm: needs the extra timm: pip install 'udc-model[timm]'") from None
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=_SHOWN)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise UdcError(f"model.timm.name: timm {timm.__version__} has no network {name[:100]!r}; {hint}")
    if tag and name not in (tagged := timm.list_pretrained(f"{base}.*")):
        raise UdcError(f"model.timm.name: no weights {tag[:100]!r} are published for {base}; there are: "
                       f"{', '.join(tagged) or 'none'}")  # fmt: skip
    return timm
