"""Build a model from the parameters, or load one from its folder, whichever architecture it is."""

from __future__ import annotations

from pathlib import Path

import torch

from udc_model.config import ModelParams
from udc_model.errors import UdcError
from udc_model.models.base import read_config
from udc_model.models.convnext import ConvNextConfig, ConvNextForImageClassification
from udc_model.models.resnet import ResNetConfig, ResNetForImageClassification
from udc_model.models.staged import ImageClassifier


def build_model(params: ModelParams, classes: list[str], seed: int) -> ImageClassifier:
    """A randomly initialised classifier; equal seeds give equal weights, whatever was drawn before."""
    settings = params.architecture.model_dump()
    id2label = dict(enumerate(classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if params.model_type == "convnext":
            return ConvNextForImageClassification(ConvNextConfig(**settings, id2label=id2label))
        return ResNetForImageClassification(ResNetConfig(**settings, id2label=id2label))


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``: the first that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_model(folder: Path) -> ImageClassifier:
    """Load a model folder, in eval mode.

    Raises
    ------
    UdcError
        The folder is not whole, or of an architecture that this project does not have.
    """
    model_type = read_config(folder).get("model_type")
    if model_type == "convnext":
        return ConvNextForImageClassification.from_pretrained(folder)
    if model_type == "resnet":
        return ResNetForImageClassification.from_pretrained(folder)
    raise UdcError(f"{folder}/config.json: model_type is {model_type!r}; this project has resnet and convnext")
