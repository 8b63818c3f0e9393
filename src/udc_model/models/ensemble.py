"""An ensemble: networks of one architecture, whose calibrated probabilities are averaged (Lakshminarayanan 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from udc_model.models.architectures import CLASSIFIERS
from udc_model.models.base import CustomConfig, CustomPreTrainedModel
from udc_model.models.outputs import ImageClassifierOutputWithNoAttention


class EnsembleConfig(CustomConfig):
    """Configuration of an ensemble; its ``config.json`` is that of a member with other names of the architecture.

    Other libraries refuse ``model_type: ensemble``. With a member's name they would load random weights.

    Parameters
    ----------
    member : configuration of each member.
    temperatures : divisor of the logits of each member, positive; their number is that of the members.
    """

    model_type: ClassVar[str] = "ensemble"
    architecture: ClassVar[str] = "Ensemble"

    def __init__(self, member: CustomConfig, temperatures: Sequence[float]) -> None:
        super().__init__(id2label=member.id2label, problem_type=member.problem_type)
        self.member, self.temperatures = member, list(temperatures)

    @property
    def num_channels(self) -> int:
        """Channels of the input image."""
        return int(self.member.num_channels)  # type: ignore[attr-defined]  # all architectures define it

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON values."""
        return self.member.to_dict() | {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "member_type": self.member.model_type,
            "temperatures": self.temperatures,
        }

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        shared = {key: value for key, value in settings.items() if key not in ("member_type", "temperatures")}
        config_class = CLASSIFIERS[settings["member_type"]].config_class
        return cls(config_class.from_dict(shared), settings["temperatures"])


class Ensemble(CustomPreTrainedModel):
    """Classifiers whose output is the logarithm of the mean of their calibrated probabilities."""

    config_class = EnsembleConfig
    config: EnsembleConfig

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__(config)
        kind = CLASSIFIERS[config.member.model_type]
        self.members = nn.ModuleList(kind(config.member) for _ in config.temperatures)

    @classmethod
    def of_members(
        cls, config: CustomConfig, temperatures: Sequence[float], states: Sequence[Mapping[str, Tensor]]
    ) -> Self:
        """The ensemble of trained members, in eval mode; it shares their weights.

        Parameters
        ----------
        config : configuration of each member.
        temperatures, states : temperature and weights of each member.
        """
        with torch.device("meta"):  # nothing is allocated or drawn: all weights are assigned below
            model = cls(EnsembleConfig(config, temperatures))
        weights = {f"members.{i}.{key}": value for i, state in enumerate(states) for key, value in state.items()}
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        """Map (N, num_channels, H, W) to logits (N, num_labels), the logarithms of the mean probabilities."""
        logits = [member(pixel_values, return_dict=True).logits for member in self.members]
        return ImageClassifierOutputWithNoAttention(logits=self._joined(logits))

    def logits_and_features(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (N, num_channels, H, W) to logits (N, num_labels), and to the features (N, D) of each member."""
        outputs = [member.logits_and_features(pixel_values) for member in self.members]  # type: ignore[operator]
        return self._joined([logits for logits, _ in outputs]), [each for _, features in outputs for each in features]

    def _joined(self, logits: Sequence[Tensor]) -> Tensor:
        """The logarithm (N, num_labels) of the mean probabilities of the members' logits."""
        log_p = [(each / temperature).log_softmax(dim=1)
                 for each, temperature in zip(logits, self.config.temperatures, strict=True)]  # fmt: skip
        return torch.stack(log_p).logsumexp(dim=0) - math.log(len(log_p))
