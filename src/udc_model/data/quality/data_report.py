"""``data_report.html``: one self-contained page about the images, without scripts or links."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from numpy.typing import NDArray
from PIL import Image

from udc_model.data.assignment import UsableImage
from udc_model.data.quality.review import Review
from udc_model.data.quality.shortcuts import shortcut_sentences
from udc_model.data.scratch import Images
from udc_model.data.sources import LeftOut, Rejection, printable
from udc_model.errors import UdcError

DATA_REPORT = "data_report.html"
_FIRST = 3  # findings at the top
_SIDE = 72  # pixels of an image in a contact sheet
_COLUMNS, _ROWS = 14, 1  # images of a contact sheet
_MOST_CLASSES = 40  # with a contact sheet
_MOST_SETS, _MOST_IN_SET = 24, 8  # sets of near-duplicates, and images of each, that are shown
_MOST_OUTLIERS = 10  # of a property
_MOST_FILES = 100  # listed
_QUALITY = 80


@dataclass(frozen=True)
class DataReport:
    """The contents of the page.

    Attributes
    ----------
    name : of the data.
    lines : what was recognised in the source.
    usable : N images.
    splits : of the images; None if they have none yet.
    review : what was found in them.
    rejected, left_out : images that cannot be used, and files and images that are not used.
    images : the prepared images.
    """

    name: str
    lines: Sequence[str]
    usable: Sequence[UsableImage]
    splits: Sequence[str] | None
    review: Review
    rejected: Sequence[Rejection]
    left_out: Sequence[LeftOut]
    images: Images

    def to_html(self) -> str:
        """Render the page; the same contents give the same bytes."""
        sentences = self.review.sentences(len(self.usable), len(self.rejected))
        counts = Counter(image.record.label for image in self.usable)
        return _template().render(
            name=printable(self.name),
            n_images=len(self.usable),
            first=sentences[:_FIRST],
            others=sentences[_FIRST:],
            lines=[printable(line) for line in self.lines],
            sheets=[(label, count, self._sheet(label)) for label, count in sorted(counts.items())[:_MOST_CLASSES]],
            n_classes=len(counts),
            imbalance=max(counts.values(), default=1) / max(1, min(counts.values(), default=1)),
            conflicts=self._sets(self.review.conflicts),
            clusters=self._sets(self._clusters()),
            n_conflicts=len(self.review.conflicts),
            n_clusters=len(self.review.near.clusters),
            proposal=self.review.proposal,
            shortcuts=shortcut_sentences(self.review.shortcuts),
            outliers=[(each.property, len(each.images), self._outliers(each.images, each.values))
                      for each in self.review.outliers],
            rejected=self._files(self.rejected),
            left_out=self._files(self.left_out),
            n_rejected=len(self.rejected),
            n_left_out=len(self.left_out),
            most_classes=_MOST_CLASSES,
        )  # fmt: skip

    def _clusters(self) -> list[Sequence[int]]:
        """The clusters, those across splits first, then the largest."""
        crossing = {images[0] for images in self.review.crossing}
        return sorted((list(map(int, images)) for images in self.review.near.clusters),
                      key=lambda images: (images[0] not in crossing, -len(images), images[0]))  # fmt: skip

    def _sheet(self, label: str) -> str:
        indices = [i for i, image in enumerate(self.usable) if image.record.label == label]
        chosen = [indices[k * len(indices) // min(len(indices), _COLUMNS * _ROWS)]
                  for k in range(min(len(indices), _COLUMNS * _ROWS))]  # fmt: skip
        return _uri(_row(self.images(chosen)))

    def _sets(self, sets: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        shown = []
        for images in sets[:_MOST_SETS]:
            chosen = images[:_MOST_IN_SET]
            shown.append({"image": _uri(_row(self.images(chosen))), "more": len(images) - len(chosen),
                          "images": [self._caption(i) for i in chosen]})  # fmt: skip
        return shown

    def _outliers(self, images: NDArray[np.intp], values: Sequence[str]) -> list[tuple[str, str, str]]:
        chosen = [int(i) for i in images[:_MOST_OUTLIERS]]
        return [(_uri(_row(self.images([i]))), self._caption(i), value)
                for i, value in zip(chosen, values, strict=False)]  # fmt: skip

    def _caption(self, index: int) -> str:
        record = self.usable[index].record
        split = f", {self.splits[index] or 'left out'}" if self.splits is not None else ""
        return f"{printable(record.path)} ({record.label}{split})"

    def _files(self, files: Sequence[Rejection | LeftOut]) -> list[tuple[str, str]]:
        return sorted((printable(file.path), file.reason) for file in files)[:_MOST_FILES]


def write_data_report(path: Path, report: DataReport) -> None:
    """Write the page; :class:`UdcError` if the file cannot be written."""
    try:
        path.write_text(report.to_html(), encoding="utf-8")
    except OSError as error:
        raise UdcError(f"{path}: cannot be written: {error.strerror}") from None


def _row(images: NDArray[np.uint8]) -> Image.Image:
    """A row of images, side by side."""
    sheet = Image.new("RGB", (len(images) * (_SIDE + 2) - 2, _SIDE), "white")
    for k, pixels in enumerate(images):
        image = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels).convert("RGB")
        smooth = Image.Resampling.BICUBIC if max(image.size) >= _SIDE else Image.Resampling.NEAREST
        sheet.paste(image.resize((_SIDE, _SIDE), smooth), (k * (_SIDE + 2), 0))
    return sheet


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("udc_model.data.quality", ""), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return environment.get_template("data_report.html.j2")
