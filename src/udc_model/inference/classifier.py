"""Computes logits and distances of images with a trained model, for evaluate, predict and the served model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from udc_model.data.logits import Images, compute_logits
from udc_model.data.transforms import Preprocessing
from udc_model.inference.engine import build_forward, features_of, with_distance
from udc_model.inference.feature_distance import FeatureDistance
from udc_model.inference.feature_statistics import FeatureStatistics
from udc_model.inference.outputs import Outputs
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
    statistics : of the features of training images, from which distances are computed; None for no distances.
    """

    model: ImageClassifier | Ensemble
    preprocessing: Preprocessing
    device: torch.device
    flip_averaging: bool = False
    precision: str = "fp32"
    statistics: FeatureStatistics | None = None

    def __post_init__(self) -> None:
        """Prepare the forward pass."""
        self._forward = build_forward(self.model, self.device, self.precision)
        self._with_distance: Callable[[Tensor], Tensor] | None = None
        if self.statistics is not None:
            self.use_statistics(self.statistics)

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
        cls, stored: ModelFolder, preprocessing: Preprocessing, flip_averaging: bool = False, precision: str = "fp32",
        statistics: FeatureStatistics | None = None,
    ) -> TrainedClassifier:  # fmt: skip
        """The model of a folder that was read, on the best available device."""
        check_channels(stored.architecture, preprocessing.channels, str(stored.folder))
        device = torch.device(best_device())
        return cls(model_of_folder(stored).to(device), preprocessing, device, flip_averaging, precision, statistics)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        names = self.model.config.id2label
        return [names[i] for i in range(len(names))]

    def use_statistics(self, statistics: FeatureStatistics) -> None:
        """Compute distances by these statistics from now on."""
        self.statistics = statistics
        self._with_distance = self._forward.computing(with_distance(FeatureDistance(statistics).to(self.device)))

    def outputs_of_stored(self, stored: Images, batch_size: int = 256, progress: str | None = None) -> Outputs:
        """Compute logits, and distances if there are statistics, of prepared images (N, S, S, C) uint8.

        With ``flip_averaging``, the distance too is the mean over an image and its mirror image.

        Parameters
        ----------
        progress : label of a progress bar.
        """
        if self._with_distance is None:
            return Outputs(self.logits_of_stored(stored, batch_size, progress))
        if not len(stored):
            return Outputs(np.empty((0, len(self.classes)), np.float32), np.empty(0, np.float32))
        computed = compute_logits(self._with_distance, stored, self.preprocessing, batch_size, progress,
                                  self.flip_averaging, self.device)  # fmt: skip
        return Outputs(np.ascontiguousarray(computed[:, :-1]), np.ascontiguousarray(computed[:, -1]))

    def features_of_stored(
        self, stored: Images, batch_size: int = 256, progress: str | None = None
    ) -> NDArray[np.float32]:
        """Compute the features (N, M, D) of N > 0 prepared images by each of M networks, not of mirror images."""
        forward = self._forward.computing(features_of)
        return compute_logits(forward, stored, self.preprocessing, batch_size, progress, device=self.device)

    def logits_of_stored(
        self, stored: Images, batch_size: int = 256, progress: str | None = None
    ) -> NDArray[np.float32]:
        """Compute logits (N, K) of prepared images (N, S, S, C) uint8; ``progress`` is the label of a progress bar."""
        if not len(stored):
            return np.empty((0, len(self.classes)), np.float32)
        return compute_logits(self._forward, stored, self.preprocessing, batch_size, progress, self.flip_averaging,
                              self.device)  # fmt: skip

    def outputs(self, images: Sequence[Image.Image], batch_size: int = 256) -> Outputs:
        """`outputs_of_stored` of N > 0 images of any size, with the mode that `decode` returns."""
        return self.outputs_of_stored(np.stack([self.preprocessing.to_stored(image) for image in images]), batch_size)
