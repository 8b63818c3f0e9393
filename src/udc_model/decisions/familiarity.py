"""Familiarity: how usual an image is beside held-out images of the data, as a p-value of its distance to the others.

The p-value is conformal (Vovk, Gammerman and Shafer 2005; for outliers Bates et al. 2023, Annals of Statistics 51:149,
arXiv:2104.08279): the rank of the distance among those of n images of the calibration split, which decided nothing
about how distances are computed. For images that are drawn as those were, it is at most a with a probability of at
most a, whatever the distance and the network. The unit is the group: of each group, one image is among the n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udc_model.config import CostParams, EvaluateParams
from udc_model.errors import UdcError

FAMILIARITY, UNFAMILIAR = "familiarity", "unfamiliar"  # names in all answers, tables and exports
LEVEL = 0.01  # an image is unfamiliar if its familiarity is at most this
MOST_DISTANCES = 1999  # of calibration images: with more, the share of flagged images hardly varies less
_FEWEST_DISTANCES = round(1 / LEVEL) - 1


@dataclass(frozen=True)
class Familiarity:
    """What turns the distance of an image into its familiarity; part of a policy.

    Parameters
    ----------
    sha256 : of the file with the statistics by which distances are computed from features.
    features, networks : sizes in that file: features D of each network, and networks.
    distances : of n calibration images, in ascending order; single precision.
    unfamiliar : ``warn``, or ``refer`` to refer unfamiliar images to a person.
    level : familiarity up to which an image is unfamiliar.
    """

    sha256: str
    features: int
    networks: int
    distances: list[float]
    unfamiliar: str = "warn"
    level: float = LEVEL

    @classmethod
    def fit(
        cls,
        sha256: str,
        shape: tuple[int, int],
        distances: NDArray[np.float32],
        groups: NDArray[np.integer] | None,
        unfamiliar: str,
    ) -> Familiarity:
        """The familiarity by the distances (N,) of the calibration split, N may be 0, with group indices (N,) or None.

        Parameters
        ----------
        sha256, shape : of the file with the statistics, and its number of networks and of features.
        unfamiliar : ``warn`` or ``refer``.
        """
        chosen = distances[calibration_rows(groups, len(distances))].astype(np.float64)
        is_number = np.isfinite(chosen)
        if not is_number.all():
            raise UdcError(f"the features of {(~is_number).sum():,} calibration images are not finite; train the model "
                           "again (dvc repro -f train)")  # fmt: skip
        return cls(sha256, shape[1], shape[0], np.sort(chosen).tolist(), unfamiliar)

    @property
    def is_resolved(self) -> bool:
        """Whether there are enough calibration images for a familiarity of ``level``; otherwise no image is flagged."""
        return self.level * (len(self.distances) + 1) >= 1

    def of(self, distances: NDArray[np.floating]) -> NDArray[np.float64]:
        """The familiarity (N,) of images at these distances (N,): (1 + calibration images at least as far) / (n + 1).

        A distance that is not a number is farther than all others.
        """
        n = len(self.distances)
        return (1 + n - np.searchsorted(np.array(self.distances), distances, side="left")) / (n + 1)

    def is_unfamiliar(self, familiarity: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which images (N,) of this familiarity (N,) are unfamiliar."""
        return np.asarray(familiarity <= self.level)


def calibration_rows(groups: NDArray[np.integer] | None, n: int) -> NDArray[np.intp]:
    """The images, of n of the calibration split, with whose distances others are compared.

    Of each group the first one, and at most `MOST_DISTANCES`, evenly spaced.

    Parameters
    ----------
    groups : (n,) group indices; None if each image is a group of its own.
    """
    rows = np.arange(n) if groups is None else np.sort(np.unique(groups, return_index=True)[1])
    return np.asarray(rows[evenly_spaced(len(rows), MOST_DISTANCES)], dtype=np.intp)


def evenly_spaced(n: int, count: int) -> NDArray[np.intp]:
    """At most ``count`` different indices of n, from the first to the last."""
    return np.arange(n) if n <= count else np.linspace(0, n - 1, count).astype(np.intp)


def unfamiliar_problems(
    evaluate: EvaluateParams,
    costs: CostParams,
    counts: Mapping[str, int] | None,
    groups: Sequence[Mapping[str, int]] | None,
) -> list[str]:
    """Why unfamiliar images cannot be referred, one sentence each.

    Parameters
    ----------
    counts, groups : images of each class in the calibration split, and in each of its groups; None if not known.
    """
    if costs.unfamiliar == "warn":
        return []
    problems = []
    if costs.refer is None:
        problems.append("costs.unfamiliar: refer needs costs.refer, the cost of referring an image to a person; set "
                        "it, or use warn")  # fmt: skip
    if evaluate.decision in ("recall_floor", "cost_ceiling"):
        problems.append(f"costs.unfamiliar: with refer, evaluate.decision: {evaluate.decision} is not proved, because "
                        "more images are referred than in the proof; use warn")  # fmt: skip
    units = len(groups) if groups is not None else None if counts is None else sum(counts.values())
    if units is not None and units < _FEWEST_DISTANCES:
        kind = "groups" if groups is not None else "images"
        problems.append(f"costs.unfamiliar: refer needs {_FEWEST_DISTANCES} {kind} in the calibration split to tell "
                        f"1 image in {_FEWEST_DISTANCES + 1}, but there are {units}; raise data.splits.calibration, or "
                        "use warn")  # fmt: skip
    return problems
