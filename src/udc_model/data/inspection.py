"""What ``udc inspect`` prints about images that somebody wants to train on, without decoding them."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

from udc_model.config import DataParams
from udc_model.data.sources import ImageSource, describe_source, open_source

_SAMPLE = 1000  # images whose headers are read


def inspect(params: DataParams) -> str:
    """Describe a source: what was recognised, and formats and sizes of the images.

    Raises
    ------
    UdcError
        It is not clear what is what, or rows of a table are invalid; the message lists them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(params, Path(scratch) / "unpacked")
        lines = describe_source(source)
        if source.pixels is None:
            lines.append(_headers(source))
        if source.rejected:
            lines += [f"cannot be used: {item.path}: {item.reason}" for item in source.rejected[:10]]
    return "\n".join(lines) + "\n"


def _headers(source: ImageSource) -> str:
    """One line about the formats, modes and sizes of up to `_SAMPLE` images, evenly chosen."""
    step = -(-len(source.records) // _SAMPLE)
    records = source.records[::step]
    formats: Counter[str] = Counter()
    sizes = []
    for record in records:
        try:
            with Image.open(source.root / record.path) as image:
                formats[f"{image.format} {image.mode}"] += 1
                sizes.append(image.size)
        except Exception:  # Pillow raises errors of every kind on damaged files; prepare lists them with their reasons
            formats["damaged or of another format"] += 1
    widths, heights = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    of = "" if len(records) == len(source.records) else f" (of {len(records):,} images, evenly chosen)"
    kinds = ", ".join(f"{name} {count:,}" for name, count in formats.most_common(6))
    return f"formats: {kinds}; sizes {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)} pixels{of}"
