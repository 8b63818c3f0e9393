"""Deal images out to train, validation, calibration and test: stratified by class, whole groups at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from udc_model.config import SPLITS, SplitShares


def connected_components(n: int, keys: Sequence[Sequence[str | None]]) -> NDArray[np.intp]:
    """Number images so that two share a number exactly if a chain of equal keys joins them.

    Parameters
    ----------
    n : number of images.
    keys : sequences of length n, such as the groups and the pixel hashes; None joins nothing.

    Returns
    -------
    (n,) component of each image, numbered in order of first appearance.
    """
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]  # path halving
            i = parent[i]
        return i

    for sequence in keys:
        first: dict[str, int] = {}
        for i, key in enumerate(sequence):
            if key is not None:
                j = first.setdefault(key, i)
                a, b = sorted((root(i), root(j)))
                parent[b] = a
    roots = np.array([root(i) for i in range(n)], dtype=np.intp)
    return np.unique(roots, return_inverse=True)[1].astype(np.intp)


def assign_splits(
    labels: NDArray[np.intp],
    components: NDArray[np.intp],
    fixed: Sequence[str | None],
    shares: SplitShares,
    seed: int,
) -> NDArray[np.intp]:
    """Assign each image a split, so that every class is shared out as ``shares`` asks and no component is cut.

    Greedy, as scikit-learn's StratifiedGroupKFold, for unequal shares: components from the largest to the smallest,
    equal ones in an order drawn from ``seed``, each to the split that is furthest from full in its classes. A split
    that ``fixed`` gives any image is left as it was given; the others share the rest.

    Parameters
    ----------
    labels : (N,) class index of each image.
    components : (N,) component of each image.
    fixed : N split names or None. A component with several goes to the first of them in the order of `SPLITS`: an
        image that training has seen is no use for testing.
    shares, seed : of ``params.yaml``.

    Returns
    -------
    (N,) index into `SPLITS`. Depends on the order of the images only through ``components``.
    """
    n_components = int(components.max()) + 1
    counts = np.zeros((n_components, int(labels.max()) + 1))
    np.add.at(counts, (components, labels), 1)

    chosen = np.full(n_components, len(SPLITS))
    for i, name in enumerate(fixed):
        if name is not None:
            chosen[components[i]] = min(chosen[components[i]], SPLITS.index(name))
    given = np.unique(chosen[chosen < len(SPLITS)])
    free = np.array([split for split in range(len(SPLITS)) if split not in given], dtype=np.intp)
    rest = np.flatnonzero(chosen == len(SPLITS))
    share = np.array([getattr(shares, name) for name in SPLITS])[free]
    free, share = free[share > 0], share[share > 0]
    if rest.size and not free.size:
        # Every split is given; images that name none are material to train on.
        chosen[rest] = SPLITS.index("train")
    elif rest.size:
        chosen[rest] = free[_deal(counts[rest], share / share.sum(), seed)]
    return chosen[components]


def _deal(counts: NDArray[np.float64], share: NDArray[np.float64], seed: int) -> NDArray[np.intp]:
    """Deal components with (M, K) class counts out to S piles of given shares; returns (M,) piles."""
    drawn = np.random.default_rng(seed).permutation(len(counts))
    order = drawn[np.argsort(-counts[drawn].sum(axis=1), kind="stable")]
    target = share[:, None] * counts.sum(axis=0)  # (S, K)
    filled = np.zeros_like(target)
    inverse = np.divide(1.0, target, out=np.zeros_like(target), where=target > 0)
    preference = np.argsort(-share, kind="stable")  # a tie goes to the largest share
    pile = np.empty(len(counts), dtype=np.intp)
    for m in order:
        need = (1 - filled * inverse) @ counts[m]  # (S,)
        best = preference[np.argmax(np.round(need[preference], 9))]
        pile[m] = best
        filled[best] += counts[m]
    return pile
