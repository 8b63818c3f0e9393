"""Features of a frozen network: computed once, because they are the same in every epoch, and stored for later runs.

With ``train.num_frozen_stages: all`` and without augmentation, only the head computes anything new in an epoch. Frozen
layers are in evaluation mode (see `udc_model.training.optimisation.train_mode`), so their output for an image does not
depend on the epoch, on other images of a batch, or on random numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udc_model.checksums import read_checksums, write_checksums
from udc_model.config import TrainParams
from udc_model.data.augmentation import Augmentation, Mixing
from udc_model.data.logits import compute_logits
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.files import atomic_folder, read_bytes
from udc_model.models.staged import ImageClassifier
from udc_model.training.hardware import Hardware, model_versions

logger = logging.getLogger(__name__)

CACHE = Path(".udc") / "features"  # below the repository's root, ignored by git and DVC; of all experiments
_MAX_BYTES = 2**31  # of the features of a training run in memory, and of all stored ones
_MAX_BATCH = 32  # images; larger batches are not faster without gradients
_HEADER = 2**12  # bytes; more than the header of an array takes
_ARRAY = "features.npy"
_ADVICE = "it is computed again"


def why_features_change(params: TrainParams, processes: int, num_bytes: int) -> str | None:
    """Why the features of a frozen network cannot be computed once; None if they can.

    Parameters
    ----------
    processes : processes that share each batch.
    num_bytes : size of the features.
    """
    if Augmentation.of(params) != Augmentation() or Mixing(params.mixup, params.cutmix):
        return "random augmentation"
    if processes > 1:
        return "train.processes"
    if num_bytes > _MAX_BYTES:
        return f"the size of its features ({num_bytes / 2**30:.1f} GiB)"
    return None


def num_features(model: ImageClassifier) -> int:
    """The number D of features, which the first matrix (_, D) of the head multiplies."""
    return next(weight.shape[1] for weight in model.classifier.parameters() if weight.ndim == 2)


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, by everything that determines them; the oldest ones are deleted.

    An entry is a folder with an array (N, D) and its checksum. Without the cache the bits of a result are the same.

    Parameters
    ----------
    folder : of the entries.
    inputs : what determines the features besides the network, as JSON values: the digests of the data and the code.
    """

    folder: Path
    inputs: Mapping[str, Any]

    def read(self, key: str, shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """Features (N, D) of ``shape``; None if they are not stored, or, with a warning, if they are damaged."""
        entry = self.folder / key
        if not entry.exists():
            return None
        try:
            contents = read_bytes(entry / _ARRAY, _ADVICE, 4 * shape[0] * shape[1] + _HEADER)
            checksums = read_checksums(entry, _ADVICE)
            if _ARRAY not in checksums.sha256:
                raise UdcError(f"{entry}: has no checksum of {_ARRAY}; {_ADVICE}")
            checksums.check(entry / _ARRAY, contents, _ADVICE)
            features = np.load(io.BytesIO(contents), allow_pickle=False)
            if features.shape != shape or features.dtype != np.float32:
                raise ValueError(f"contains {features.dtype} {features.shape}")
            os.utime(entry)
        except (UdcError, OSError, ValueError, EOFError) as error:
            logger.warning("stored features cannot be used: %s", error)
            return None
        return np.asarray(features, dtype=np.float32)

    def write(self, key: str, features: NDArray[np.float32]) -> None:
        """Store features (N, D); a warning if that is not possible."""
        entry = self.folder / key
        try:
            if entry.is_file():  # damaged
                entry.unlink()
            with atomic_folder(entry) as scratch:
                np.save(scratch / _ARRAY, features, allow_pickle=False)
                write_checksums(scratch, [_ARRAY])
            self._delete_oldest()
        except (UdcError, OSError) as error:
            logger.warning("%s: features cannot be stored (%s)", self.folder, error)

    def _delete_oldest(self) -> None:
        """Delete the entries used longest ago, so that all together have at most `_MAX_BYTES`."""
        entries = sorted(self.folder.iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True)
        total = 0
        for entry in entries:
            with suppress(OSError):  # another process deletes too
                total += sum(path.stat().st_size for path in entry.iterdir())
                if total > _MAX_BYTES:
                    shutil.rmtree(entry)


@dataclass(frozen=True)
class FrozenNetwork:
    """A classifier whose layers below the head are frozen, on its device.

    Parameters
    ----------
    batch_size : images per pass.
    inputs : what determines the features besides images and code, as JSON values.
    """

    model: ImageClassifier
    preprocessing: Preprocessing
    hardware: Hardware
    batch_size: int
    inputs: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: ImageClassifier,
        frozen: Sequence[nn.Module],
        preprocessing: Preprocessing,
        hardware: Hardware,
        params: TrainParams,
    ) -> FrozenNetwork:
        """The network with its inputs, of which the weights of the modules ``frozen`` are one."""
        batch_size = min(int(params.batch_size), _MAX_BATCH)
        inputs = {
            "model": model.config.to_dict(),
            "weights": _digest(frozen),
            "preprocessing": preprocessing.to_dict(),
            "hardware": hardware.describe(),
            "batch_size": batch_size,
            "arithmetic": [params.deterministic, params.tf32],
            **model_versions(model.config.model_type),
        }
        return cls(model, preprocessing, hardware, batch_size, inputs)

    def features(self, name: str, split: PackedSplit, cache: FeatureCache | None) -> Tensor:
        """The features (N, D) of the images of a split, on the CPU: from the cache, or computed and stored."""
        shape = len(split), num_features(self.model)
        if cache is None:
            return torch.from_numpy(self._compute(name, split))
        inputs = {**self.inputs, **cache.inputs, "split": name}
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        features = cache.read(key, shape)
        if features is None:
            features = self._compute(name, split)
            cache.write(key, features)
        else:
            logger.info("features of split %s: stored by an earlier training run", name)
        return torch.from_numpy(features)

    def _compute(self, name: str, split: PackedSplit) -> NDArray[np.float32]:
        started = time.perf_counter()
        self.model.eval()

        def forward(images: Tensor) -> Tensor:
            with self.hardware.autocast():
                return self.model.features(images.to(self.hardware.device, memory_format=self.hardware.memory_format))

        features = compute_logits(forward, split.images, self.preprocessing, self.batch_size, f"features of {name}",
                                  device=self.hardware.device)  # fmt: skip
        logger.info("features of split %s: %d images in %.1f s, once for all epochs", name, len(split),
                    time.perf_counter() - started)  # fmt: skip
        return features


def _digest(modules: Sequence[nn.Module]) -> str:
    """SHA-256 of the weights and statistics of modules, with their names and types."""
    digest = hashlib.sha256()
    for module in modules:
        for key, value in module.state_dict().items():
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
