"""Explanations of test images, computed when they are first needed and stored by model and data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from udc_model.config import EvaluateParams
from udc_model.data.packed import PackedDataset
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.evaluation.explanations import (
    CLASSES_BY_GRADIENT,
    MOST_BY_GRADIENT,
    MOST_CLASSES,
    MOST_IMAGES,
    Explanations,
    explained_classes,
    explained_rows,
)
from udc_model.files import Workspace, remove_oldest
from udc_model.inference.neighbours import TrainingFeatures, compute_training_features
from udc_model.inference.stored_logits import logits_key
from udc_model.model_files.folder import ModelFolder
from udc_model.stages.code import EXPLANATIONS, LOGITS, code_files
from udc_model.tracking.store import repository_root

if TYPE_CHECKING:
    from udc_model.inference.classifier import TrainedClassifier
    from udc_model.inference.explainer import Explainer
    from udc_model.inference.stored_model import StoredModel

logger = logging.getLogger(__name__)

_MOST_STORED = 20  # models, as of logits
_BLOCK = 64  # images in memory at a time


@dataclass(frozen=True)
class ExplanationStore:
    """What explains the images of one model and data set.

    Parameters
    ----------
    workspace : with the model and the prepared data.
    dataset : the prepared data.
    evaluate : batch size, flip averaging and precision, which is resolved.
    """

    workspace: Workspace
    dataset: PackedDataset
    evaluate: EvaluateParams

    @property
    def folder(self) -> Path:
        """All stored explanations, in the repository's cache."""
        return repository_root() / ".udc" / "explanations"

    def explanations(self, logits: NDArray[np.float32], distances: NDArray[np.float32]) -> Explanations:
        """Those of the test images with these logits and distances that are explained first, see `explained_rows`."""
        path = self._path(EXPLANATIONS, "explanations")
        try:
            return Explanations.load(path)
        except FileNotFoundError:
            pass
        except UdcError as error:
            logger.warning("%s; the images are explained again", error)
        explainer = self.explainer()
        most = MOST_IMAGES if explainer.uses_grad_cam else MOST_BY_GRADIENT
        rows = explained_rows(logits, self.dataset.split("test").labels, distances, most)
        explanations = self._explained(explainer, rows, logits)
        try:
            explanations.save(path)
            remove_oldest(self.folder, "explanations-*.npz", _MOST_STORED)
        except OSError as error:
            logger.warning("%s: explanations cannot be stored (%s)", self.folder, error)
        return explanations

    def _explained(self, explainer: Explainer, rows: NDArray[np.int64], logits: NDArray[np.float32]) -> Explanations:
        """The explanations of test images; ``logits`` are those of all test images."""
        test = self.dataset.split("test")
        parts = []
        with tqdm(total=len(rows), desc="explaining images", unit="img", disable=None, leave=False) as bar:
            for start in range(0, len(rows), _BLOCK):
                part = rows[start : start + _BLOCK]
                images = np.asarray(test.images[part])
                parts.append(explanations_of(explainer, part, images, logits[part], test.labels[part, None]))
                bar.update(len(part))
        return Explanations.joined(parts)

    def explainer(self) -> Explainer:
        """The model, loaded, and the training images to which others are compared."""
        from udc_model.inference.classifier import TrainedClassifier  # torch
        from udc_model.inference.explainer import Explainer

        model, preprocessing = ModelFolder.open(self.workspace.model), Preprocessing.load(self.workspace.model)
        classifier = TrainedClassifier.of(model, preprocessing, self.evaluate.flip_averaging, self.evaluate.precision)
        return Explainer.of(model, preprocessing, classifier, self.training_features(classifier))

    def training_features(self, classifier: TrainedClassifier) -> TrainingFeatures:
        """The stored features of training images, or those that the classifier computes."""
        try:
            return TrainingFeatures.load(self._path(LOGITS, "features"))
        except FileNotFoundError:
            pass
        except UdcError as error:
            logger.warning("%s; the features are computed again", error)
        return self.compute_training_features(classifier)

    def compute_training_features(self, classifier: TrainedClassifier) -> TrainingFeatures:
        """Compute the features of training images, and store them."""
        features = compute_training_features(classifier, self.dataset.split("train"), self.evaluate.batch_size)
        try:
            features.save(self._path(LOGITS, "features"))
            remove_oldest(self.folder, "features-*.npz", _MOST_STORED)
        except OSError as error:
            logger.warning("%s: features cannot be stored (%s)", self.folder, error)
        return features

    def _path(self, code: tuple[str, ...], kind: str) -> Path:
        key = logits_key(self.workspace.model, self.dataset.info["digest"], self.evaluate, code_files(code))
        return self.folder / f"{kind}-{key}.npz"


def explanations_of(
    explainer: Explainer, rows: NDArray[np.int64], images: NDArray[np.uint8], logits: NDArray[np.float32],
    needed: NDArray[np.int64],
) -> Explanations:  # fmt: skip
    """The explanations of E > 0 images for their most probable classes and those needed.

    Parameters
    ----------
    rows : (E,) by which each image is found.
    images : (E, S, S, C) prepared images.
    logits, needed : (E, K), and class indices (E, n).
    """
    is_fast = explainer.uses_grad_cam
    classes = explained_classes(logits, needed, MOST_CLASSES if is_fast else CLASSES_BY_GRADIENT)
    maps, neighbours = explainer.explain(images, classes)
    return Explanations(rows, classes, maps, neighbours, explainer.exact.preprocessing.size, not is_fast)


def explainer_of(stored: StoredModel, workspace: Workspace, classifier: TrainedClassifier | None = None) -> Explainer:
    """What explains images by a model and the prepared data of its workspace.

    Parameters
    ----------
    stored : the model and its policy.
    workspace : with the model and the prepared data, from which the features of training images are computed unless
        they are stored.
    classifier : ``stored.load()``, if it is loaded already.

    Raises
    ------
    UdcError
        The prepared data is missing or damaged.
    """
    from udc_model.inference.explainer import Explainer

    classifier = classifier or stored.load()
    settings = {"flip_averaging": stored.policy.flip_averaging, "precision": stored.policy.precision}
    evaluate = EvaluateParams.model_validate(settings)
    store = ExplanationStore(workspace, PackedDataset.open(workspace.prepared), evaluate)
    return Explainer.of(stored.model, stored.preprocessing, classifier, store.training_features(classifier))
