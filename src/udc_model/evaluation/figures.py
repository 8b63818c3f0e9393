"""All figures of an evaluation, drawn from its tables: ``python -m udc_model.evaluation.figures PREPARED CACHE``.

Drawing takes as long as the rest of the stage evaluate and needs neither torch nor MLflow, so another process draws
while evaluate writes other tables and logs. It reads which figures to draw from standard input, one kind and folder of
a split per line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from PIL import Image

import udc_model
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.evaluation.plot_fonts import BOXES
from udc_model.files import atomic_file, remove_oldest
from udc_model.program import exit_status

GALLERY = 24  # images
_STORED = 100  # figures
logger = logging.getLogger(__name__)
FigureKind = Literal["classes", "curves"]  # confusion matrices, recall and costliest mistakes; all others


class FigureProcess:
    """A context manager that draws figures in another process, which imports its libraries on entry.

    Parameters
    ----------
    prepared : folder with the packed splits.
    cache : folder of figures drawn before.
    """

    def __init__(self, prepared: Path, cache: Path) -> None:
        command = [sys.executable, "-m", "udc_model.evaluation.figures", str(prepared), str(cache)]
        paths = [str(Path(udc_model.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}  # this copy of the package
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def __enter__(self) -> FigureProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def draw(self, folder: Path, kind: FigureKind) -> None:
        """Start to draw the figures of a kind from the tables in the folder of a split."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # finish() raises with the process's error output
            self.process.stdin.write(f"{kind} {folder}\n")
            self.process.stdin.flush()

    def finish(self) -> None:
        """Wait until all figures are drawn, and pass its first note on.

        Raises
        ------
        RuntimeError
            The process failed; a `UdcError` if a file is damaged.
        """
        _, errors = self.process.communicate()
        if self.process.returncode:
            reason = errors.strip().rpartition("\n")[2]
            if reason.startswith("error: "):
                raise UdcError(reason.removeprefix("error: "))
            raise RuntimeError(f"drawing the figures failed: {errors}")
        if notes := [line for line in errors.splitlines() if line.startswith("note: ")]:
            logger.warning("%s", notes[0])


@dataclass(frozen=True)
class FigureCache:
    """Figures drawn before, by everything that determines them; a changed cost changes few of them.

    Parameters
    ----------
    folder : of the stored figures; the 100 used last stay.
    """

    folder: Path

    def draw(self, path: Path, plot: Callable[..., None], *inputs: Any) -> None:
        """Write ``plot(path, *inputs)``, or copy the stored figure of the same plot and inputs."""
        stored = self.folder / f"{_digest(plot.__name__, *inputs)}.png"
        with suppress(OSError, SyntaxError, ValueError):  # not drawn before, or damaged
            with Image.open(stored) as image:
                image.verify()  # the checksums of its chunks
            shutil.copyfile(stored, path)
            os.utime(stored)
            return
        plot(path, *inputs)
        if _has_boxes(path):  # until a font is installed
            return
        with suppress(OSError):  # a figure that cannot be stored is drawn again
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(stored) as scratch:
                shutil.copyfile(path, scratch)
            remove_oldest(self.folder, "*.png", _STORED)


def _has_boxes(path: Path) -> bool:
    with Image.open(path) as image:
        return BOXES in image.info


def drawing_code() -> list[Path]:
    """The modules that decide how a figure looks."""
    return sorted(Path(__file__).parent.glob("*plot*.py"))


@cache
def _code_digest() -> bytes:
    """Digest of the drawing code and of the version of matplotlib."""
    digest = hashlib.sha256(version("matplotlib").encode())
    for path in drawing_code():
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


def _digest(*inputs: Any) -> str:
    """SHA-256 of tables, arrays and plain values, and of the code that draws them."""
    digest = hashlib.sha256(_code_digest())
    for value in inputs:
        if isinstance(value, pd.DataFrame):
            digest.update(value.to_csv(index=False).encode())
        elif isinstance(value, np.ndarray):
            digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
        elif isinstance(value, list) and value and isinstance(value[0], np.ndarray):
            digest.update(_digest(*value).encode())
        else:
            digest.update(repr(value).encode())
        digest.update(b"|")
    return digest.hexdigest()


def draw_figures(folder: Path, kind: FigureKind, prepared: Path, figures: FigureCache) -> None:
    """Draw the figures of one kind of a split.

    Parameters
    ----------
    folder : the split's folder in the evaluation folder; its name is the name of the split.
    prepared : folder with the packed splits, which hold the images of the costliest mistakes.
    figures : figures drawn before.
    """
    if kind == "curves":
        _draw_curves(folder, figures)
        return
    _draw_by_class(folder, figures)
    if folder.name == "test":
        _draw_gallery(folder, prepared, figures)


