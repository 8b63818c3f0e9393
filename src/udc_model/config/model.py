"""Section ``model``: the architecture, and the weights that it starts from."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from udc_model.config.presets import PRESETS, find_preset
from udc_model.config.section import Section, Share

Activation = Literal[
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh",
    "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "selu",
    "sigmoid", "silu", "swish", "tanh",
]  # fmt: skip


ModelType = Literal["resnet", "convnext", "timm"]
MODEL_TYPES: tuple[ModelType, ...] = get_args(ModelType)  # each has a block of its name in the section
AUTO = "auto"  # of weights: those that are published for the architecture

_FREE = {"num_channels", "drop_path_rate"}  # of an architecture: published weights fit whatever their value
_PUBLISHED = ("microsoft/resnet-", "facebook/convnext-")  # begin of the names of weights that are of a known size
Channels = Annotated[int, Field(gt=0, le=2**16)]
Blocks = Annotated[int, Field(gt=0, le=1000)]


class ResNetParams(Section):
    """Architecture of a ResNet (He et al. 2015), named as in Hugging Face's ``ResNetConfig``."""

    num_channels: Literal[1, 3] = Field(
        3, description="Channels of the input image: 3 for RGB, 1 for grey; stage prepare converts the images."
    )
    embedding_size: Channels = Field(64, description="Channels of the stem.")
    hidden_sizes: list[Channels] = Field(
        [256, 512, 1024, 2048], min_length=1, max_length=16, description="Output channels of each stage."
    )
    depths: list[Blocks] = Field(
        [3, 4, 6, 3], min_length=1, max_length=16, description="Residual blocks in each stage."
    )
    layer_type: Literal["basic", "bottleneck"] = Field("bottleneck", description="Kind of residual block.")
    hidden_act: Activation = Field("relu", description="Activation after the stem and each block.")
    downsample_in_first_stage: bool = Field(False, description="Whether the first stage halves height and width.")
    downsample_in_bottleneck: bool = Field(
        False, description="Whether a bottleneck's stride is in its first 1x1 convolution instead of its 3x3."
    )

    @model_validator(mode="after")
    def _same_length(self) -> ResNetParams:
        _check_lengths(depths=len(self.depths), hidden_sizes=len(self.hidden_sizes))
        if self.layer_type == "bottleneck" and any(size % 4 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes {self.hidden_sizes}: a bottleneck needs multiples of 4")
        return self


class ConvNextParams(Section):
    """Architecture of a ConvNeXt (Liu et al. 2022), named as in Hugging Face's ``ConvNextConfig``."""

    num_channels: Literal[1, 3] = Field(
        3, description="Channels of the input image: 3 for RGB, 1 for grey; stage prepare converts the images."
    )
    patch_size: Annotated[int, Field(gt=0, le=2048)] = Field(4, description="Kernel and stride of the stem, in pixels.")
    num_stages: Annotated[int, Field(gt=0, le=16)] = Field(
        4, description="Number of stages; the length of hidden_sizes and depths."
    )
    hidden_sizes: list[Channels] = Field(
        [96, 192, 384, 768], min_length=1, max_length=16, description="Output channels of each stage."
    )
    depths: list[Blocks] = Field([3, 3, 9, 3], min_length=1, max_length=16, description="Blocks in each stage.")
    hidden_act: Activation = Field("gelu", description="Activation inside each block.")
    layer_norm_eps: Annotated[float, Field(gt=0)] = Field(1e-12, description="Epsilon of the last layer norm.")
    layer_scale_init_value: Annotated[float, Field(ge=0)] = Field(
        1e-6, description="Initial layer scale; 0 leaves the layer scale out."
    )
    drop_path_rate: Share = Field(0.0, description="Stochastic depth rate of the last block; it rises linearly to it.")

    @model_validator(mode="after")
    def _same_length(self) -> ConvNextParams:
        _check_lengths(num_stages=self.num_stages, depths=len(self.depths), hidden_sizes=len(self.hidden_sizes))
        return self


class TimmParams(Section):
    """A network of the library timm (extra ``[timm]``), by its name."""

    num_channels: Literal[1, 3] = Field(
        3, description="Channels of the input image: 3 for RGB, 1 for grey; stage prepare converts the images."
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$", max_length=100)] = Field(
        "efficientnet_lite0",
        description="Name in timm, as efficientnet_lite0, or resnet50.a1_in1k with one of its published weights.",
    )
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Stochastic depth rate.")


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"must describe the same number of stages, got {text}")


