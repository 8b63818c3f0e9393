"""From images to logits with a trained model: the one path of evaluate, predict and the served model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from udc_model.data.logits import compute_logits
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.models.factory import best_device, load_model
from udc_model.models.staged import ImageClassifier


@dataclass
class TrainedClassifier:
    """A model folder (weights, configuration, preprocessing) on one device, in float32.

    With ``flip_averaging`` logits are the mean of an image's and its mirror image's.
    """

    model: ImageClassifier
    preprocessing: Preprocessing
    device: torch.device
    flip_averaging: bool = False

    @classmethod
    def load(cls, folder: Path, flip_averaging: bool = False) -> TrainedClassifier:
        """Load a model folder onto the best device; :class:`UdcError` if the folder is not whole."""
        device = torch.device(best_device())
        return cls(load_model(folder).to(device), Preprocessing.load(folder), device, flip_averaging)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        names = self.model.config.id2label
        return [names[i] for i in range(len(names))]

    def logits_of_stored(
        self, stored: NDArray[np.uint8], batch_size: int = 256, progress: str | None = None
    ) -> NDArray[np.float32]:
        """Logits (N, K) of stored squares (N, S, S, 3) uint8; ``progress`` names a bar on a terminal."""

        def forward(images: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.model(images.to(self.device)).logits)

        if not len(stored):
            return np.empty((0, len(self.classes)), np.float32)
        return compute_logits(forward, stored, self.preprocessing, batch_size, progress, self.flip_averaging)

    def logits(self, images: Sequence[Image.Image], batch_size: int = 256) -> NDArray[np.float32]:
        """Logits (N, K) of decoded RGB images of any size."""
        return self.logits_of_stored(np.stack([self.preprocessing.to_stored(image) for image in images]), batch_size)


def check_same_classes(classifier: TrainedClassifier, policy: Policy, origin: str) -> None:
    """:class:`UdcError` if a decision policy was made for other classes than the model's."""
    if classifier.classes != policy.classes:
        raise UdcError(f"{origin} is for the classes {', '.join(policy.classes)}; "
                       f"the model has {', '.join(classifier.classes)}")  # fmt: skip
