"""Images that are far from the others in size, aspect ratio, brightness or sharpness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udc_model.data.quality.traits import StoredTraits

_DEVIATIONS = 6.0  # standard deviations from the median; of normal values one in a billion is farther
_LEAST = {"size": 0.1, "aspect ratio": 0.05, "brightness": 4.0, "sharpness": 0.2}  # smallest standard deviation assumed
_LARGEST_SHARE = 0.02  # of the images; more are a group of their own, and no outliers


@dataclass(frozen=True)
class Outliers:
    """The images (M,) that are far from the others in one property, the farthest first, with their values as text."""

    property: str
    images: NDArray[np.intp]
    values: list[str]


def find_outliers(sizes: NDArray[np.intp], traits: StoredTraits) -> list[Outliers]:
    """The outliers of each property that has some.

    Parameters
    ----------
    sizes : (N, 2) width and height, pixels.
    """
    width, height = sizes.T.astype(np.float64)
    brightness = traits.values("grid").mean(axis=(1, 2, 3), dtype=np.float64)
    sharpness = traits.values("sharpness").astype(np.float64)
    of_property = {
        "size": (np.log(width * height), [f"{w} x {h}" for w, h in sizes]),
        "aspect ratio": (np.log(width / height), [f"{w} x {h}" for w, h in sizes]),
        "brightness": (brightness, [f"{value:.0f} of 255" for value in brightness]),
        "sharpness": (np.log(sharpness + 1e-4), [f"{value:.3f}" for value in sharpness]),
    }
    found = []
    for name, (values, texts) in of_property.items():
        distance = np.abs(values - np.median(values))
        deviation = distance / max(1.4826 * float(np.median(distance)), _LEAST[name])
        images = np.flatnonzero(deviation > _DEVIATIONS)
        if 0 < len(images) <= max(1, _LARGEST_SHARE * len(values)):
            images = images[np.argsort(-deviation[images].round(6), kind="stable")]
            found.append(Outliers(name, images, [texts[i] for i in images]))
    return found
