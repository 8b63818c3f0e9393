"""Every parameter of the project, typed and validated, and the one reader of ``params.yaml``.

Each section of ``params.yaml`` is one class here; field names are the YAML keys. An unknown key, a wrong type or an
impossible value raises :class:`~udc_model.errors.UdcError` with the parameter's full name and what is allowed.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from udc_model.config.presets import find_preset
from udc_model.errors import UdcError

SPLITS = ("train", "validation", "calibration", "test")

Activation = Literal[
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh",
    "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "selu",
    "sigmoid", "silu", "swish", "tanh",
]  # fmt: skip
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no silent conversion of types, no changes after validation."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_by_name=True, serialize_by_alias=True
    )


class SplitShares(Section):
    """Share of the images (or groups) that goes to each split; the four add up to 1."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.6
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    calibration: Share = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.15

    @model_validator(mode="after")
    def _adds_up(self) -> SplitShares:
        total = self.train + self.validation + self.calibration + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares add up to {total:g}; they must add up to 1")
        return self


class CsvFile(Section):
    """One CSV file of the ``csv`` source; ``split`` puts all its rows that name no split of their own there."""

    file: str
    split: Literal["train", "validation", "calibration", "test"] | None = None


class DataParams(Section):
    """Where the images are and how they are checked, resized and split. Read by ``prepare`` alone."""

    source: Literal["digits", "folder", "csv"] = "digits"
    path: str = "data/raw"
    csv_files: list[str | CsvFile] = Field(default=["labels.csv"], min_length=1)
    label_column: str = "label"
    classes: list[str] | None = Field(default=None, min_length=2)
    group: str | None = None
    image_size: Annotated[int, Field(ge=8, le=2048)] = 32
    resize: Literal["crop", "squash"] = "crop"
    crop_pct: Annotated[float, Field(gt=0.1, le=1)] = 1.0
    resample: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    on_bad_image: Literal["error", "skip"] = "error"
    max_pixels: Positive = 100_000_000
    splits: SplitShares = SplitShares()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"class names must be distinct, got {names}")
        return names


class ResNetParams(Section):
    """Architecture of a ResNet (He et al. 2015), named as in Hugging Face's ``ResNetConfig``."""

    num_channels: Positive = 3
    embedding_size: Positive = 64
    hidden_sizes: list[Positive] = Field(default=[256, 512, 1024, 2048], min_length=1)
    depths: list[Positive] = Field(default=[3, 4, 6, 3], min_length=1)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: Activation = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False

    @model_validator(mode="after")
    def _same_length(self) -> ResNetParams:
        _check_lengths(depths=len(self.depths), hidden_sizes=len(self.hidden_sizes))
        if self.layer_type == "bottleneck" and any(size % 4 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes {self.hidden_sizes}: a bottleneck needs multiples of 4")
        return self


class ConvNextParams(Section):
    """Architecture of a ConvNeXt (Liu et al. 2022), named as in Hugging Face's ``ConvNextConfig``."""

    num_channels: Positive = 3
    patch_size: Positive = 4
    num_stages: Positive = 4
    hidden_sizes: list[Positive] = Field(default=[96, 192, 384, 768], min_length=1)
    depths: list[Positive] = Field(default=[3, 3, 9, 3], min_length=1)
    hidden_act: Activation = "gelu"
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    layer_scale_init_value: Annotated[float, Field(ge=0)] = 1e-6
    drop_path_rate: Share = 0.0

    @model_validator(mode="after")
    def _same_length(self) -> ConvNextParams:
        _check_lengths(num_stages=self.num_stages, depths=len(self.depths), hidden_sizes=len(self.hidden_sizes))
        return self


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"must describe the same number of stages, got {told}")


