"""A model folder whose files are read and checked: settings and weights that fit each other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from udc_model.checksums import Checksums, read_checksums
from udc_model.files import parse_json, read_bytes
from udc_model.model_files.settings import Architecture, Settings, check_settings
from udc_model.model_files.shapes import expected_shapes
from udc_model.model_files.weights import read_weights

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
ADVICE = "restore the model with `dvc checkout model`, or train it again (dvc repro)"
MAX_CONFIG = 4 * 2**20  # bytes; 20,000 classes need half


@dataclass(frozen=True)
class ModelFolder:
    """The contents of ``config.json`` and ``model.safetensors``.

    Attributes
    ----------
    folder : where they were read; for messages.
    settings : all of ``config.json``.
    architecture : what of it describes the network, typed.
    weights : the bytes of ``model.safetensors``, whose tensors are exactly those of the network.
    recorded_sha256 : SHA-256 of ``model.safetensors`` in ``checksums.json``, whose checksum the weights have; None in a
        folder of an earlier version.
    """

    folder: Path
    settings: Settings
    architecture: Architecture
    weights: bytes
    recorded_sha256: str | None = None

    @classmethod
    def open(cls, folder: Path) -> ModelFolder:
        """Read a folder.

        Raises
        ------
        UdcError
            A file is missing or damaged, a value is not allowed, or the weights are of another network.
        """
        checksums = read_checksums(folder, ADVICE)
        settings, architecture = read_settings(folder, checksums)
        weights = read_weights(folder / WEIGHTS, expected_shapes(architecture), ADVICE)
        checksums.check(folder / WEIGHTS, weights, ADVICE)
        return cls(folder, settings, architecture, weights, checksums.sha256.get(WEIGHTS))

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of ``model.safetensors``."""
        return self.recorded_sha256 or hashlib.sha256(self.weights).hexdigest()

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        names = self.architecture.id2label
        return [names[str(i)] for i in range(len(names))]


def read_settings(folder: Path, checksums: Checksums) -> tuple[Settings, Architecture]:
    """The contents of ``config.json``, and what of it describes the network; see `ModelFolder.open`."""
    path = folder / CONFIG
    contents = read_bytes(path, ADVICE, MAX_CONFIG)
    checksums.check(path, contents, ADVICE)
    settings = parse_json(contents, str(path), ADVICE)
    return settings, check_settings(settings, str(path), ADVICE)
