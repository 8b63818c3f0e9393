"""Finds images that show the same: copies in another size, compression, crop, brightness, or orientation.

Two images are near-duplicates if, after alignment, what one does not explain of the other is little in itself, and
little compared with the difference between each of them and unrelated images of the set. By the second condition,
digits and cells, which look alike by nature, are no near-duplicates of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from udc_model.data.quality.alignment import unexplained_share
from udc_model.data.quality.fingerprints import find_candidates, fingerprints, oriented, unrelated_distance
from udc_model.data.quality.traits import StoredTraits
from udc_model.data.splits import connected_by_edges

# Measured by benchmarks/data_checks.py on photographs, digits and blood cells.
_LARGEST_SHARE = 0.06  # of the variance that one image does not explain of the other
_LARGEST_RATIO = 0.11  # of that share to the distance to unrelated images, in a set of _SIZE images
_SIZE, _EXPONENT = 2000, 1 / 6  # the nearest of N images in 12 dimensions is at a squared distance of N ** (-2 / 12)
_LARGEST_CANDIDATE_RATIO = 0.4  # of the distance of the fingerprints to that of unrelated images
_BLOCK = 4096


@dataclass(frozen=True)
class NearDuplicates:
    """Clusters of near-duplicates among N images.

    Attributes
    ----------
    cluster : (N,) number of each image's cluster, from 0 in the order of the images; -1 for an image in none.
    """

    cluster: NDArray[np.intp]

    @property
    def clusters(self) -> list[NDArray[np.intp]]:
        """The indices of the images of each cluster, sorted."""
        order = np.argsort(self.cluster, kind="stable")
        order = order[self.cluster[order] >= 0]
        starts = np.flatnonzero(np.diff(self.cluster[order], prepend=-1))
        return np.split(order, starts[1:]) if len(order) else []

    def among(self, kept: NDArray[np.bool_]) -> NearDuplicates:
        """The clusters among some of the images, which a mask (N,) selects."""
        cluster = self.cluster[kept]
        numbers, inverse, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
        is_cluster = (numbers >= 0) & (sizes > 1)
        renumbered = np.where(is_cluster, np.cumsum(is_cluster) - 1, -1)
        return NearDuplicates(renumbered[inverse].astype(np.intp))

    def divided(self, parts: Sequence[object]) -> list[NDArray[np.intp]]:
        """The clusters whose images are in several of ``parts`` (N values): splits, or classes."""
        return [images for images in self.clusters if len({parts[i] for i in images}) > 1]


def find_near_duplicates(traits: StoredTraits, digests: Sequence[str]) -> NearDuplicates:
    """Find the near-duplicates among N images; images with the same pixels count as one, and are in its cluster.

    Parameters
    ----------
    traits : of the images.
    digests : N digests of their pixels.
    """
    from threadpoolctl import threadpool_limits

    n = len(digests)
    first: dict[str, int] = {}
    original = np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], dtype=np.intp)
    distinct = np.array(sorted(first.values()), dtype=np.intp)
    prints = [fingerprints(traits.thumbnails(distinct[k : k + _BLOCK])) for k in range(0, len(distinct), _BLOCK)]
    cluster = np.full(n, -1, dtype=np.intp)
    if len(distinct) > 1:
        with threadpool_limits(1):  # the last bits depend on the number of threads
            pairs = distinct[_near_pairs(np.concatenate(prints), traits, distinct)]
        component = connected_by_edges(n, np.concatenate([pairs, np.column_stack([original, np.arange(n)])]))
        members = np.unique(component[pairs])
        cluster = np.where(np.isin(component, members), np.searchsorted(members, component), -1)
    return NearDuplicates(cluster)


def _near_pairs(prints: NDArray[np.float32], traits: StoredTraits, distinct: NDArray[np.intp]) -> NDArray[np.intp]:
    """Pairs (M, 2) of near-duplicates: positions in ``distinct``."""
    density = min(1.0, _SIZE / len(prints)) ** _EXPONENT
    candidates = find_candidates(prints, density * _LARGEST_CANDIDATE_RATIO)
    shares = []
    for start in range(0, len(candidates.first), _BLOCK):
        part = slice(start, start + _BLOCK)
        first, second = candidates.first[part], candidates.second[part]
        share = unexplained_share(
            oriented(traits.thumbnails(distinct[first]), candidates.orientation_of_first[part]),
            oriented(traits.thumbnails(distinct[second]), candidates.orientation_of_second[part]),
        )
        shares.append(share)
    share = np.concatenate([*shares, np.empty(0)])
    related = np.column_stack([candidates.first, candidates.second])[share <= _LARGEST_SHARE]
    images, index = np.unique(related, return_inverse=True)
    distance = unrelated_distance(prints, images, related)[index.reshape(-1, 2)].min(axis=1)
    is_near = share[share <= _LARGEST_SHARE] <= density * _LARGEST_RATIO * distance
    return np.asarray(related[is_near])