class ModelParams(Section):
    """Which network is trained; both architectures stand side by side, ``model_type`` chooses.

    ``preset`` names a published size, which then stands for the sizes in the block of its architecture. Where it is
    null, ``weights`` with a published name (``microsoft/resnet-50``) sets the size.
    """

    model_type: Literal["resnet", "convnext"] = "resnet"
    preset: str | None = None
    num_labels: Annotated[int, Field(ge=2)] | None = None
    weights: str | None = None
    weights_include: list[str] | None = None
    weights_exclude: list[str] = []
    resnet: ResNetParams = ResNetParams()
    convnext: ConvNextParams = ConvNextParams()

    @property
    def architecture(self) -> ResNetParams | ConvNextParams:
        """The block that ``model_type`` chooses, with the sizes that ``preset`` or ``weights`` name."""
        block = self.resnet if self.model_type == "resnet" else self.convnext
        name = self._size_name()
        return block if name is None else block.model_copy(update=find_preset(name).settings)

    def _size_name(self) -> str | None:
        published = self.weights is not None and self.weights.startswith(("microsoft/resnet-", "facebook/convnext-"))
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
        return self


COST_SENSITIVE_LOSSES = frozenset(
    {
        "expected_cost",
        "cost_regularized",
        "cost_weighted",
        "legacy_logit_adjustment",
        "legacy_logit_adjustment_regularized",
        "legacy_cost_matrix_cross_entropy",
    }
)


# The parameters of the section that each loss uses, besides ``name``.
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("label_smoothing", "class_weights"),
    "focal": ("focal_gamma",),
    "class_balanced": ("class_balanced_beta",),
    "ldam": ("ldam_max_margin", "ldam_scale", "class_balanced_beta"),
    "logit_adjusted": ("logit_adjusted_tau",),
    "seesaw": (),
    "expected_cost": ("warmup_epochs",),
    "cost_regularized": ("cost_lambda", "warmup_epochs"),
    "cost_weighted": (),
    "legacy_logit_adjustment": (),
    "legacy_logit_adjustment_regularized": ("cost_lambda", "warmup_epochs"),
    "legacy_cost_matrix_cross_entropy": (),
}


class LossParams(Section):
    """The training loss."""

    name: Literal[
        "cross_entropy",
        "focal",
        "class_balanced",
        "ldam",
        "logit_adjusted",
        "seesaw",
        "expected_cost",
        "cost_regularized",
        "cost_weighted",
        "legacy_logit_adjustment",
        "legacy_logit_adjustment_regularized",
        "legacy_cost_matrix_cross_entropy",
    ] = "cross_entropy"
    label_smoothing: Share = 0.0
    class_weights: Literal["balanced"] | None = None
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    class_balanced_beta: Share = 0.999
    ldam_max_margin: Annotated[float, Field(ge=0)] = 0.5
    ldam_scale: Annotated[float, Field(gt=0)] = 1.0
    logit_adjusted_tau: Annotated[float, Field(ge=0)] = 1.0
    cost_lambda: Annotated[float, Field(ge=0)] = 10.0
    warmup_epochs: Annotated[int, Field(ge=0)] = 5

    @model_validator(mode="after")
    def _consistent(self) -> LossParams:
        if self.name != "cross_entropy" and (self.label_smoothing or self.class_weights):
            raise ValueError(f"label_smoothing and class_weights belong to cross_entropy, not to {self.name}")
        return self

    @property
    def used(self) -> tuple[str, ...]:
        """The parameters of this section that the loss uses, besides ``name``."""
        return LOSS_OPTIONS[self.name]


