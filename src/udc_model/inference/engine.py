"""The forward pass of a trained model: the exact one in float32, or as fast as the hardware allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from udc_model.inference.cuda_graphs import GraphedForward
from udc_model.inference.feature_distance import FeatureDistance
from udc_model.inference.fused import fuse_layers, has_fused_operators
from udc_model.models.ensemble import Ensemble
from udc_model.models.factory import has_fast_bf16
from udc_model.models.resnet import ResNetConvLayer, ResNetShortCut
from udc_model.models.staged import ImageClassifier

logger = logging.getLogger(__name__)
Network = ImageClassifier | Ensemble
Compute = Callable[[Network, Tensor], Tensor]  # of a model and an input batch (n, C, size, size)


def logits_of(model: Network, images: Tensor) -> Tensor:
    """The logits (n, K) of an input batch (n, C, size, size)."""
    return torch.as_tensor(model(images).logits)


def features_of(model: Network, images: Tensor) -> Tensor:
    """The features (n, M, D) of each of M networks."""
    return torch.stack([each.float() for each in model.logits_and_features(images)[1]], dim=1)


def with_distance(distance: FeatureDistance) -> Compute:
    """What computes logits and distances of images in one pass: (n, K + 1), the distance last."""

    def compute(model: Network, images: Tensor) -> Tensor:
        logits, features = model.logits_and_features(images)
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([logits.float(), distance(features)[:, None]], dim=1)

    return compute


class _Float32Head(nn.Module):
    """A head in float32 within autocast: in bfloat16, logits would have two to three digits and ties be common."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Map features to logits (N, num_labels)."""
        with torch.autocast(features.device.type, enabled=False):
            return torch.as_tensor(self.head(features.float()))


class Forward:
    """The forward pass of a prepared model.

    Parameters
    ----------
    run : maps what is computed and an input batch (n, C, size, size) to the result.
    device : of the model.
    has_graphs : record the pass on a CUDA GPU, see `GraphedForward`.
    """

    def __init__(self, run: Callable[[Compute, Tensor], Tensor], device: torch.device, *, has_graphs: bool) -> None:
        self._run, self._device, self._has_graphs = run, device, has_graphs
        self._logits = self.computing(logits_of)

    def __call__(self, images: Tensor) -> Tensor:
        """Map an input batch to logits (n, K)."""
        return self._logits(images)

    def computing(self, compute: Compute) -> Callable[[Tensor], Tensor]:
        """A function from an input batch to what ``compute`` returns of it, in one pass."""
        forward = partial(self._run, compute)
        if not self._has_graphs:
            return forward
        graphed = GraphedForward(forward)
        return lambda images: graphed(images.to(self._device))


def build_forward(model: Network, device: torch.device, precision: str = "fp32") -> Forward:
    """Prepare a model for inference, in place unless ``precision`` is ``fp32``.

    Parameters
    ----------
    model : in eval mode, on ``device``.
    precision : ``fp32`` computes every layer of the model as it is. ``fp32_fused`` folds norms into convolutions and
        computes several layers in one pass where it can, with the channels of images last: equal up to rounding, and
        faster. ``bf16`` also computes convolutions and products in bfloat16, and the head in float32; hardware that
        only emulates bfloat16 uses ``fp32_fused`` instead.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # torch's default rounds the inputs of float32 convolutions to 11 bits
    if precision == "fp32":
        return Forward(lambda compute, images: compute(model, images.to(device)), device, has_graphs=False)
    if precision == "bf16" and not has_fast_bf16(device):
        logger.info("evaluate.precision: this %s only emulates bf16, so fp32 is used; decisions can differ where two "
                    "cost almost the same", "processor" if device.type == "cpu" else device.type)  # fmt: skip
        precision = "fp32_fused"
    is_bf16 = precision == "bf16"
    has_autocast = False
    for classifier in _classifiers(model):
        if has_fused_operators(device) and classifier.config.model_type in ("resnet", "convnext"):
            fuse_layers(classifier.base_model, torch.bfloat16 if is_bf16 else torch.float32)
        else:
            _fold_norms(classifier)
            if is_bf16:
                _to_bf16(classifier)
                has_autocast = True
        if is_bf16:
            classifier.classifier = _Float32Head(classifier.classifier)
    model.to(memory_format=torch.channels_last)

    def run(compute: Compute, images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=has_autocast):
            return compute(model, images.to(device, memory_format=torch.channels_last))

    return Forward(run, device, has_graphs=device.type == "cuda")


def _classifiers(model: Network) -> Iterator[ImageClassifier]:
    if isinstance(model, Ensemble):
        yield from model.members  # type: ignore[misc]
    else:
        yield model


def _fold_norms(model: nn.Module) -> None:
    """Multiply the scales of each BatchNorm into the convolution before it, which becomes one with a bias."""
    for module in model.modules():
        if isinstance(module, ResNetConvLayer | ResNetShortCut):
            module.convolution = fuse_conv_bn_eval(module.convolution, module.normalization)
            module.normalization = nn.Identity()  # type: ignore[assignment]


def _to_bf16(classifier: ImageClassifier) -> None:
    """Store the weights of convolutions and products in bfloat16, which autocast would convert in every batch."""
    for module in classifier.base_model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = module.weight.data.to(torch.bfloat16)
