"""Cache of logits on disk, so that an evaluation with new costs neither runs the model nor imports torch.

The key of an entry is everything that determines the logits: the model folder, the prepared data, the code and the
versions of libraries. If an entry is missing, the model runs. An entry also has the distances of the images to training
images, and the statistics from which they are computed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udc_model.config import EvaluateParams
from udc_model.files import atomic_file, remove_oldest
from udc_model.inference.feature_statistics import FeatureStatistics

Logits = dict[str, NDArray[np.float32]]
logger = logging.getLogger(__name__)

_MAX_FILES = 20
_WHITENING, _CENTRE, _DISTANCES = "whitening", "centre", "distances of "


def stored_logits(
    folder: Path,
    model: Path,
    data_digest: str,
    evaluate: EvaluateParams,
    code: Sequence[Path],
    compute: Callable[[], Logits],
) -> Logits:
    """Return the logits of a model from the cache, or compute and store them.

    Parameters
    ----------
    folder : folder of the cache; it keeps the 20 most recently used files.
    model : model folder.
    data_digest : digest of the prepared data.
    evaluate : batch size, flip averaging and precision, which is resolved.
    code : files that compute logits.
    compute : computes the logits.

    Returns
    -------
    Logits (N, K) by split, and what `familiarity_arrays` adds to them.
    """
    path = folder / f"{logits_key(model, data_digest, evaluate, code)}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            logits = {name: np.asarray(file[name], dtype=np.float32) for name in file.files}
        os.utime(path)
        return logits
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s); the model runs again", path, error)
    logits = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch, scratch.open("wb") as handle:
            np.savez(handle, **logits)  # type: ignore[arg-type]  # the stubs confuse the arrays with options
        remove_oldest(folder, "*.npz*", _MAX_FILES)  # also those of killed writers
    except OSError as error:
        logger.warning("%s: logits cannot be stored (%s)", folder, error)
    return logits


def familiarity_arrays(statistics: FeatureStatistics, distances: Mapping[str, NDArray[np.float32]]) -> Logits:
    """Statistics, and distances (N,) by split, under the names that `familiarity_in` reads."""
    of_splits = {f"{_DISTANCES}{name}": values for name, values in distances.items()}
    return {_WHITENING: statistics.whitening, _CENTRE: statistics.centre, **of_splits}


def familiarity_in(arrays: Logits) -> tuple[FeatureStatistics, Logits]:
    """Statistics, and distances (N,) by split."""
    distances = {name.removeprefix(_DISTANCES): values for name, values in arrays.items()
                 if name.startswith(_DISTANCES)}  # fmt: skip
    return FeatureStatistics(arrays[_WHITENING], arrays[_CENTRE]), distances


def logits_key(model: Path, data_digest: str, evaluate: EvaluateParams, code: Sequence[Path]) -> str:
    """Digest of all that determines logits; the parameters are those of `stored_logits`."""
    digest = hashlib.sha256()
    for path in [*sorted(model.iterdir()), *code]:
        status = path.stat()
        digest.update(_digest_of(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns))
    versions = (version("torch"), version("numpy"), _version_of_timm(), os.environ.get("UDC_KERNELS"))
    settings = (data_digest, evaluate.batch_size, evaluate.flip_averaging, evaluate.precision, versions)
    digest.update(repr(settings).encode())
    return digest.hexdigest()


def _version_of_timm() -> str | None:
    try:
        return version("timm")  # its code computes models of type timm
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1024)
def _digest_of(path: Path, *identity: int) -> bytes:
    """SHA-256 of a file; several keys are made of the same model, which can have a gigabyte."""
    return hashlib.sha256(path.read_bytes()).digest()