class ModelParams(Section):
    """Which network is trained. Each architecture has a block; ``model_type`` chooses one."""

    model_type: ModelType = Field("resnet", description="Architecture of the model.")
    preset: str | None = Field(
        None,
        description="Published size that replaces the sizes below, as resnet-50, convnext-tiny or "
        "facebook/convnext-tiny-224; null uses the sizes below, or those that weights names.",
    )
    num_labels: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Number of classes, checked against the data; null takes it from the data."
    )
    weights: str | None = Field(
        None,
        description="Weights to start from: auto (those published for the architecture), a folder, a file, imagenet, "
        "or a name such as microsoft/resnet-50; null starts from random weights.",
    )
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None,
        description="SHA-256 that the file of the weights must have; null accepts any, and stage resolve records it.",
    )
    download: bool = Field(
        False, description="Download published weights that are in no local cache; false is an error that names them."
    )
    weights_include: list[str] | None = Field(
        None, description="Patterns of the weights to load, as ['convnext.*']; null loads all."
    )
    weights_exclude: list[str] = Field([], description="Patterns of the weights to leave out, as ['*.stages.3.*'].")
    resnet: ResNetParams = Field(ResNetParams(), description="Used if model_type is resnet.")
    convnext: ConvNextParams = Field(ConvNextParams(), description="Used if model_type is convnext.")
    timm: TimmParams = Field(TimmParams(), description="Used if model_type is timm.")

    @field_validator("preset", "weights")
    @classmethod
    def _exists(cls, name: str | None, field: ValidationInfo) -> str | None:
        if name is not None and (field.field_name == "preset" or name.startswith(_PUBLISHED)):
            find_preset(name)
        return name

    @property
    def architecture(self) -> ResNetParams | ConvNextParams | TimmParams:
        """The block that ``model_type`` chooses, with the sizes that ``preset`` or ``weights`` names."""
        block: ResNetParams | ConvNextParams | TimmParams = getattr(self, self.model_type)
        name = self._size_name()
        return block if name is None else block.model_copy(update=find_preset(name).settings)

    @property
    def fitting_preset(self) -> str | None:
        """The preset of exactly this architecture, whatever its num_channels and drop path; None without one."""
        settings = self.architecture.model_dump(exclude=_FREE)
        defaults = type(self.architecture)().model_dump(exclude=_FREE)
        sizes = ((name, preset.settings) for name, preset in PRESETS.items() if preset.model_type == self.model_type)
        return next((name for name, size in sizes if settings == defaults | size), None)

    def _size_name(self) -> str | None:
        published = self.weights is not None and self.weights.startswith(_PUBLISHED)
        return self.weights if self.preset is None and published else self.preset

    @model_validator(mode="after")
    def _consistent(self) -> ModelParams:
        name = self._size_name()
        if name is not None and (model_type := find_preset(name).model_type) != self.model_type:
            raise ValueError(
                f"{name} is a {model_type}, but model_type is {self.model_type}; "
                f"add -S model.model_type={model_type}, or set it in the file"
            )
        if self.weights is None and (self.weights_include is not None or self.weights_exclude):
            raise ValueError("weights_include and weights_exclude choose among the weights, but weights is null")
        if self.weights is None and self.weights_sha256 is not None:
            raise ValueError("weights_sha256 is of the file of the weights, but weights is null")
        return self

    @model_validator(mode="after")
    def _auto_has_published_weights(self) -> ModelParams:
        if self.weights != AUTO or self.model_type == "timm":  # timm knows its own
            return self
        if self.fitting_preset is None or PRESETS[self.fitting_preset].published is None:
            names = [n for n, p in PRESETS.items() if p.model_type == self.model_type and p.published is not None]
            raise ValueError(f"weights: auto: no published weights fit this {self.model_type}; set preset to "
                             f"{', '.join(names)}, or weights to null to train from random weights")  # fmt: skip
        return self
