"""Networks of the library timm (extra ``[timm]``) with a linear head of our own."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from udc_model.errors import UdcError
from udc_model.model_files.timm_networks import build_network, num_features, published_config
from udc_model.models.base import CustomConfig
from udc_model.models.layouts import KeyLayout
from udc_model.models.outputs import BaseModelOutputWithPoolingAndNoAttention
from udc_model.models.staged import ImageClassifier, StagedModel

_INSTEAD = "use train.num_frozen_stages 0 or all, train.layer_decay 1 and train.sharded false"


class TimmConfig(CustomConfig):
    """Configuration of a network of timm.

    Parameters
    ----------
    name : name in timm, as ``efficientnet_lite0``.
    num_channels : channels of the input image.
    drop_path_rate : stochastic depth rate; 0 also suits networks without stochastic depth.
    """

    model_type: ClassVar[str] = "timm"
    architecture: ClassVar[str] = "TimmForImageClassification"

    def __init__(
        self, name: str = "efficientnet_lite0", num_channels: int = 3, drop_path_rate: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.num_channels = num_channels
        self.drop_path_rate = drop_path_rate


class TimmModel(StagedModel):
    """A network of timm without its last layer."""

    config_class = TimmConfig
    config: TimmConfig

    def __init__(self, config: TimmConfig) -> None:
        super().__init__(config)
        self.network = _build(config)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """Map (N, num_channels, H, W) to the network's features and pooled features (N, D); no hidden states."""
        features = self.network.forward_features(pixel_values)  # type: ignore[operator]
        output = BaseModelOutputWithPoolingAndNoAttention(features, self.network.forward_head(features))  # type: ignore[operator]
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _build(config: TimmConfig) -> nn.Module:
    """The network; on the device ``meta`` it has no values, except those that no state dict contains."""
    settings = (config.name, config.num_channels, config.drop_path_rate)
    network = build_network(*settings)
    has_constants = any(module._non_persistent_buffers_set for module in network.modules())
    if has_constants and any(parameter.is_meta for parameter in network.parameters()):
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return build_network(*settings)
    return network


class TimmForImageClassification(ImageClassifier):
    """`TimmModel` with a linear head."""

    base_model_prefix = "timm"
    config_class = TimmConfig
    config: TimmConfig

    def __init__(self, config: TimmConfig) -> None:
        super().__init__(config)
        self.timm = TimmModel(config)
        self.classifier = nn.Linear(num_features(self.timm.network), config.num_labels)

    def key_layouts(self) -> list[KeyLayout]:
        """That of model folders, and that of timm."""
        first = next(iter(self.timm.network.state_dict()))
        head = re.escape(published_config(self.config.name).head)
        rules: list[Any] = [(rf"{head}\.(weight|bias)", r"classifier.\1")] if head else []
        return [
            ("UDC-Model", f"timm.network.{first}", [(r"(.*)", r"\1")]),
            ("timm", first, [*rules, (r"(.*)", r"timm.network.\1")]),
        ]

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Only refuses: timm's checkpointing updates the statistics of BatchNorm twice."""
        if enable:
            raise UdcError("train.gradient_checkpointing: is not available for model_type timm; set it to false")

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules of each stage, with the stem in the first and the last norm in the last."""
        stem, first, *others = self._grouped(coarse=True)
        return [[*stem, *first], *others]

    def layers(self) -> list[list[nn.Module]]:
        """Return the modules by depth, for layer-wise learning rates: the stem, each block, and the head."""
        return [*self._grouped(coarse=False), [self.classifier]]

    def _grouped(self, coarse: bool) -> list[list[nn.Module]]:
        """The modules of the stem and of each stage (coarse) or block, as timm groups their parameters."""
        from timm.models import group_parameters

        network, name = self.timm.network, self.config.name
        if not hasattr(network, "group_matcher"):
            raise UdcError(f"model.timm.name: timm does not know the stages of {name}; {_INSTEAD}")
        groups = group_parameters(network, network.group_matcher(coarse=coarse))  # type: ignore[operator]
        group_of = {
            owner: number for number, names in groups.items() for owner in (n.rpartition(".")[0] for n in names)
        }
        modules: dict[int, list[nn.Module]] = {number: [] for number in sorted(groups)}
        for owner, number in group_of.items():
            parts = owner.split(".") if owner else []
            outer = [".".join(parts[:k]) for k in range(len(parts))]
            outer_groups = {group_of[each] for each in outer if each in group_of}
            if outer_groups - {number} or (not owner and len(groups) > 1):
                raise UdcError(f"model.timm.name: the stages of {name} share {owner or 'a module'}; {_INSTEAD}")
            if not outer_groups:
                modules[number].append(network.get_submodule(owner))
        return list(modules.values())
