"""How familiar the images of a split are: the share that is flagged, and the least familiar ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.data.packed import PackedSplit
from udc_model.decisions.policy import Policy
from udc_model.evaluation.intervals import share_interval
from udc_model.evaluation.metrics import Scored
from udc_model.evaluation.tables import write_csv
from udc_model.files import json_text, read_json

UNFAMILIAR = "unfamiliar.json"
LEAST_FAMILIAR = "least_familiar.csv"
_IMAGES = 12  # of the table of the least familiar ones
_BINS = 10  # of familiarities from 0 to 1
_ADVICE = "run evaluate again (dvc repro)"


@dataclass(frozen=True)
class UnfamiliarImages:
    """The images of a split that are flagged as unfamiliar.

    Attributes
    ----------
    images, unfamiliar : images of the split, and those of them whose familiarity is at most ``level``.
    share, low, high : share of the latter, and its interval.
    calibration : distances of calibration images with which those of the split are compared.
    is_resolved : whether they are enough for ``level``; otherwise no image is flagged.
    histogram : images by familiarity, in bins of equal width; about equal if they are like the calibration images.
    """

    images: int
    unfamiliar: int
    share: float
    low: float
    high: float
    level: float
    calibration: int
    is_resolved: bool
    histogram: list[int]

    def to_text(self) -> str:
        """One sentence."""
        if not self.is_resolved:
            return (f"a familiarity of {self.level:g} cannot be resolved with {self.calibration:,} calibration images "
                    f"or groups, so none is flagged as unfamiliar; {round(1 / self.level) - 1} are needed")  # fmt: skip
        return (f"{self.unfamiliar:,} of {self.images:,} images ({self.share:.1%}, {self.low:.1%} to {self.high:.1%}) "
                f"are unfamiliar; {self.level:.0%} are expected of images like the calibration split")  # fmt: skip


def write_unfamiliar(
    folder: Path,
    split: PackedSplit,
    scored: Scored,
    policy: Policy,
    distances: NDArray[np.float32],
    confidence: float,
) -> UnfamiliarImages:
    """Write `UNFAMILIAR` and `LEAST_FAMILIAR` of a split into its folder.

    Parameters
    ----------
    distances : (N,) of the images.
    """
    assert policy.familiarity is not None
    familiarity = policy.familiarity.of(distances)
    flags = policy.is_unfamiliar(familiarity)
    low, high = share_interval(flags, scored.groups, confidence)
    histogram = np.histogram(familiarity, _BINS, (0.0, 1.0))[0].tolist()
    result = UnfamiliarImages(
        len(flags), int(flags.sum()), float(flags.mean()), low, high, policy.familiarity.level,
        len(policy.familiarity.distances), policy.familiarity.is_resolved, histogram,
    )  # fmt: skip
    (folder / UNFAMILIAR).write_text(json_text(asdict(result)) + "\n", encoding="utf-8")
    rows = np.lexsort((np.arange(len(flags)), -distances))[:_IMAGES]
    table = pd.DataFrame({
        "path": [split.paths[row] for row in rows],
        "true": [policy.classes[scored.targets[row]] for row in rows],
        "decided": [policy.outcomes[scored.decided[row]] for row in rows],
        "familiarity": familiarity[rows],
        "row": rows,
    })  # fmt: skip
    write_csv(table, folder / LEAST_FAMILIAR)
    return result


def read_unfamiliar(folder: Path) -> UnfamiliarImages | None:
    """What `write_unfamiliar` wrote into the folder of a split; None if an earlier version wrote the folder."""
    path = folder / UNFAMILIAR
    return UnfamiliarImages(**read_json(path, _ADVICE)) if path.is_file() else None
