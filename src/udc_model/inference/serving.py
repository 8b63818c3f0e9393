"""The model that MLflow serves: maps images to decisions. MLflow loads it by :func:`_load_pyfunc`, without pickle."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from udc_model.data.decode import decode, to_channels
from udc_model.data.formats import BadImageError
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.inference.prediction import decided_rows
from udc_model.inference.stored_model import StoredModel

_CHARACTERS_PER_PIXEL = 8  # largest base64 text: that of uncompressed 16-bit RGB


class ServedClassifier:
    """Decides images that are arrays or base64-encoded image files.

    Parameters
    ----------
    folder : folder with the policy and the model folder.

    Raises
    ------
    UdcError
        A file is missing or damaged, or policy and model do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        stored = StoredModel.open(Workspace(folder).model, folder)
        self.policy, self.classifier = stored.policy, stored.load()

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Decide the image of every row.

        Parameters
        ----------
        model_input : data frame with the column ``image``. A value is an (H, W) or (H, W, 3) array or nested list of
            integers from 0 to 255, or the base64 encoding of a JPEG, PNG, … file of any depth. A file is
            decoded with the settings that are stored with the model.
        params : ignored; part of MLflow's interface.

        Returns
        -------
        Data frame with the columns ``class``, ``expected_cost`` and ``probabilities``, a mapping from class name to
        calibrated probability; and of a policy with familiarity ``familiarity`` and ``unfamiliar``.

        Raises
        ------
        UdcError
            The column is missing or empty, or a value is not an image; the message contains the number of the row.
        """
        if "image" not in model_input:
            columns = ", ".join(map(str, model_input.columns))
            raise UdcError(f"the input must have a column 'image'; its columns are {columns}")
        if model_input.empty:
            raise UdcError("the request has no images; send at least one row")
        preprocessing = self.classifier.preprocessing
        images = [_prepared(value, row, preprocessing) for row, value in enumerate(model_input["image"])]
        return pd.DataFrame(decided_rows(self.classifier.outputs_of_stored(np.stack(images)), self.policy))


def image_of(value: Any, decoding: Decoding) -> Image.Image:
    """The image of a value in a request; a request has one decision for it, so the file must have one frame.

    Parameters
    ----------
    value : an encoded image file, or base64 text of one; or an (H, W) or (H, W, 3) array or nested lists of integers.

    Raises
    ------
    BadImageError
        It is not an image that can be used.
    """
    single = replace(decoding, frames="error") if decoding.frames == "each" else decoding
    if isinstance(value, bytes):
        return decode(value, single)
    if isinstance(value, str):
        if len(value) > _CHARACTERS_PER_PIXEL * decoding.max_pixels:
            raise BadImageError("the base64 text is too long")
        try:
            return decode(base64.b64decode(value, validate=True), single)
        except ValueError as error:  # binascii.Error, or text that is not ASCII
            raise BadImageError(str(error)) from None
    return to_channels(Image.fromarray(_pixels(value)), decoding.channels)


def _prepared(value: Any, row: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    try:
        return preprocessing.to_stored(image_of(value, preprocessing.decoding))
    except BadImageError as error:
        raise UdcError(f"image {row}: {error}") from None


def _pixels(value: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        array = np.asarray(value)
        if array.dtype == object and array.ndim == 1:
            array = np.array(array.tolist())
    except ValueError as error:  # ragged lists
        raise BadImageError(str(error)) from None
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise BadImageError(f"an array must be (H, W) or (H, W, 3), got shape {array.shape}")
    if array.ndim == 2 and array.shape[1] == 3:  # of {"inputs": image}, MLflow makes every row of pixels an image
        raise BadImageError(f"an array of shape {array.shape} may be a row of pixels, not an image; send a list of "
                            "images, also for a single one")  # fmt: skip
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        raise BadImageError("an array must hold integers from 0 to 255")
    return array.astype(np.uint8)


class _PyfuncModel:
    """What MLflow calls: a value that is not an image is an answer of one sentence with status 400.

    Of any other exception, MLflow's server sends the traceback.
    """

    def __init__(self, served: ServedClassifier) -> None:
        self._served = served

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """See `ServedClassifier.predict`."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import BAD_REQUEST

        try:
            return self._served.predict(model_input, params)
        except UdcError as error:
            raise MlflowException(str(error), error_code=BAD_REQUEST) from None
        except MemoryError:
            raise MlflowException("the images do not fit into memory", error_code=BAD_REQUEST) from None


def _load_pyfunc(path: str) -> _PyfuncModel:
    """Load the model from a logged folder; MLflow calls this function."""
    return _PyfuncModel(ServedClassifier(Path(path)))
