"""What all plots have in common: colours, fonts, class names as labels, legends beside the axes, and saving."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from udc_model.evaluation.plot_fonts import BOXES, fallback_fonts, missing_characters, note_boxes

# The palette of Okabe and Ito, distinguishable with all kinds of colour blindness, without its yellow, which is
# too pale on white. Line styles differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)))
NEUTRAL, BAND = "#767676", "#d9d9d9"  # of reference lines and of bands
SEQUENTIAL = {"counts": "Blues", "shares": "Blues", "costs": "Oranges"}  # colour maps of matrices
BARS = {"counts": COLOURS[0], "shares": COLOURS[0], "costs": COLOURS[1]}
LONGEST_LABEL = 40  # characters
_SHORT_ENTRY = 32  # characters of a legend that fit twice into the width

WIDTH = 6.4  # inches; a report shows most plots at this size or, on a telephone, at half of it
_STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=LINES),
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 11,
}
_DPI = 110


def save(path: Path, size: tuple[float, float], draw: Callable[[Figure], None], *, has_images: bool = False) -> None:
    """Write ``draw(figure)`` as a PNG; ``size`` in inches.

    256 colours are enough for lines, text and bars, and make the file a third as large; ``has_images`` stores all. It
    is drawn once more with other fonts if the usual one lacks a character; if they do too, the file has a comment.
    """
    pixels, missing = _drawn(size, draw, [])
    if missing and (fonts := fallback_fonts()):
        pixels, missing = _drawn(size, draw, fonts)
    if not has_images:
        pixels = pixels.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    comment = PngInfo()
    if missing:
        comment.add_text(BOXES, str(len(missing)))
        note_boxes(missing)
    pixels.save(path, "png", pnginfo=comment)  # without version and date: equal plots are equal files


def _drawn(
    size: tuple[float, float], draw: Callable[[Figure], None], fallbacks: Sequence[str]
) -> tuple[Image.Image, set[str]]:
    """The image of a figure, and the characters that no font has, neither the usual one nor the fallbacks."""
    style = _STYLE | {"font.family": [*mpl.rcParams["font.family"], *fallbacks]}
    with mpl.rc_context(style), missing_characters() as missing:  # type: ignore[arg-type]  # types keys as literals
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        draw(figure)
        canvas = FigureCanvasAgg(figure)  # savefig would draw twice, and compress pixels that quantize needs
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    return pixels, missing


def class_label(name: str, longest: int = LONGEST_LABEL) -> str:
    """A class name as a label: at most ``longest`` characters, without Matplotlib's mathematics between dollars.

    Long names lose their middle, since similar names often differ at the end.
    """
    end = (longest - 1) // 2
    short = name if len(name) <= longest else f"{name[: longest - 1 - end]}…{name[-end:]}"
    short = f" {short}" if short.startswith("_") else short  # Matplotlib leaves labels that begin with _ out
    return short.replace("$", r"\$")


def legend_below(figure: Figure | SubFigure, axes: Axes, title: str | None = None) -> None:
    """Put the legend below the axes, where it covers nothing, in two columns if the labels are short."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if len(labels) > 2 and max(map(len, labels)) <= _SHORT_ENTRY else 1
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, title=title, alignment="left")


def save_note(path: Path, title: str, text: str) -> None:
    """Write a title and a sentence as a PNG, instead of a plot in which nothing could be seen."""

    def draw(figure: Figure) -> None:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.text(0.01, 0.45, "\n".join(textwrap.wrap(text, 68)), va="center")

    save(path, (WIDTH, 1.2), draw)
