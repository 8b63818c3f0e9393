"""Which recipe suits images, from their sizes, number, colours and classes, and from the hardware; and why."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udc_model.data.inspection import Inspection
from udc_model.project.recipe import Recipe, find_recipe

_SMALL = 64  # pixels of the short side, up to which grey images are those of recipe small-grey
_FEW = 100  # images of the rarest class, below which recipe few-images is for
_LARGE = 200  # pixels of the short side, from which pretrained weights of 224 pixels fit
_NEAR = 0.8  # of the recipe's size: enlarging images that little costs less than leaving the measured size
_MULTIPLE = 8  # the sizes that are suggested are multiples of it
_SMALLEST = 16
_LONG = 6_000_000  # images times epochs that take two cores an hour: recipe photographs trains on 1,100 images a second


@dataclass(frozen=True)
class Recommendation:
    """A recipe for images.

    Parameters
    ----------
    settings : values by full name that follow from the images and replace or complete those of the recipe.
    reasons : sentences for a person: why this one, and what else is worth a try.
    """

    recipe: Recipe
    settings: dict[str, Any]
    reasons: list[str]

    def to_text(self) -> str:
        """The recipe, then a line for each reason."""
        return "\n".join([f"recipe: {self.recipe.name}", *(f"  {reason}" for reason in self.reasons)]) + "\n"


def recommend(images: Inspection, chosen: str | None = None, *, has_gpu: bool) -> Recommendation:
    """Recommend a recipe that needs no download.

    Parameters
    ----------
    chosen : name of a recipe that a person has chosen instead.
    has_gpu : see `has_accelerator`.
    """
    name, reasons = (chosen, ["as you chose"]) if chosen else _choice(images)
    recipe = find_recipe(name)
    settings: dict[str, Any] = {}
    size, side = int(recipe.values.get("data.image_size", 32)), images.short_side
    if 0 < side < _NEAR * size and "model.weights" not in recipe.values:  # weights fit the size they were trained on
        settings["data.image_size"] = max(side // _MULTIPLE * _MULTIPLE, _SMALLEST)
        reasons.append(f"data.image_size {settings['data.image_size']} instead of {size}: the images have a median "
                       f"short side of {side} px")  # fmt: skip
    if images.is_grey and "model.resnet.num_channels" not in recipe.values:
        settings["model.resnet.num_channels"] = 1
        reasons.append("model.resnet.num_channels 1: all images are grey")
    if not chosen:
        reasons += _alternatives(images, name)
    epochs = int(recipe.values.get("train.epochs", 0))
    if not has_gpu and epochs * images.n_images >= _LONG:
        reasons.append(f"no GPU was found ({os.cpu_count()} CPU cores): {epochs} epochs may take an hour or more; a "
                       "lower train.epochs is faster and less accurate")  # fmt: skip
    return Recommendation(recipe, settings, reasons)


def _choice(images: Inspection) -> tuple[str, list[str]]:
    """The name of the recipe, and the reason for it."""
    side, rarest = images.short_side, images.smallest_class
    if images.is_grey and 0 < side <= _SMALL:
        return "small-grey", [f"all images are grey, with a median short side of {side} px"]
    if images.share_of("TIFF") > 0.5:
        return "microscopy", ["most files are TIFF; if the images have an up and down, choose photographs"]
    if rarest < _FEW:
        return "few-images", [f"the rarest of {len(images.counts)} classes has {rarest} image(s)"]
    colours = "grey" if images.is_grey else "colour"
    return "photographs", [f"{images.n_images:,} {colours} images with a median short side of {side} px; the rarest of "
                           f"{len(images.counts)} classes has {rarest:,}"]  # fmt: skip


def _alternatives(images: Inspection, name: str) -> list[str]:
    reasons = []
    if name in ("photographs", "few-images") and images.short_side >= _LARGE:
        reasons.append("photographs-pretrained and frozen-features start from weights to download; try them too")
    elif name == "few-images":
        reasons.append("frozen-features starts from weights to download; try it too")
    if name in ("photographs", "few-images"):
        reasons.append("microscopy is for images that have no up and down, as those of a microscope")
    return reasons


def has_accelerator() -> bool:
    """Whether the machine seems to have a GPU that PyTorch uses; PyTorch itself takes a second to import."""
    is_apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return is_apple or any(Path("/dev").glob("nvidia[0-9]*"))
