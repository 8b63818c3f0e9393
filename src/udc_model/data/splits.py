"""Assigns images to train, validation, calibration and test: stratified by class, without splitting a group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csgraph

from udc_model.config import SPLITS, SplitShares


def connected_components(n: int, keys: Sequence[Sequence[str | None]]) -> NDArray[np.intp]:
    """Number images such that two have the same number exactly if a chain of equal keys connects them.

    Parameters
    ----------
    n : number of images.
    keys : sequences of length n, e.g. the groups and the pixel hashes; None is equal to no other key.

    Returns
    -------
    (n,) component of each image, numbered from 0 in order of first appearance.
    """
    edges: list[tuple[int, int]] = []
    for sequence in keys:
        first: dict[str, int] = {}  # first image with each key
        edges += [(first.setdefault(key, i), i) for i, key in enumerate(sequence) if key is not None]
    return connected_by_edges(n, np.array(edges, dtype=np.intp).reshape(-1, 2))


def connected_by_edges(n: int, edges: NDArray[np.intp]) -> NDArray[np.intp]:
    """Number n images as `connected_components` does, by M pairs (M, 2) that are connected."""
    start, end = edges.T
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (start, end)), shape=(n, n))
    component = csgraph.connected_components(graph, directed=False)[1]
    _, first_image, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_image))[inverse].astype(np.intp)


def of_several_splits(components: NDArray[np.intp], fixed: Sequence[str | None]) -> NDArray[np.bool_]:
    """Whether images of the component of each image (N,) have different splits in ``fixed``, as in `assign_splits`."""
    first: dict[int, str] = {}  # split of the first image that has one, by component
    several = [component for component, split in zip(components.tolist(), fixed, strict=True)
               if split is not None and first.setdefault(component, split) != split]  # fmt: skip
    return np.isin(components, several)


def with_splits_of_groups(groups: Sequence[str | None], fixed: Sequence[str | None]) -> list[str | None]:
    """The splits; for an image without one, that of its group if an image of it has one."""
    of_group = {group: split for group, split in zip(groups, fixed, strict=True) if group is not None and split}
    return [split or of_group.get(group or "") for group, split in zip(groups, fixed, strict=True)]


def missing_splits(fixed: Sequence[str | None], shares: SplitShares) -> list[str]:
    """The splits with a share that no image would be in: every image has a split, and none has this one."""
    present = set(fixed)
    return [] if None in present else [name for name in SPLITS if getattr(shares, name) > 0 and name not in present]


def without_train(fixed: Sequence[str | None]) -> list[str | None]:
    """The splits with None instead of ``train``: `assign_splits` then carves the missing splits from these images."""
    return [None if name == "train" else name for name in fixed]


def assign_splits(
    labels: NDArray[np.intp],
    components: NDArray[np.intp],
    fixed: Sequence[str | None],
    shares: SplitShares,
    seed: int,
) -> NDArray[np.intp]:
    """Assign each image to a split such that every class has the shares ``shares`` and no component is divided.

    The algorithm is greedy, like scikit-learn's StratifiedGroupKFold, but for unequal shares. It processes components
    by decreasing size, equal ones in an order drawn from ``seed``, and assigns each to the split whose classes lack
    most images. Splits that occur in ``fixed`` receive no other images.

    Parameters
    ----------
    labels : (N,) class index of each image.
    components : (N,) component of each image.
    fixed : split name of each of the N images, or None. A component has one name at most (`of_several_splits`).
    shares : target share of each split; shares of 0 create no split.
    seed : determines the order of components of equal size.

    Returns
    -------
    (N,) index into `SPLITS`. The result depends on the order of the images only through ``components``.

    Raises
    ------
    ValueError
        A component has several names.
    """
    if of_several_splits(components, fixed).any():
        raise ValueError("fixed: a component has several splits")
    n_components = int(components.max()) + 1
    counts = np.zeros((n_components, int(labels.max()) + 1))
    np.add.at(counts, (components, labels), 1)

    chosen = np.full(n_components, len(SPLITS))
    for i, name in enumerate(fixed):
        if name is not None:
            chosen[components[i]] = SPLITS.index(name)
    fixed_splits = np.unique(chosen[chosen < len(SPLITS)])
    free = np.array([split for split in range(len(SPLITS)) if split not in fixed_splits], dtype=np.intp)
    unassigned = np.flatnonzero(chosen == len(SPLITS))
    share = np.array([getattr(shares, name) for name in SPLITS])[free]
    free, share = free[share > 0], share[share > 0]
    if unassigned.size and not free.size:
        # Every split is fixed; images without a split become training images.
        chosen[unassigned] = SPLITS.index("train")
    elif unassigned.size:
        chosen[unassigned] = free[_distribute(counts[unassigned], share / share.sum(), seed)]
    return chosen[components]


def assign_folds(
    labels: NDArray[np.intp], components: NDArray[np.intp], folds: int, seed: int | Sequence[int]
) -> NDArray[np.intp]:
    """Assign each image to one of ``folds`` folds such that every class has equal shares and no component is divided.

    Parameters
    ----------
    labels, components : as in `assign_splits`.
    seed : determines the order of components of equal size.

    Returns
    -------
    (N,) fold of each image, from 0.
    """
    counts = np.zeros((int(components.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (components, labels), 1)
    return _distribute(counts, np.full(folds, 1 / folds), seed)[components]


def _distribute(counts: NDArray[np.float64], share: NDArray[np.float64], seed: int | Sequence[int]) -> NDArray[np.intp]:
    """Distribute M components with class counts (M, K) over S splits with shares (S,); return the splits (M,)."""
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    target = share[:, None] * counts.sum(axis=0)  # (S, K)
    filled = np.zeros_like(target)
    inverse = np.divide(1.0, target, out=np.zeros_like(target), where=target > 0)
    preference = np.argsort(-share, kind="stable")  # for equal need, the split with the largest share is chosen
    split = np.empty(len(counts), dtype=np.intp)
    for m in order:
        need = (1 - filled * inverse) @ counts[m]  # (S,)
        best = preference[np.argmax(np.round(need[preference], 9))]
        split[m] = best
        filled[best] += counts[m]
    return split
