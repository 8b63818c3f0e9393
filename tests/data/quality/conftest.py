"""Synthetic photographs, which differ as photographs do: much in coarse structures, little in fine ones."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photograph():
    """A function from a number to a smooth random image; the same number gives the same image."""

    def make(number: int, side: int = 96) -> Image.Image:
        rng = np.random.default_rng(number)
        pixels = np.zeros((side, side, 3))
        for cells, strength in ((3, 1.0), (6, 0.6), (12, 0.4), (24, 0.2)):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += strength * np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
        return Image.fromarray((pixels / 2.2).clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture
def photographs(tmp_path, photograph):
    """A function that writes n photographs of each of two classes and returns their folder."""

    def write(n: int = 40, **save: object):
        root = tmp_path / "photographs"
        for k, label in enumerate(("ant", "bee")):
            (root / label).mkdir(parents=True)
            for i in range(n):
                photograph(1000 * k + i).save(root / label / f"{label}{i:03d}.jpg", **{"quality": 90} | save)
        return root

    return write
