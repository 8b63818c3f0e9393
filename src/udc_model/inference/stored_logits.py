"""Logits that a model once computed, kept beside the repository, so that a new price needs no model and no torch.

Deciding is cheap and happens often, running the model is neither. The key is all that determines the logits: the model
folder, the prepared data, the code and versions that ran. Nothing depends on the files: without them the model runs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import udc_model
from udc_model.config import EvaluateParams

Logits = dict[str, NDArray[np.float32]]
logger = logging.getLogger(__name__)

_KEPT = 20  # files
_CODE = (
    "inference/classifier.py",
    "data/logits.py",
    "data/transforms.py",
    "models",
    "native",
)  # what logits are computed with


def stored_logits(
    folder: Path, model: Path, data_digest: str, evaluate: EvaluateParams, compute: Callable[[], Logits]
) -> Logits:
    """The logits (N, K) by split that ``compute`` returns, from ``folder`` if they are there, else stored there.

    Parameters
    ----------
    folder : where logits are kept; the 20 files used last stay.
    model : the model folder, data_digest : of the prepared data, evaluate : how the model runs.
    """
    path = folder / f"{_key(model, data_digest, evaluate)}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name], dtype=np.float32) for name in file.files}
        os.utime(path)
        return found
    except FileNotFoundError:
        pass
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s); the model runs again", path, error)
    found = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.partial.npz")
        np.savez(scratch, **found)  # type: ignore[arg-type]  # its stubs take the names for options
        scratch.replace(path)
        for old in sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime)[:-_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s: logits are not kept (%s)", folder, error)
    return found


def _key(model: Path, data_digest: str, evaluate: EvaluateParams) -> str:
    digest = hashlib.sha256()
    package = Path(udc_model.__file__).parent
    code = [path for name in _CODE for path in sorted([package / name, *(package / name).rglob("*")]) if path.is_file()]
    for path in [*sorted(model.iterdir()), *(path for path in code if path.suffix in (".py", ".c", ".h"))]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    versions = (version("torch"), version("numpy"), os.environ.get("UDC_KERNELS"))
    about = (data_digest, evaluate.batch_size, evaluate.flip_averaging, versions)
    digest.update(repr(about).encode())
    return digest.hexdigest()
