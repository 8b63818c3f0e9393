"""Why an image is decided as a class: the places that matter, and the training images that are most similar."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.app.decisions import MOST_FRAMES, Decider
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.evaluation.overlay import network_view, overlay
from udc_model.evaluation.report_images import thumbnail_uri
from udc_model.files import Workspace
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.decoding import prepared_frames
from udc_model.inference.explainer import Explainer
from udc_model.inference.inputs import BadInput, ImageInput
from udc_model.inference.saliency import saliency
from udc_model.inference.stored_model import open_stored
from udc_model.stages.explanations import explainer_of

_SIMILAR = 4  # training images that are shown


@dataclass(frozen=True)
class _Loaded:
    """The model in fp32, which draws maps; what knows the training images; and why there is none of it."""

    exact: TrainedClassifier
    explainer: Explainer | None
    note: str = ""


class UploadExplainer:
    """Explains the decisions of a model.

    Parameters
    ----------
    workspace : with ``model/``, ``evaluation/`` and, for training images, ``data/prepared/``.
    decider : of the same workspace.
    """

    def __init__(self, workspace: Workspace, decider: Decider) -> None:
        self._workspace, self._decider = workspace, decider
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def explain(self, image: ImageInput, class_name: str, frame: int = 1) -> dict[str, Any]:
        """The saliency of a class and the most similar training images.

        Parameters
        ----------
        class_name : a class of the model.
        frame : number of the frame that is explained, from 1; of an image that is no sequence, 1.

        Returns
        -------
        ``saliency``, an image as a data URI; ``similar``, training images with ``path``, ``label``, ``image`` and
        ``distance`` (0 is equal, 2 is opposite); ``note``, why there are no training images, or empty.

        Raises
        ------
        UdcError
            The image cannot be used or has no such frame, or the class is none of the model's.
        """
        policy, preprocessing = self._decider.policy, self._decider.preprocessing
        if class_name not in policy.classes:
            raise UdcError(f"{class_name[:80]!r} is no class of the model")
        if not 1 <= frame <= MOST_FRAMES:
            raise UdcError(f"frame {frame} is none of the {MOST_FRAMES} frames of an image that are decided")
        bad: list[BadInput] = []
        frames = list(islice(prepared_frames(image, preprocessing, bad.append), frame - 1, frame))
        if not frames:
            raise UdcError(bad[0].reason if bad else f"the image has no frame {frame}")
        pixels = frames[0][1]
        with self._lock:
            self._loaded = loaded = self._loaded or self._load()
            (drawn,) = saliency(loaded.exact, pixels[None], np.array([policy.classes.index(class_name)]))
            similar = [] if loaded.explainer is None else self._similar(loaded.explainer, pixels)
        view = network_view(pixels, preprocessing.size)
        return {"saliency": thumbnail_uri(overlay(view, drawn)), "similar": similar, "note": loaded.note}

    def _load(self) -> _Loaded:
        """Load what explains; the features of training images are computed unless they are stored."""
        stored = open_stored(self._workspace)
        try:
            explainer = explainer_of(stored, self._workspace, self._decider.classifier)
        except UdcError as error:
            exact = replace(stored, policy=replace(stored.policy, precision="fp32")).load()
            return _Loaded(exact, None, f"No similar training images: {error}")
        return _Loaded(explainer.exact, explainer)

    def _similar(self, explainer: Explainer, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """The training images that are most similar to a prepared image (S, S, C)."""
        features = explainer.classifier.features_of_stored(pixels[None])
        rows, distances = explainer.references.nearest(features, _SIMILAR)
        dataset = PackedDataset.open(self._workspace.prepared)
        split = dataset.split("train")
        return [
            {"path": split.paths[row], "label": dataset.classes[split.labels[row]], "distance": float(distance),
             "image": thumbnail_uri(np.array(split.images[row]))}
            for row, distance in zip(rows[0].tolist(), distances[0].tolist(), strict=True) if row >= 0
        ]  # fmt: skip
