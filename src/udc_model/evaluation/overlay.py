"""A saliency map over an image, in one colour that readers with any colour vision can tell from grey."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_TINT = np.array([213, 94, 0], np.float32)  # vermilion of Okabe and Ito's palette
_STRENGTH = 0.75  # share of the tint where the map is 1
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B; Rec. 601


def overlay(image: NDArray[np.uint8], saliency: NDArray[np.floating] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Show a map over an image: the image in grey, tinted where the map is large.

    Parameters
    ----------
    image : (H, W, C) with 1 or 3 channels; the part that the map covers, see `network_view`.
    saliency : (h, w) in [0, 1], or of 8 bits; interpolated to the size of the image.

    Returns
    -------
    (H, W, 3) RGB.
    """
    height, width, channels = image.shape
    grey = image.astype(np.float32) @ (_LUMINANCE if channels == 3 else np.ones(channels, np.float32) / channels)
    values = saliency.astype(np.float32) / (255 if saliency.dtype == np.uint8 else 1)
    resized = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    share = _STRENGTH * resized.clip(0, 1)[..., None]
    return np.rint((1 - share) * grey[..., None] + share * _TINT).clip(0, 255).astype(np.uint8)


def network_view(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The centre (…, size, size, C) of prepared images (…, S, S, C), which the network sees and a map covers."""
    margin = (images.shape[-2] - size) // 2
    return images[..., margin : margin + size, margin : margin + size, :]
