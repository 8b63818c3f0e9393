"""The contents of a model folder's ``config.json``: architecture and classes, typed and bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from udc_model.config.model import MODEL_TYPES, ConvNextParams, ModelType, ResNetParams, TimmParams
from udc_model.config.train import MAX_MEMBERS
from udc_model.errors import UdcError
from udc_model.records import Record, validated

Settings = dict[str, Any]

_MAX_CLASSES = 2**16
_IGNORES_UNKNOWN = ConfigDict(extra="ignore", protected_namespaces=())  # keys of transformers without effect here
_ClassName = Annotated[str, Field(max_length=10_000)]
_Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]


class _Labels(BaseModel):
    """Classes, and what transformers writes about a classifier."""

    id2label: Annotated[dict[str, _ClassName], Field(min_length=1, max_length=_MAX_CLASSES)] = {
        "0": "LABEL_0", "1": "LABEL_1",
    }  # fmt: skip
    label2id: Annotated[dict[str, int], Field(max_length=_MAX_CLASSES)] | None = None
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    output_hidden_states: bool = False
    return_dict: bool = True

    @model_validator(mode="after")
    def _labels_are_consistent(self) -> _Labels:
        count = len(self.id2label)
        if any(str(i) not in self.id2label for i in range(count)):
            raise ValueError(f"id2label: has {count} classes; its keys must be the numbers from 0 to {count - 1}")
        for name, index in (self.label2id or {}).items():
            if self.id2label.get(str(index)) != name:
                raise ValueError(f"label2id: {name[:80]!r} is {index}, but id2label has another name for it")
        return self


class StoredResNet(_Labels, ResNetParams):
    """``config.json`` of a ResNet."""

    model_config = _IGNORES_UNKNOWN


class StoredConvNext(_Labels, ConvNextParams):
    """``config.json`` of a ConvNeXt."""

    model_config = _IGNORES_UNKNOWN

    initializer_range: Annotated[float, Field(ge=0, le=1)] = 0.02


class StoredTimm(_Labels, TimmParams):
    """``config.json`` of a network of timm."""

    model_config = _IGNORES_UNKNOWN


StoredNetwork = StoredResNet | StoredConvNext | StoredTimm
STORED: dict[ModelType, type[StoredNetwork]] = {
    "resnet": StoredResNet, "convnext": StoredConvNext, "timm": StoredTimm,
}  # fmt: skip
assert tuple(STORED) == MODEL_TYPES


class _Architecture(Record):
    model_type: ModelType | Literal["ensemble"]


class _Ensemble(Record):
    member_type: ModelType
    temperatures: Annotated[list[_Temperature], Field(min_length=1, max_length=MAX_MEMBERS)]


@dataclass(frozen=True)
class StoredEnsemble:
    """``config.json`` of an ensemble: that of each member, and a temperature for each."""

    member: StoredNetwork
    temperatures: list[float]

    @property
    def id2label(self) -> dict[str, str]:
        """Class names by index."""
        return self.member.id2label

    @property
    def num_channels(self) -> int:
        """Channels of the input image."""
        return self.member.num_channels


Architecture = StoredNetwork | StoredEnsemble


def check_settings(settings: Settings, origin: str, advice: str) -> Architecture:
    """The architecture and the classes that the contents of a ``config.json`` describe.

    Raises
    ------
    UdcError
        A value has another type or is out of bounds; one line with the field, its value and what is allowed.
    """
    model_type = validated(settings, _Architecture, origin, advice).model_type
    if model_type == "ensemble":
        ensemble = validated(settings, _Ensemble, origin, advice)
        member = check_settings(settings | {"model_type": ensemble.member_type}, origin, advice)
        assert not isinstance(member, StoredEnsemble)
        return StoredEnsemble(member, ensemble.temperatures)
    return validated(settings, STORED[model_type], origin, advice)


def check_channels(architecture: Architecture, channels: int, folder: str) -> None:
    """:class:`UdcError` unless the network takes as many channels as its preprocessing makes."""
    if architecture.num_channels != channels:
        raise UdcError(f"{folder}: config.json has num_channels {architecture.num_channels}, but "
                       f"preprocessor_config.json makes images of {channels} channel(s)")  # fmt: skip
