"""The distance of images to the training images, from the features that the network computes anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from udc_model.inference.feature_statistics import FeatureStatistics

_SMALLEST = 1e-12  # sum of the sizes of features


class FeatureDistance(nn.Module):
    """The distance of `FeatureStatistics` as operators, in single precision; of several networks the mean."""

    whitening: Tensor
    centre: Tensor

    def __init__(self, statistics: FeatureStatistics) -> None:
        super().__init__()
        self.register_buffer("whitening", torch.tensor(statistics.whitening))
        self.register_buffer("centre", torch.tensor(statistics.centre))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the features (N, D) of each network to distances (N,)."""
        distances = [self._of_network(number, each.float()) for number, each in enumerate(features)]
        return torch.stack(distances).mean(dim=0)

    def _of_network(self, number: int, features: Tensor) -> Tensor:
        sizes = features.abs()
        directions = features.sign() * (sizes / sizes.sum(dim=1, keepdim=True).clamp(min=_SMALLEST)).sqrt()
        return (directions @ self.whitening[number] - self.centre[number]).square().sum(dim=1)