class TrainParams(Section):
    """Optimisation of the model."""

    epochs: Positive = 20
    batch_size: Positive | Literal["auto"] = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: Literal["cosine", "linear", "constant", "step", "one_cycle"] = "cosine"
    warmup_ratio: Share = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    step_epochs: Positive = 30
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    accumulation: Positive = 1
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    num_frozen_stages: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    gradient_checkpointing: bool = False
    sampling_power: Annotated[float, Field(ge=0, le=1)] = 1.0
    augment: Literal["none", "light", "standard", "strong"] = "none"
    horizontal_flip: bool = False
    auto_augment: Literal["none", "randaugment", "trivialaugment"] | None = None
    color_jitter: Share = 0.0
    random_erasing: Annotated[float, Field(ge=0, le=1)] | None = None
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    monitor: Literal["log_loss", "accuracy", "balanced_accuracy", "macro_f1", "normalised_cost"] = "log_loss"
    early_stopping_patience: Positive | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    loader_workers: Annotated[int, Field(ge=0)] = 0
    processes: Positive = 1
    sync_batchnorm: bool = False
    sharded: bool = False
    compile: bool = False
    deterministic: bool = True
    tf32: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class CostEntry(Section):
    """The price of deciding ``predicted`` where the truth is ``true``.

    YAML reads a bare ``true`` as a boolean, in keys too, so it must be quoted: ``{'true': a, predicted: b, cost: 10}``.
    On a command line of DVC, where a key cannot be quoted, ``actual`` stands for it.
    """

    true: str = Field(validation_alias=AliasChoices("true", "actual"))
    predicted: str
    cost: float


