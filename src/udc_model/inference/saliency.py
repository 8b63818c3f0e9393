"""Saliency maps: which regions of an image speak for a class, by Grad-CAM or, without a spatial map, by gradients.

A map shows where the evidence of one network for one class is. It is no proof that the region is the cause of a
decision, nor that the decision is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udc_model.data.logits import Images, evaluation_batches
from udc_model.inference.classifier import TrainedClassifier
from udc_model.models.ensemble import Ensemble
from udc_model.models.staged import ImageClassifier
from udc_model.models.timm_classifier import TimmModel

_BATCH = 16  # images, whatever evaluate.batch_size is
_FEWEST_CELLS = 4  # side of the features of Grad-CAM: coarser ones show no region
_GRID = 14  # side of maps by gradients, cells
_NOISY_COPIES, _NOISE = 4, 0.15  # copies of an image, and the noise as a share of the range of its values
_SMALLEST = 1e-12
Rest = Callable[[Tensor], Tensor]  # from the features of Grad-CAM to logits (n, K)


def saliency(classifier: TrainedClassifier, images: Images, classes: NDArray[np.integer]) -> NDArray[np.float32]:
    """Compute saliency maps of prepared images for classes.

    HiResCAM (Draelos and Carin 2020, arXiv:2011.08891) of the logit, on the last features with at least 4 x 4 cells. On
    the features before the pooling of ResNet and ConvNeXt it is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391); on
    earlier ones, which small images need, Grad-CAM can be 0 everywhere. A network that has no such features (channels,
    height, width), as a vision transformer, gets SmoothGrad (Smilkov et al. 2017, arXiv:1706.03825), averaged in
    14 x 14 cells. Of an ensemble the map is the mean of the members' maps, each scaled to a maximum of 1; with
    ``flip_averaging`` also over the mirror image. benchmarks/saliency.py checks them.

    Parameters
    ----------
    classifier : with precision ``fp32``, whose layers have gradients.
    images : (N, S, S, C) uint8; the map covers the part that the network sees, see `network_view`.
    classes : class indices (N,), or (N, T) for T maps of each image.

    Returns
    -------
    (N, h, w) or (N, T, h, w), values in [0, 1], the largest of each map 1; all 0 if no region speaks for the class.

    Raises
    ------
    ValueError
        The precision is another one.
    """
    if classifier.precision != "fp32":
        raise ValueError(f"saliency needs a classifier of precision fp32, not {classifier.precision}")
    if not len(images):
        return np.empty((*classes.shape, 1, 1), np.float32)
    indices = torch.from_numpy(classes.reshape(len(classes), -1).astype(np.int64)).to(classifier.device)
    parts = []
    batches = evaluation_batches(images, classifier.preprocessing, _BATCH, classifier.device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        for start, batch in zip(range(0, len(images), _BATCH), batches, strict=True):
            of_batch = indices[start : start + _BATCH]
            parts.append(_mean_maps(classifier, batch.to(classifier.device), of_batch).cpu())
    maps: NDArray[np.float32] = torch.cat(parts).numpy()
    return maps[:, 0] if classes.ndim == 1 else maps


def uses_grad_cam(classifier: TrainedClassifier) -> bool:
    """Whether the maps are those of Grad-CAM; those by gradients take 12 passes for each class."""
    pre = classifier.preprocessing
    inputs = torch.zeros((1, pre.channels, pre.size, pre.size), device=classifier.device)
    return all(_spatial_features(network, inputs) is not None for network in _networks(classifier))


def _networks(classifier: TrainedClassifier) -> Iterator[ImageClassifier]:
    if isinstance(classifier.model, Ensemble):
        yield from classifier.model.members  # type: ignore[misc]
    else:
        yield classifier.model


def _mean_maps(classifier: TrainedClassifier, inputs: Tensor, classes: Tensor) -> Tensor:
    """The mean (n, T, h, w) of the scaled maps of all networks and, with flip averaging, of mirror images."""
    maps = [_scaled(_maps(network, inputs, classes)) for network in _networks(classifier)]
    if classifier.flip_averaging:
        maps += [_scaled(_maps(network, inputs.flip(-1), classes)).flip(-1) for network in _networks(classifier)]
    return _scaled(torch.stack(maps).mean(dim=0))


def _scaled(maps: Tensor) -> Tensor:
    """Maps (n, T, h, w) with a maximum of 1; those that are 0 everywhere stay so."""
    return maps / maps.amax(dim=(2, 3), keepdim=True).clamp(min=_SMALLEST)


def _maps(network: ImageClassifier, inputs: Tensor, classes: Tensor) -> Tensor:
    """The maps (n, T, h, w) of one network, at least 0."""
    spatial = _spatial_features(network, inputs)
    if spatial is None:
        return torch.stack([_gradient_maps(network, inputs, each) for each in classes.T], dim=1)
    return _class_activation(*spatial, classes)


def _class_activation(features: Tensor, rest: Rest, classes: Tensor) -> Tensor:
    """HiResCAM ``relu(sum_k d logit / d A_k * A_k)`` (n, T, h, w) of features A (n, C, h, w) for classes (n, T)."""
    features = features.detach().requires_grad_()
    with torch.enable_grad():
        logits = rest(features)
    maps = []
    for each in classes.T:
        target = logits.gather(1, each[:, None]).sum()
        (gradient,) = torch.autograd.grad(target, features, retain_graph=True)
        maps.append((gradient * features.detach()).sum(dim=1).relu())
    return torch.stack(maps, dim=1)


@torch.no_grad()
def _spatial_features(network: ImageClassifier, inputs: Tensor) -> tuple[Tensor, Rest] | None:
    """The last features (n, C, h, w) with enough cells, and what maps them to logits; None if there are none."""
    base = network.base_model
    if isinstance(base, TimmModel):
        features = base.network.forward_features(inputs)  # type: ignore[operator]
        if features.ndim != 4 or min(features.shape[2:]) < _FEWEST_CELLS or not _has_channels_first(network, features):
            return None
        return features, lambda x: network.head(base.network.forward_head(x))  # type: ignore[operator]
    states, stages = [base.embed(inputs)], list(base.encoder.stages)
    for stage in stages:
        state = stage(states[-1])
        if min(state.shape[2:]) < _FEWEST_CELLS:
            break
        states.append(state)
    done = len(states) - 1

    def rest(features: Tensor) -> Tensor:
        for stage in stages[done:]:
            features = stage(features)
        return network.head(base.pool(features).flatten(1))

    return states[-1], rest


def _has_channels_first(network: ImageClassifier, features: Tensor) -> bool:
    """Whether features are (n, C, h, w), not (n, h, w, C), by the size D of what the head gets."""
    pooled = network.base_model.network.forward_head(features)  # type: ignore[operator, union-attr]
    return bool(features.shape[3] != pooled.shape[1])


def _gradient_maps(network: ImageClassifier, inputs: Tensor, classes: Tensor) -> Tensor:
    """SmoothGrad (n, h, w) for classes (n,): the mean size of the gradient of the logit at noisy copies of inputs."""
    generator = torch.Generator().manual_seed(0)
    span = inputs.amax(dim=(1, 2, 3), keepdim=True) - inputs.amin(dim=(1, 2, 3), keepdim=True)
    total = torch.zeros_like(inputs[:, :1])
    for _ in range(_NOISY_COPIES):
        noise = torch.randn(inputs.shape[1:], generator=generator).to(inputs.device)
        noisy = (inputs + _NOISE * span * noise).requires_grad_()
        with torch.enable_grad():
            target = network(noisy, return_dict=True).logits.gather(1, classes[:, None]).sum()
        (gradient,) = torch.autograd.grad(target, noisy)
        total += gradient.abs().sum(dim=1, keepdim=True)
    cells = F.adaptive_avg_pool2d(total, min(_GRID, inputs.shape[-1]))[:, 0]
    return cells - cells.amin(dim=(1, 2), keepdim=True)
