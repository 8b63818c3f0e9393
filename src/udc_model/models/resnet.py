"""ResNet (He et al. 2015, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385).

A bottleneck downsamples in its 3x3 convolution ("v1.5"), or in its first 1x1 convolution with
``downsample_in_bottleneck``, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from udc_model.models.activations import activation
from udc_model.models.base import CustomConfig, CustomPreTrainedModel
from udc_model.models.staged import ImageClassifier, StagedEncoder, StagedModel


class ResNetConfig(CustomConfig):
    """Configuration of a ResNet, with the names of transformers' ``ResNetConfig``; defaults: ResNet-50."""

    model_type: ClassVar[str] = "resnet"
    architecture: ClassVar[str] = "ResNetForImageClassification"

    def __init__(
        self,
        num_channels: int = 3,
        embedding_size: int = 64,
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        layer_type: str = "bottleneck",
        hidden_act: str = "relu",
        downsample_in_first_stage: bool = False,
        downsample_in_bottleneck: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(hidden_sizes) != len(depths):
            raise ValueError(f"hidden_sizes {hidden_sizes} and depths {depths} do not match")
        if layer_type not in ("basic", "bottleneck"):
            raise ValueError(f"layer_type: {layer_type!r} is neither 'basic' nor 'bottleneck'")
        self.num_channels = num_channels
        self.embedding_size = embedding_size
        self.hidden_sizes = list(hidden_sizes)
        self.depths = list(depths)
        self.layer_type = layer_type
        self.hidden_act = hidden_act
        self.downsample_in_first_stage = downsample_in_first_stage
        self.downsample_in_bottleneck = downsample_in_bottleneck


def _after_norm(act: str) -> nn.Module:
    """Return an activation that may overwrite its input, because nothing else uses the output of the norm."""
    return nn.ReLU(inplace=True) if act == "relu" else activation(act)


class ResNetConvLayer(nn.Module):
    """Convolution without bias, BatchNorm, activation; ``act`` None means no activation."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, act: str | None = "relu"
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = _after_norm(act) if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        return cast(Tensor, self.activation(self.normalization(self.convolution(x))))


class ResNetEmbeddings(nn.Module):
    """The stem: 7x7 convolution with stride 2, then 3x3 max pooling with stride 2."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.embedder = ResNetConvLayer(config.num_channels, config.embedding_size, 7, 2, config.hidden_act)
        self.pooler = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (N, num_channels, H, W) to (N, embedding_size, H / 4, W / 4)."""
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(f"got {pixel_values.shape[1]} channels, the model has num_channels = {self.num_channels}")
        return cast(Tensor, self.pooler(self.embedder(pixel_values)))


class ResNetShortCut(nn.Module):
    """1x1 convolution and BatchNorm that map the residual to the block's output shape (the paper's option B)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        return cast(Tensor, self.normalization(self.convolution(x)))


class ResidualLayer(nn.Module):
    """``act(layer(x) + shortcut(x))``; the shortcut is the identity if the shape does not change.

    ``hidden_act`` is used in the stem and after the sum. Between the convolutions of a block the activation is always
    ReLU, as in transformers.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, layers: list[nn.Module], act: str) -> None:
        super().__init__()
        shape_changes = in_channels != out_channels or stride != 1
        self.shortcut = ResNetShortCut(in_channels, out_channels, stride) if shape_changes else nn.Identity()
        self.layer = nn.Sequential(*layers)
        self.activation = _after_norm(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        out = self.layer(x)
        out += self.shortcut(x)  # in place is safe: the gradient of BatchNorm does not need its output
        return cast(Tensor, self.activation(out))


class ResNetBasicLayer(ResidualLayer):
    """Two 3x3 convolutions (the paper's figure 5, left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, act: str = "relu") -> None:
        layers: list[nn.Module] = [
            ResNetConvLayer(in_channels, out_channels, stride=stride),
            ResNetConvLayer(out_channels, out_channels, act=None),
        ]
        super().__init__(in_channels, out_channels, stride, layers, act)


class ResNetBottleNeckLayer(ResidualLayer):
    """1x1 to C / 4, 3x3, 1x1 back to C (the paper's figure 5, right)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        act: str = "relu",
        downsample_in_bottleneck: bool = False,
    ) -> None:
        reduced = out_channels // 4
        first, second = (stride, 1) if downsample_in_bottleneck else (1, stride)
        layers: list[nn.Module] = [
            ResNetConvLayer(in_channels, reduced, kernel_size=1, stride=first),
            ResNetConvLayer(reduced, reduced, stride=second),
            ResNetConvLayer(reduced, out_channels, kernel_size=1, act=None),
        ]
        super().__init__(in_channels, out_channels, stride, layers, act)


class ResNetStage(nn.Module):
    """``depth`` blocks; the first one may change the shape."""

    def __init__(self, config: ResNetConfig, in_channels: int, out_channels: int, stride: int, depth: int) -> None:
        super().__init__()

        def block(channels: int, stride: int) -> nn.Module:
            if config.layer_type == "basic":
                return ResNetBasicLayer(channels, out_channels, stride, config.hidden_act)
            in_bottleneck = config.downsample_in_bottleneck
            return ResNetBottleNeckLayer(channels, out_channels, stride, config.hidden_act, in_bottleneck)

        self.layers = nn.Sequential(block(in_channels, stride), *[block(out_channels, 1) for _ in range(depth - 1)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        return cast(Tensor, self.layers(x))


class ResNetEncoder(StagedEncoder):
    """The stages; each halves H and W, except, by default, the first."""

    def __init__(self, config: ResNetConfig) -> None:
        sizes = [config.embedding_size, *config.hidden_sizes]
        first = 2 if config.downsample_in_first_stage else 1
        super().__init__(
            [
                ResNetStage(config, sizes[i], sizes[i + 1], first if i == 0 else 2, depth)
                for i, depth in enumerate(config.depths)
            ]
        )


class ResNetPreTrainedModel(CustomPreTrainedModel):
    """Initialisation of ResNet: He's normal distribution (fan out) for convolutions, torch's default for the head."""

    config_class = ResNetConfig
    config: ResNetConfig

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class ResNetModel(ResNetPreTrainedModel, StagedModel):
    """Stem, stages, mean over H and W."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.embedder = ResNetEmbeddings(config)
        self.encoder = ResNetEncoder(config)
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.post_init()

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Map (N, num_channels, H, W) to (N, embedding_size, H / 4, W / 4)."""
        return cast(Tensor, self.embedder(pixel_values))

    def pool(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 1, 1)."""
        return cast(Tensor, self.pooler(features))


class ResNetForImageClassification(ResNetPreTrainedModel, ImageClassifier):
    """`ResNetModel` with a linear head."""

    base_model_prefix = "resnet"

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.resnet = ResNetModel(config)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(config.hidden_sizes[-1], config.num_labels))
        self.post_init()
