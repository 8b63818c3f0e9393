"""Proposes a value of ``data.group`` from the file names, if they number several images of one object.

A pattern is proposed if it divides the images into many small groups, and if images of one group look more alike than
images of one class do, by a test with random pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udc_model.data.quality.fingerprints import all_orientations, fingerprints
from udc_model.data.quality.group_patterns import PATTERNS, groups_by_name
from udc_model.data.quality.traits import StoredTraits

_LEAST_GROUPS, _LARGEST_SHARE, _LEAST_IN_GROUPS = 8, 0.1, 0.8
_PAIRS = 2000  # compared in each test
_LEAST_PAIRS = 20
_ERROR = 0.001  # probability that a pattern without meaning is proposed
_LEAST_EFFECT = 0.75  # probability that a pair of a group looks more alike than a pair of the class


@dataclass(frozen=True)
class GroupProposal:
    """A pattern for ``data.group``, the number of groups, and of images in groups of two or more.

    ``alike`` is the probability that two images of a group look more alike than two of the same class.
    """

    pattern: str
    groups: int
    images: int
    alike: float

    def to_text(self) -> str:
        """The proposal as a sentence."""
        return (f"the file names form {self.groups:,} groups with {self.images:,} images that belong together (two of "
                f"a group look more alike than two of the same class in {self.alike:.0%} of cases); if a group is one "
                f"object, set data.group: '{self.pattern}'")  # fmt: skip


def propose_group(paths: Sequence[str], labels: Sequence[str], traits: StoredTraits) -> GroupProposal | None:
    """Propose the coarsest pattern whose groups look alike, or None.

    Parameters
    ----------
    paths, labels : of N images.
    traits : of the images.
    """
    candidates = [(pattern, groups) for pattern in PATTERNS if (groups := _plausible_groups(pattern, paths))]
    candidates.sort(key=lambda item: -len(set(item[1])))  # the finest first
    proposal, finer = None, list(paths)
    for pattern, groups in candidates:
        alike = _alike(groups, finer, labels, traits)
        if alike is not None and alike >= _LEAST_EFFECT:
            in_groups = sum(count for count in Counter(groups).values() if count > 1)
            proposal, finer = GroupProposal(pattern, len(set(groups)), in_groups, alike), groups
    return proposal


def _plausible_groups(pattern: str, paths: Sequence[str]) -> list[str] | None:
    """The group of each image, or None if they cannot be groups of objects."""
    groups = groups_by_name(pattern, paths)
    counts = Counter(groups)
    if groups is None or len(counts) < _LEAST_GROUPS or max(counts.values()) > _LARGEST_SHARE * len(groups):
        return None
    in_groups = sum(count for count in counts.values() if count > 1)
    return groups if in_groups >= _LEAST_IN_GROUPS * len(groups) else None


def _alike(groups: Sequence[str], finer: Sequence[str], labels: Sequence[str], traits: StoredTraits) -> float | None:
    """Probability that a pair of a group, of different ``finer`` groups, looks more alike than another of its class.

    None if there are too few pairs, or if the probability may be one half.
    """
    rng = np.random.default_rng(0)
    inside = _pairs(rng, [f"{group}\0{label}" for group, label in zip(groups, labels, strict=True)], finer)
    outside = _pairs(rng, labels, groups)
    n = min(len(inside), len(outside))
    if n < _LEAST_PAIRS:
        return None
    near, far = _similarity(inside[:n], traits), _similarity(outside[:n], traits)
    wins = float((near > far).mean() + (near == far).mean() / 2)
    # Hoeffding's bound for n independent pairs of pairs
    return wins if wins - np.sqrt(np.log(1 / _ERROR) / (2 * n)) > 0.5 else None


def _pairs(rng: np.random.Generator, same: Sequence[str], different: Sequence[str]) -> NDArray[np.intp]:
    """Random disjoint pairs (M, 2) of images that agree in ``same`` and differ in ``different``."""
    order = rng.permutation(len(same))
    key = np.unique(np.array(same, dtype=object), return_inverse=True)[1]
    order = order[np.argsort(key[order], kind="stable")]
    first, second = order[:-1:2], order[1::2]
    kept = [(a, b) for a, b in zip(first, second, strict=True) if same[a] == same[b] and different[a] != different[b]]
    pairs = np.array(kept, dtype=np.intp).reshape(-1, 2)
    return pairs[rng.permutation(len(pairs))[:_PAIRS]]


def _similarity(pairs: NDArray[np.intp], traits: StoredTraits) -> NDArray[np.float32]:
    """Correlation of the fingerprints of each pair, in the best orientation."""
    first, second = (fingerprints(traits.thumbnails(pairs[:, k])) for k in (0, 1))
    return np.asarray((all_orientations(first) * second).sum(axis=(2, 3)).max(axis=0))
