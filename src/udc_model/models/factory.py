"""Builds a model from parameters or loads it from a folder, for any architecture."""

from __future__ import annotations

from pathlib import Path

import torch

from udc_model.config import ModelParams
from udc_model.model_files.folder import ModelFolder
from udc_model.model_files.settings import StoredEnsemble
from udc_model.models.architectures import CLASSIFIERS
from udc_model.models.ensemble import Ensemble
from udc_model.models.staged import ImageClassifier


def build_model(params: ModelParams, classes: list[str], seed: int) -> ImageClassifier:
    """Create a randomly initialised classifier.

    Parameters
    ----------
    params : architecture and size.
    classes : class names in the order of the logits.
    seed : determines the weights; torch's global generator is neither used nor changed.
    """
    settings = params.architecture.model_dump()
    id2label = dict(enumerate(classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = CLASSIFIERS[params.model_type]
        return kind(kind.config_class(**settings, id2label=id2label))


def best_device() -> str:
    """Return the first of ``cuda``, ``mps`` and ``cpu`` that is available."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware supports bf16 products; emulated ones are slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return False


def load_model(folder: Path) -> ImageClassifier | Ensemble:
    """Load a model folder, in eval mode.

    Raises
    ------
    UdcError
        The folder is incomplete or damaged, or its architecture is not supported.
    """
    return model_of_folder(ModelFolder.open(folder))


def model_of_folder(stored: ModelFolder) -> ImageClassifier | Ensemble:
    """The model of a folder that was read, in eval mode."""
    if isinstance(stored.architecture, StoredEnsemble):
        return Ensemble.of_folder(stored)
    return CLASSIFIERS[stored.settings["model_type"]].of_folder(stored)
