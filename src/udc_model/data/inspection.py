"""What ``udc inspect`` reports about images that somebody wants to train on: by their headers, and by their pixels."""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from udc_model.config import DataParams
from udc_model.data.audit import check_images
from udc_model.data.decode import read_header
from udc_model.data.quality.data_report import write_data_report
from udc_model.data.quality.examination import Examination
from udc_model.data.scratch import PixelScratch
from udc_model.data.sources import ImageSource, Rejection, describe_source, open_source
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.errors import UdcError

_SAMPLE = 1000  # images whose headers are read
_SIDE = 96  # pixels of the sides of the prepared images, from which the report shows some
_GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")  # modes of Pillow without colours


@dataclass(frozen=True)
class Headers:
    """What the headers of up to `_SAMPLE` images contain.

    Attributes
    ----------
    kinds : number of images by format and mode of Pillow, as ``("JPEG", "RGB")``; None for those that are not read.
    sizes : (width, height) of each image that is read, pixels.
    """

    kinds: Counter[tuple[str, str] | None]
    sizes: list[tuple[int, int]]

    def to_text(self, n_images: int) -> str:
        """One line about formats, modes and sizes."""
        widths, heights = zip(*self.sizes, strict=True) if self.sizes else ((0,), (0,))
        n_read = self.kinds.total()
        of = "" if n_read == n_images else f" (of {n_read:,} images, evenly chosen)"
        kinds = ", ".join(f"{' '.join(kind) if kind else 'damaged or of another format'} {count:,}"
                          for kind, count in self.kinds.most_common(6))  # fmt: skip
        return f"formats: {kinds}; sizes {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)} pixels{of}"


@dataclass(frozen=True)
class Inspection:
    """What was recognised in a source.

    Attributes
    ----------
    lines : for a person.
    counts : number of images of each class.
    headers : of a sample of the images; None for a source without files.
    """

    lines: list[str]
    counts: dict[str, int]
    headers: Headers | None

    @property
    def n_images(self) -> int:
        """Number of images."""
        return sum(self.counts.values())

    @property
    def smallest_class(self) -> int:
        """Number of images of the rarest class."""
        return min(self.counts.values(), default=0)

    @property
    def short_side(self) -> int:
        """Median of the shorter sides in pixels; 0 if no size is known."""
        sizes = self.headers.sizes if self.headers else []
        return int(statistics.median(min(size) for size in sizes)) if sizes else 0

    @property
    def is_grey(self) -> bool:
        """Whether all images whose headers can be read have no colours."""
        modes = {kind[1] for kind in self.headers.kinds if kind} if self.headers else set()
        return bool(modes) and modes <= set(_GREY)

    def share_of(self, *formats: str) -> float:
        """Share of the images that have one of these formats."""
        if self.headers is None:
            return 0.0
        n_matching = sum(count for kind, count in self.headers.kinds.items() if kind and kind[0] in formats)
        return n_matching / max(self.headers.kinds.total(), 1)


def inspect(params: DataParams) -> Inspection:
    """Describe a source: what was recognised, and formats and sizes of the images.

    Raises
    ------
    UdcError
        It is not clear what is what, rows of a table are invalid, or no image can be used; the message lists them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(params, Path(scratch) / "unpacked")
        if not source.records:
            reasons = [f"{item.path}: {item.reason}" for item in source.rejected]
            more = [f"and {len(reasons) - 10:,} more"] if len(reasons) > 10 else []
            raise UdcError("\n  ".join([f"{params.path}: no image can be used", *reasons[:10], *more]))
        lines, headers = describe_source(source), None
        if source.pixels is None:
            headers = _headers(source)
            lines.append(headers.to_text(len(source.records)))
        if source.rejected:
            lines += [f"cannot be used: {item.path}: {item.reason}" for item in source.rejected[:10]]
    return Inspection(lines, dict(Counter(record.label for record in source.records)), headers)


def inspect_pixels(params: DataParams, report: Path | None = None) -> list[str]:
    """Decode the images of a source and review them; returns what was found, the most important first.

    Parameters
    ----------
    report : file to write the report to, as a web page; None for none.

    Raises
    ------
    UdcError
        As `inspect`, or the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(params, Path(folder) / "unpacked")
        decoding = Decoding(3, params.frames, max_pixels=params.max_pixels)
        preprocessing = Preprocessing(_SIDE, "squash", decoding=decoding)
        scratch = PixelScratch(Path(folder) / "scratch")
        audit = check_images(source, preprocessing, params, scratch)
        examined = Examination.of(audit)
        rejected = [*source.rejected, *(outcome for outcome in audit.outcomes if isinstance(outcome, Rejection))]
        found = examined.review(None, params)
        if report is not None:
            write_data_report(report, examined.report(source, audit, scratch, found, None, rejected, source.left_out,
                                                      Path(params.path).name))  # fmt: skip
        return found.sentences(len(examined.usable), len(rejected))


def _headers(source: ImageSource) -> Headers:
    """The headers of up to `_SAMPLE` images, evenly chosen."""
    step = -(-len(source.records) // _SAMPLE)
    kinds: Counter[tuple[str, str] | None] = Counter()
    sizes = []
    for record in source.records[::step]:
        try:
            form, mode, size = read_header(source.root / record.path)
            kinds[form, mode] += 1
            sizes.append(size)
        except Exception:  # readers raise errors of every kind on damaged files; prepare lists them with their reasons
            kinds[None] += 1
    return Headers(kinds, sizes)
