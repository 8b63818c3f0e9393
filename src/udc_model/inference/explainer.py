"""Explains images: saliency maps, and the most similar training images of the same classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from udc_model.data.transforms import Preprocessing
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.neighbours import TrainingFeatures
from udc_model.inference.saliency import saliency, uses_grad_cam
from udc_model.model_files.folder import ModelFolder


@dataclass(frozen=True)
class Explainer:
    """A trained model and the training images to which others are compared.

    Parameters
    ----------
    classifier : in the precision of the evaluation, which computes features.
    exact : the same model in ``fp32``, which computes maps.
    references : features of training images, by ``classifier``.
    """

    classifier: TrainedClassifier
    exact: TrainedClassifier
    references: TrainingFeatures

    @classmethod
    def of(
        cls, model: ModelFolder, preprocessing: Preprocessing, classifier: TrainedClassifier,
        references: TrainingFeatures,
    ) -> Explainer:  # fmt: skip
        """The explainer of a model folder; ``classifier`` is of the same folder."""
        exact = classifier
        if classifier.precision != "fp32":
            exact = TrainedClassifier.of(model, preprocessing, classifier.flip_averaging)
        return cls(classifier, exact, references)

    @cached_property
    def uses_grad_cam(self) -> bool:
        """Whether maps are those of Grad-CAM, which are fast, see `saliency`."""
        return uses_grad_cam(self.exact)

    def explain(
        self, images: NDArray[np.uint8], classes: NDArray[np.int64], batch_size: int = 256
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Explain prepared images (N, S, S, C), N > 0, for classes (N, T).

        Returns
        -------
        Maps (N, T, h, w), 255 for 1; and the row in the training split of the most similar reference of each class
        (N, T), -1 for none.
        """
        maps = saliency(self.exact, images, classes)
        features = self.classifier.features_of_stored(images, batch_size)
        neighbours = [self.references.nearest(features, 1, each)[0][:, 0] for each in classes.T]
        return np.rint(255 * maps).astype(np.uint8), np.stack(neighbours, axis=1)
