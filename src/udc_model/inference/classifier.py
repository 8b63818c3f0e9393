"""Computes logits of images with a trained model, for evaluate, predict and the served model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from udc_model.data.logits import Images, compute_logits
from udc_model.data.transforms import Preprocessing
from udc_model.inference.engine import build_forward
from udc_model.model_files.folder import ModelFolder
from udc_model.model_files.settings import check_channels
from udc_model.models.ensemble import Ensemble
from udc_model.models.factory import best_device, model_of_folder
from udc_model.models.staged import ImageClassifier


@dataclass
class TrainedClassifier:
    """A trained model and its preprocessing on one device.

    Attributes
    ----------
    model : the model in eval mode.
    preprocessing : converts images to inputs of the model.
    device : device of the model.
    flip_averaging : average the logits of each image and its mirror image.
    precision : of the forward pass, see `build_forward`; unless it is ``fp32``, the model is changed.
    """

    model: ImageClassifier | Ensemble
    preprocessing: Preprocessing
    device: torch.device
    flip_averaging: bool = False
    precision: str = "fp32"

    def __post_init__(self) -> None:
        """Prepare the forward pass."""
        self._forward = build_forward(self.model, self.device, self.precision)

    @classmethod
    def load(cls, folder: Path, flip_averaging: bool = False, precision: str = "fp32") -> TrainedClassifier:
        """Load a model folder onto the best available device.

        Raises
        ------
        UdcError
            The folder is incomplete or damaged.
        """
        return cls.of(ModelFolder.open(folder), Preprocessing.load(folder), flip_averaging, precision)

    @classmethod
    def of(
        cls, stored: ModelFolder, preprocessing: Preprocessing, flip_averaging: bool = False, precision: str = "fp32"
    ) -> TrainedClassifier:
        """The model of a folder that was read, on the best available device."""
        check_channels(stored.architecture, preprocessing.channels, str(stored.folder))
        device = torch.device(best_device())
        return cls(model_of_folder(stored).to(device), preprocessing, device, flip_averaging, precision)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        names = self.model.config.id2label
        return [names[i] for i in range(len(names))]

    def logits_of_stored(
        self, stored: Images, batch_size: int = 256, progress: str | None = None
    ) -> NDArray[np.float32]:
        """Compute logits (N, K) of prepared images (N, S, S, C) uint8; ``progress`` is the label of a progress bar."""
        if not len(stored):
            return np.empty((0, len(self.classes)), np.float32)
        return compute_logits(self._forward, stored, self.preprocessing, batch_size, progress, self.flip_averaging,
                              self.device)  # fmt: skip

    def logits(self, images: Sequence[Image.Image], batch_size: int = 256) -> NDArray[np.float32]:
        """Compute logits (N, K) of N > 0 images of any size, with the mode that `decode` returns."""
        return self.logits_of_stored(np.stack([self.preprocessing.to_stored(image) for image in images]), batch_size)
