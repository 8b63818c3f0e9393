"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s", https://arxiv.org/abs/2201.03545)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from udc_model.models.activations import activation
from udc_model.models.base import CustomConfig, CustomPreTrainedModel
from udc_model.models.kernels import DepthwiseConv2d, add_scaled, linear_act
from udc_model.models.staged import ImageClassifier, StagedEncoder, StagedModel


class ConvNextConfig(CustomConfig):
    """Configuration of a ConvNeXt, with the names of transformers' ``ConvNextConfig``; defaults: ConvNeXt-tiny."""

    model_type: ClassVar[str] = "convnext"
    architecture: ClassVar[str] = "ConvNextForImageClassification"

    def __init__(
        self,
        num_channels: int = 3,
        patch_size: int = 4,
        num_stages: int = 4,
        hidden_sizes: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        hidden_act: str = "gelu",
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        layer_scale_init_value: float = 1e-6,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not num_stages == len(hidden_sizes) == len(depths):
            raise ValueError(f"num_stages {num_stages}, hidden_sizes {hidden_sizes} and depths {depths} do not match")
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.num_stages = num_stages
        self.hidden_sizes = list(hidden_sizes)
        self.depths = list(depths)
        self.hidden_act = hidden_act
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.layer_scale_init_value = layer_scale_init_value
        self.drop_path_rate = drop_path_rate


class ConvNextLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``channels_last`` (N, H, W, C) or ``channels_first`` (N, C, H, W) input."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6, data_format: str = "channels_last") -> None:
        super().__init__(normalized_shape, eps=eps)
        if data_format not in ("channels_last", "channels_first"):
            raise ValueError(f"data_format: {data_format!r} is neither 'channels_last' nor 'channels_first'")
        self.data_format = data_format

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the channels; the shape is unchanged."""
        if self.data_format == "channels_last":
            return super().forward(input)
        # Both permutations are views in channels_last memory.
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextDropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops a sample's residual branch with probability ``p``."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor | None:
        """Return the factor of each sample of x (N, …): 0 or 1 / (1 - p), (N,); None if nothing is dropped."""
        if self.p == 0.0 or not self.training:
            return None
        keep = 1.0 - self.p
        return (torch.rand(x.shape[0], device=x.device) < keep).float() / keep

    def extra_repr(self) -> str:
        """Return the probability, for the module's ``repr``."""
        return f"p={self.p:g}"


class ConvNextEmbeddings(nn.Module):
    """The "patchify" stem: a convolution with kernel and stride of ``patch_size``, then LayerNorm."""

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__()
        size = config.hidden_sizes[0]
        self.num_channels = config.num_channels
        self.patch_embeddings = nn.Conv2d(config.num_channels, size, config.patch_size, config.patch_size)
        self.layernorm = ConvNextLayerNorm(size, eps=1e-6, data_format="channels_first")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (N, num_channels, H, W) to (N, hidden_sizes[0], H / patch_size, W / patch_size)."""
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(f"got {pixel_values.shape[1]} channels, the model has num_channels = {self.num_channels}")
        if pixel_values.is_cpu:  # channels_last is faster on the CPU, and all following layers preserve it
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.layernorm(self.patch_embeddings(pixel_values)))


class ConvNextLayer(nn.Module):
    """The block of the paper's figure 4: 7x7 depthwise, LayerNorm, 1x1 to 4C, GELU, 1x1 to C, layer scale, residual.

    The 1x1 convolutions are ``nn.Linear`` on (N, H, W, C), as in the original implementation. This is faster than
    ``nn.Conv2d``, and the permutations are views in channels_last memory.
    """

    def __init__(self, config: ConvNextConfig, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(dim, kernel_size=7)
        self.layernorm = ConvNextLayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = activation(config.hidden_act)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        scale = config.layer_scale_init_value
        self.layer_scale_parameter = nn.Parameter(torch.full((dim,), scale)) if scale > 0 else None
        self.drop_path = ConvNextDropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        x = self.dwconv(features)
        x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        x = self.layernorm(x)
        x = linear_act(x, self.pwconv1, self.act)
        residual, factor = features.permute(0, 2, 3, 1), self.drop_path(features)
        x = add_scaled(residual, x, self.pwconv2, self.layer_scale_parameter, factor)
        return x.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


class ConvNextStage(nn.Module):
    """Downsampling (LayerNorm, 2x2 convolution) if the shape changes, then one block for each of ``drop_paths``."""

    def __init__(
        self, config: ConvNextConfig, in_channels: int, out_channels: int, stride: int, drop_paths: Sequence[float]
    ) -> None:
        super().__init__()
        self.downsampling_layer = nn.Sequential()
        if in_channels != out_channels or stride > 1:
            self.downsampling_layer = nn.Sequential(
                ConvNextLayerNorm(in_channels, eps=1e-6, data_format="channels_first"),
                nn.Conv2d(in_channels, out_channels, kernel_size=2, stride=stride),
            )
        self.layers = nn.Sequential(*[ConvNextLayer(config, out_channels, rate) for rate in drop_paths])

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        return cast(Tensor, self.layers(self.downsampling_layer(features)))


class ConvNextEncoder(StagedEncoder):
    """The stages; the drop path rates increase linearly over all blocks from 0 to ``drop_path_rate``."""

    def __init__(self, config: ConvNextConfig) -> None:
        rates = iter(torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist())
        sizes = [config.hidden_sizes[0], *config.hidden_sizes]
        super().__init__(
            [
                ConvNextStage(config, sizes[i], sizes[i + 1], 1 if i == 0 else 2, drop_paths=list(islice(rates, depth)))
                for i, depth in enumerate(config.depths)
            ]
        )


class ConvNextPreTrainedModel(CustomPreTrainedModel):
    """Initialisation of ConvNeXt: normal weights of scale ``initializer_range``, zero biases, unit norms."""

    config_class = ConvNextConfig
    config: ConvNextConfig

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, ConvNextLayer) and module.layer_scale_parameter is not None:
            nn.init.constant_(module.layer_scale_parameter, self.config.layer_scale_init_value)


class ConvNextModel(ConvNextPreTrainedModel, StagedModel):
    """Stem, stages, mean over H and W, final LayerNorm."""

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__(config)
        self.embeddings = ConvNextEmbeddings(config)
        self.encoder = ConvNextEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.post_init()

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Map (N, num_channels, H, W) to (N, hidden_sizes[0], H / patch_size, W / patch_size)."""
        return cast(Tensor, self.embeddings(pixel_values))

    def pool(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C)."""
        return cast(Tensor, self.layernorm(features.mean([-2, -1])))


class ConvNextForImageClassification(ConvNextPreTrainedModel, ImageClassifier):
    """`ConvNextModel` with a linear head."""

    base_model_prefix = "convnext"

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__(config)
        self.convnext = ConvNextModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()
