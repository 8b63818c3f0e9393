"""Writes synthetic images of metal parts for the tutorial, one folder per class: ``python parts.py FOLDER``.

``ok`` is a plain surface, ``scratch`` has a bright straight line, ``crack`` a dark jagged line. Many defects are faint,
so that some images are hard to decide.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE, IMAGES_PER_CLASS = 32, 400


def part(label: str, rng: np.random.Generator) -> Image.Image:
    """One image of a class: a surface with uneven light, noise, and a defect of random contrast."""
    light = np.linspace(-20, 20, SIZE) * rng.uniform(-1, 1)
    image = Image.fromarray(np.uint8(np.tile(light + 130, (SIZE, 1))))
    draw = ImageDraw.Draw(image)
    contrast = int(rng.uniform(10, 60))
    x, y = rng.uniform(4, 10, 2)
    if label == "scratch":
        draw.line([(x, y), (x + rng.uniform(8, 18), y + rng.uniform(8, 18))], fill=130 + contrast)
    if label == "crack":
        points = [(x, y)]
        for _ in range(6):
            points.append((points[-1][0] + rng.uniform(0, 5), points[-1][1] + rng.uniform(-1, 5)))
        draw.line(points, fill=130 - contrast)
    noise = rng.normal(0, 12, (SIZE, SIZE))
    return Image.fromarray(np.uint8(np.clip(np.asarray(image) + noise, 0, 255)))


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    for name in ("crack", "ok", "scratch"):
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(IMAGES_PER_CLASS):
            part(name, generator).save(folder / f"{i:03d}.png")
