"""Published architectures by name, and small ones for small images and CPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Preset:
    """An architecture: ``settings`` of its block in ``params.yaml``, input size (pixels) and centre-crop share.

    ``published`` is the repository of its ImageNet weights on the Hugging Face hub; None if there are none.
    """

    model_type: str
    settings: dict[str, Any]
    published: str | None = None
    image_size: int = 224
    crop_pct: float = 0.875


def _resnet(name: str, layer_type: str, depths: list[int]) -> Preset:
    hidden_sizes = [64, 128, 256, 512] if layer_type == "basic" else [256, 512, 1024, 2048]
    settings = {"layer_type": layer_type, "embedding_size": 64, "depths": depths, "hidden_sizes": hidden_sizes}
    return Preset("resnet", settings, f"microsoft/{name}")


def _convnext(published: str, depths: list[int], hidden_sizes: list[int]) -> Preset:
    settings = {"num_stages": 4, "patch_size": 4, "depths": depths, "hidden_sizes": hidden_sizes}
    return Preset("convnext", settings, f"facebook/{published}")


PRESETS = {
    "resnet-18": _resnet("resnet-18", "basic", [2, 2, 2, 2]),
    "resnet-34": _resnet("resnet-34", "basic", [3, 4, 6, 3]),
    "resnet-50": _resnet("resnet-50", "bottleneck", [3, 4, 6, 3]),
    "resnet-101": _resnet("resnet-101", "bottleneck", [3, 4, 23, 3]),
    "resnet-152": _resnet("resnet-152", "bottleneck", [3, 8, 36, 3]),
    "convnext-tiny": _convnext("convnext-tiny-224", [3, 3, 9, 3], [96, 192, 384, 768]),
    "convnext-small": _convnext("convnext-small-224", [3, 3, 27, 3], [96, 192, 384, 768]),
    "convnext-base": _convnext("convnext-base-224", [3, 3, 27, 3], [128, 256, 512, 1024]),
    "convnext-large": _convnext("convnext-large-224", [3, 3, 27, 3], [192, 384, 768, 1536]),
    "convnext-xlarge": _convnext("convnext-xlarge-224-22k-1k", [3, 3, 27, 3], [256, 512, 1024, 2048]),
    "resnet-mini": Preset(
        "resnet",
        {"layer_type": "basic", "embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1]},
        image_size=32,
        crop_pct=1.0,
    ),
    "resnet-small": Preset(
        "resnet",
        {"layer_type": "basic", "embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]},
        image_size=96,
        crop_pct=1.0,
    ),
    "convnext-mini": Preset(
        "convnext",
        {"num_stages": 3, "patch_size": 4, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2]},
        image_size=32,
        crop_pct=1.0,
    ),
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """The preset of a name such as ``resnet-50``, ``microsoft/resnet-50`` or ``facebook/convnext-tiny-384-22k-1k``.

    The owner and everything after the size are left out, but a number of pixels among it sets the input size.

    Raises
    ------
    ValueError
        No preset has that name.
    """
    parts = name.rsplit("/", 1)[-1].split("-")
    preset = PRESETS.get("-".join(parts[:2]))
    if preset is None:
        raise ValueError(f"no architecture is called {name!r}; there are: {', '.join(PRESETS)}")
    sizes = [int(part) for part in parts[2:] if part.isdigit() and int(part) >= 32]
    return replace(preset, image_size=sizes[0]) if sizes else preset