class CostParams(Section):
    """The cost matrix by class name: rows are the true class, columns the predicted one.

    Built in this order: ``preset`` (or ``matrix``, a full table ``{true: {predicted: cost}}``, or rows of numbers in
    the sorted order of the class names), then ``entries`` on top. ``default`` is the price of a mistake, of a unit of
    distance under ``absolute_difference``. ``refer`` is the price of handing an image to a person, null if nobody is
    there; ``prior`` the share of each class where the model will work, null if as in the training split.
    """

    preset: Literal["uniform", "absolute_difference"] = "uniform"
    default: Annotated[float, Field(ge=0)] = 1.0
    power: Annotated[float, Field(gt=0)] = 1.0
    order: list[str] | None = None
    entries: list[CostEntry] = []
    matrix: dict[str, dict[str, float]] | list[list[float]] | None = None
    refer: float | None = None
    prior: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = None

    @field_validator("prior")
    @classmethod
    def _adds_up(cls, prior: dict[str, float] | None) -> dict[str, float] | None:
        if prior is not None and not math.isclose(sum(prior.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares add up to {sum(prior.values()):g}; they must add up to 1")
        return prior


class RecallFloor(Section):
    """The share of a class's images that the rule must find, and how sure that must be (one-sided)."""

    name: str = Field(alias="class")
    floor: Annotated[float, Field(gt=0, lt=1)] = 0.95
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class EvaluateParams(Section):
    """How logits become decisions, and how they are judged. Read by ``evaluate`` alone.

    ``recall_of`` names classes whose recall and miss rate are metrics of their own; ``resamples`` is the number of
    bootstrap resamples behind every interval, ``confidence`` their level.
    """

    calibration: Literal["temperature", "vector", "dirichlet", "isotonic", "none", "auto"] = "temperature"
    decision: Literal["min_expected_cost", "argmax", "recall_floor"] = "min_expected_cost"
    recall_floor: RecallFloor | None = None
    recall_of: list[str] = []
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    ece_bins: Annotated[int, Field(ge=2, le=100)] = 15
    flip_averaging: bool = False
    batch_size: Positive = 256

    @model_validator(mode="after")
    def _floor_is_given(self) -> EvaluateParams:
        if self.decision == "recall_floor" and self.recall_floor is None:
            raise ValueError(
                "decision: recall_floor needs the class and its floor, "
                "as recall_floor: {class: venomous, floor: 0.95, confidence: 0.95}"
            )
        return self


class Params(Section):
    """All of ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    data: DataParams = DataParams()
    model: ModelParams = ModelParams()
    loss: LossParams = LossParams()
    train: TrainParams = TrainParams()
    costs: CostParams = CostParams()
    evaluate: EvaluateParams = EvaluateParams()

    @model_validator(mode="after")
    def _calibration_has_data(self) -> Params:
        if self.data.splits.calibration or self.data.source == "csv":
            return self
        if self.evaluate.calibration != "none":
            raise ValueError(
                f"evaluate.calibration: {self.evaluate.calibration} needs images to calibrate on, "
                "but data.splits.calibration is 0; raise it or set evaluate.calibration: none"
            )
        if self.evaluate.decision == "recall_floor":
            raise ValueError("evaluate.decision: recall_floor needs images to prove the recall on, "
                             "but data.splits.calibration is 0; raise it")  # fmt: skip
        return self

    @property
    def training_uses_costs(self) -> bool:
        """Whether the training result depends on the cost matrix."""
        return self.loss.name in COST_SENSITIVE_LOSSES or self.training_uses_policy

    @property
    def training_uses_policy(self) -> bool:
        """Whether the training result depends on the section ``evaluate``."""
        return self.train.monitor == "normalised_cost"


def load_params(path: str | Path = "params.yaml", overrides: Sequence[str] = ()) -> Params:
    """Read and validate a ``params.yaml``.

    Parameters
    ----------
    overrides : ``full.name=value`` texts, as DVC's ``-S`` takes them; the value is YAML.

    Raises
    ------
    UdcError
        The file is missing or no YAML, or a parameter is unknown or not allowed; all such are named in one message.
    """
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml12Loader)
    except FileNotFoundError:
        raise UdcError(f"{path}: no such file; run from the project's root, or copy params.yaml there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UdcError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UdcError(f"{path}: not valid YAML: {error}") from None
    raw = raw if raw is not None else {}
    for override in overrides:
        _override(raw, override)
    return validate_params(raw, str(path))


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one ``full.name=value`` in the parsed contents of a parameter file."""
    name, equals, value = override.partition("=")
    if not equals:
        raise UdcError(f"{override}: must be name=value, as costs.refer=2")
    *sections, key = full_name(name).split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    try:
        raw[key] = yaml.load(value, Loader=_Yaml12Loader)
    except yaml.YAMLError as error:
        raise UdcError(f"{override}: the value is not valid YAML: {error}") from None


def validate_params(raw: Any, origin: str) -> Params:
    """Validate the parsed contents of a parameter file; ``origin`` names it in error messages."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise UdcError(f"{origin} is not valid:\n{lines}") from None


def _explain(item: Any) -> str:
    """One validation error as ``full.name: what is wrong (got …)``."""
    keys = [str(key) for key in item["loc"]]
    name = ".".join(keys) or "parameters"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        allowed = _fields_at(keys[:-1])
        close = difflib.get_close_matches(keys[-1], allowed, n=1)
        hint = f"; did you mean {'.'.join([*keys[:-1], close[0]])}?" if close else ""
        return f"{name}: no such parameter{hint} Allowed here: {', '.join(allowed)}"
    if item["type"] in ("value_error", "missing"):
        return f"{name}: {message}"
    return f"{name}: {message}, got {item['input']!r}"


def _fields_at(keys: list[str]) -> list[str]:
    """The names of the parameters in the section that ``keys`` leads to."""
    section: Any = Params
    for key in keys:
        found = section.model_fields.get(key) if hasattr(section, "model_fields") else None
        if found is None:
            break
        section = found.annotation
    return sorted(getattr(section, "model_fields", {}))


class _Yaml12Loader(yaml.SafeLoader):
    """A SafeLoader that reads numbers as YAML 1.2 (and so DVC) does, and refuses keys given twice or not texts.

    PyYAML follows YAML 1.1, where ``1e-05``, which is how DVC writes small numbers into params.yaml, is a string.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"the key {key_node.value} is not read as a text here; put it in quotes: '{key_node.value}'"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def full_name(name: str) -> str:
    """The full name of a parameter given by its last part, if only one has it: ``epochs`` is ``train.epochs``.

    Raises
    ------
    UdcError
        No parameter, or more than one, is called that.
    """
    known = _names(Params)
    if name in known:
        return name
    found = [full for full in known if full.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise UdcError(f"{name}: could be any of {', '.join(found)}; give the full name")
    close = difflib.get_close_matches(name, [*known, *(full.rpartition(".")[2] for full in known)], n=1)
    raise UdcError(f"{name}: no such parameter" + (f"; did you mean {close[0]}?" if close else ""))


def _names(section: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for key, field in section.model_fields.items():
        names.append(prefix + key)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _names(field.annotation, f"{prefix}{key}.")
    return names