def _draw_curves(folder: Path, figures: FigureCache) -> None:
    from udc_model.evaluation import curve_plots  # matplotlib, which the process that waits does not need

    policy = json.loads((folder.parent / "policy.json").read_text(encoding="utf-8"))
    areas = _table(folder, "areas")
    for kind in ("roc", "precision_recall"):
        curves, mean = _table(folder, f"{kind}_by_class"), _table(folder, kind)
        figures.draw(folder / f"{kind}.png", curve_plots.plot_class_curves, curves, mean, areas, kind)
    method = policy["calibration"]["method"]
    figures.draw(folder / "reliability.png", curve_plots.plot_reliability, _table(folder, "reliability"), method)
    near = _table(folder, "threshold_reliability")
    figures.draw(folder / "threshold_reliability.png", curve_plots.plot_threshold_reliability, near)
    if (folder / "cost_curve.csv").is_file():
        figures.draw(folder / "cost_curve.png", curve_plots.plot_cost_curve, _table(folder, "cost_curve"))
    rate = float(_table(folder, "metrics").set_index("metric")["value"]["referral_rate"])
    figures.draw(folder / "referral.png", curve_plots.plot_referral, _table(folder, "referral"), policy["refer"], rate)


def _table(folder: Path, name: str) -> pd.DataFrame:
    text = dict.fromkeys(("class", "true", "decided", "path", "costliest_class"), str)
    empty = dict.fromkeys(("value", "low", "high"), "")  # of metrics that are undefined
    return pd.read_csv(folder / f"{name}.csv", dtype=text, keep_default_na=False, na_values=empty)


def _draw_by_class(folder: Path, figures: FigureCache) -> None:
    from udc_model.evaluation.matrix_plots import plot_confusion_matrix, plot_recall

    split = folder.name
    confusion = json.loads((folder / "confusion_matrix.json").read_text(encoding="utf-8"))
    counts, costs = np.array(confusion["counts"]), np.array(confusion["costs"])
    names, of_split = (confusion["classes"], confusion["outcomes"]), f"{split} ({counts.sum():,} images)"
    matrices = [("confusion_matrix", counts, f"Confusion matrix, {of_split}", "counts")]
    if split == "test":
        shares = counts / counts.sum(axis=1, keepdims=True)
        matrices.append(("confusion_shares", shares, f"Share of each true class, {of_split}", "shares"))
        matrices.append(("confusion_cost", costs, f"Total cost {costs.sum():,.4g}, {of_split}", "costs"))
    for name, values, title, kind in matrices:
        figures.draw(folder / f"{name}.png", plot_confusion_matrix, values, *names, title, kind)
    if split == "test":
        title = f"Recall by class (images), {split}"
        figures.draw(folder / "recall_by_class.png", plot_recall, _table(folder, "per_class"), title,
                     confusion.get("is_ordinal", False))  # fmt: skip


def _draw_gallery(folder: Path, prepared: Path, figures: FigureCache) -> None:
    from udc_model.evaluation.plot_style import class_label
    from udc_model.evaluation.plots import CAPTION, plot_gallery

    mistakes, split = _table(folder, "costliest_mistakes"), folder.name
    stored = PackedDataset.open(prepared).split(split).images
    images = [np.asarray(stored[row]) for row in mistakes["row"][:GALLERY]]
    title = f"Costliest mistakes (true → decided), {split}"
    captions = [
        f"{class_label(true, CAPTION)}\n→ {class_label(decided, CAPTION - 2)}\np = {probability:.2f}, cost {cost:g}"
        for true, decided, probability, cost in zip(
            *(mistakes[name][:GALLERY] for name in ("true", "decided", "probability", "cost")), strict=True
        )
    ]
    figures.draw(folder / "costliest_mistakes.png", plot_gallery, images, captions, title)


if __name__ == "__main__":
    from udc_model.evaluation import curve_plots as curve_plots  # imports matplotlib while the tables are written

    def main() -> None:
        """Draw the figures that the lines of standard input name."""
        for line in sys.stdin:
            kind, _, folder = line.rstrip("\n").partition(" ")
            draw_figures(Path(folder), cast(FigureKind, kind), Path(sys.argv[1]), FigureCache(Path(sys.argv[2])))

    sys.exit(exit_status(main))
