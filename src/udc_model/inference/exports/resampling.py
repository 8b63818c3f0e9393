"""Pillow's resampling as torch operators, so that a file for another runtime resizes images to the same bytes.

The resizing operators of runtimes differ from Pillow's: ONNX Runtime's ``Resize`` with ``antialias`` by up to 15 of 255
on noise. Here a pass over an axis is a product with the matrix of Pillow's fixed-point weights, whose sums are exact in
double precision. The formulas are those of Pillow's ``src/libImaging/Resample.c``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from udc_model.data.transforms import Preprocessing

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}  # half the width of a filter, source pixels
_UNIT = 2.0**22  # of Pillow's fixed-point weights


class ToStored(nn.Module):
    """`Preprocessing.to_stored` of images of any size: (N, H, W, C) uint8 to (N, stored_size, stored_size, C) uint8.

    It computes only the part that is cropped, and so also images that `Preprocessing.scaled` refuses as too elongated.

    Parameters
    ----------
    may_resize_rows_first : see `pillow_may_resize_rows_first`.
    """

    def __init__(self, preprocessing: Preprocessing, may_resize_rows_first: bool) -> None:
        super().__init__()
        self.preprocessing, self.may_resize_rows_first = preprocessing, may_resize_rows_first

    def forward(self, image: Tensor) -> Tensor:
        """Resize and crop; equal to Pillow's result in each byte."""
        columns = torch.arange(image.shape[2], dtype=torch.float64)
        rows = torch.arange(image.shape[1], dtype=torch.float64)
        # As tensors, sizes stay inputs of an exported graph instead of constants.
        width, height = columns[-1] + 1, rows[-1] + 1
        short = torch.minimum(width, height)
        scaled_width, scaled_height = self._scaled(width, short), self._scaled(height, short)
        across = self._weights(columns, width, scaled_width)
        down = self._weights(rows, height, scaled_height).T
        pixels = image.permute(0, 3, 1, 2).to(torch.float64).contiguous()
        if self.may_resize_rows_first:
            removed_rows, removed_columns = height - scaled_height, width - scaled_width
            is_down_first = (removed_rows > 0) & (removed_rows > 2 * removed_columns)
            pixels = torch.cond(is_down_first, _down_first, _across_first, (pixels, across, down))
        else:
            pixels = _across_first(pixels, across, down)
        return pixels.to(torch.uint8).permute(0, 2, 3, 1)

    def _scaled(self, extent: Tensor, short: Tensor) -> Tensor:
        """Size of an axis after resizing and before the crop, pixels."""
        side = self.preprocessing.stored_size
        if not self.preprocessing.crops:
            return torch.full_like(extent, side)
        # The half changes no quotient of integers, and keeps the result if a runtime's division is not exact.
        return torch.floor((side * extent + 0.5) / short)

    def _weights(self, positions: Tensor, extent: Tensor, scaled: Tensor) -> Tensor:
        """Weights (extent, stored_size) of the pixels of one axis for those that the crop keeps."""
        side, size = self.preprocessing.stored_size, self.preprocessing.size
        targets = torch.arange(side, dtype=torch.float64)
        if self.preprocessing.crops:
            targets = targets + torch.floor((scaled - size) / 2) - (side - size) // 2
        return _fixed_point_weights(positions, extent, scaled, targets, self.preprocessing.resample)


def _across_first(pixels: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Resize the rows of pixels (N, C, H, W), then the columns; both results are rounded to bytes."""
    return _to_bytes(down @ _to_bytes(pixels @ across))


def _down_first(pixels: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Resize the columns of pixels (N, C, H, W), then the rows; both results are rounded to bytes."""
    return _to_bytes(_to_bytes(down @ pixels) @ across)


def pillow_may_resize_rows_first() -> bool:
    """Whether the installed Pillow begins with the axis that removes more.

    Since version 13 it resizes down first if that removes more than twice as many rows as columns are removed; earlier
    versions resize across first, always. The bytes between the passes are rounded, so the order matters.
    """
    tall = np.random.default_rng(0).integers(0, 256, (64, 8), dtype=np.uint8)
    image = torch.from_numpy(tall)[None, :, :, None]
    preprocessing = Preprocessing(6, "squash", resample="bilinear")
    expected = torch.tensor(preprocessing.to_stored(Image.fromarray(tall)))
    return not torch.equal(ToStored(preprocessing, may_resize_rows_first=False)(image)[0], expected)


def _fixed_point_weights(positions: Tensor, extent: Tensor, scaled: Tensor, targets: Tensor, resample: str) -> Tensor:
    """Weights (E, T) of source pixels for target pixels, in units of 2**-22.

    Parameters
    ----------
    positions : (E,) 0 to E - 1.
    extent, scaled : sizes of source and target, pixels; scalars.
    targets : (T,) target pixels that are computed.
    resample : name of the filter.
    """
    scale = extent / scaled
    filter_scale = scale.clamp(min=1.0)
    support = _SUPPORT[resample] * filter_scale
    centers = (targets + 0.5) * scale
    first = torch.floor(centers - support + 0.5).clamp(min=0.0)
    end = torch.minimum(torch.floor(centers + support + 0.5), extent)
    source = positions[:, None]
    weights = _filter((source - centers + 0.5) * (1 / filter_scale), resample)
    weights = torch.where((source >= first) & (source < end), weights, torch.zeros_like(weights))
    weights = weights / weights.sum(dim=0, keepdim=True) * _UNIT
    return torch.sign(weights) * torch.floor(weights.abs() + 0.5)


def _filter(x: Tensor, resample: str) -> Tensor:
    """The filter at distances x in source pixels, for distances within its support."""
    x = x.abs()
    match resample:
        case "bilinear":
            return (1 - x).clamp(min=0.0)
        case "bicubic":  # with a = -0.5
            inner = (1.5 * x - 2.5) * x * x + 1
            outer = (((x - 5) * x + 8) * x - 4) * -0.5
            return torch.where(x < 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))
        case "lanczos":
            return torch.where(x < 3, _sinc(x) * _sinc(x / 3), torch.zeros_like(x))
    raise ValueError(f"unknown filter {resample!r}")


def _sinc(x: Tensor) -> Tensor:
    angle = x * math.pi
    return torch.where(angle == 0, torch.ones_like(x), torch.sin(angle) / torch.where(angle == 0, 1.0, angle))


def _to_bytes(sums: Tensor) -> Tensor:
    """Sums in units of 2**-22, rounded to integers from 0 to 255."""
    return torch.floor((sums + _UNIT / 2) / _UNIT).clamp(0.0, 255.0)
