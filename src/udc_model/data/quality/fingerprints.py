"""Perceptual fingerprints of images, and an index that finds similar ones without comparing all pairs.

A fingerprint is the low-frequency part of the discrete cosine transform of a small grey thumbnail. It hardly changes
with size, compression, brightness and small crops. Mirroring and turning an image only changes signs and the order of
its coefficients, so an image is compared in its eight orientations at no cost.

The index (an inverted file, as in Jegou 2011) chooses about 4 sqrt(N) of the N images as pivots. Each image is listed
at the pivots most similar to it, turned as the pivot is; only images at the same pivot are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

THUMBNAIL = 32  # pixels of the sides of the thumbnail
_FREQUENCIES = 6  # lowest frequencies per axis
_PIVOTS_PER_ROOT, _LEAST_PIVOTS = 4, 512
_PIVOTS_OF_AN_IMAGE = 3
_REFERENCES = 512  # images that say how similar unrelated images of the set are
_WIDE_RANK = 12  # of the reference that is called unrelated; those before it may be near-duplicates
_RANK = 3  # the same, among references that are known to be no near-duplicates
_NEIGHBOURS = 4  # candidates of an image at a pivot
_BLOCK = 1024  # images compared at a time
_LEAST_CONTRAST = 1.5  # standard deviation of the thumbnail, grey levels; images below it are blank

# An orientation is a transposition (or not), followed by mirroring of rows and of columns.
ORIENTATIONS = [(transposed, rows, columns) for transposed in (False, True)
                for rows in (False, True) for columns in (False, True)]  # fmt: skip


def oriented(thumbnails: NDArray[np.uint8], orientation: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Turn and mirror each of (N, S, S) thumbnails by its index (N,) into `ORIENTATIONS`."""
    result = np.empty_like(thumbnails)
    for k, (transposed, rows, columns) in enumerate(ORIENTATIONS):
        chosen = thumbnails[orientation == k]
        chosen = chosen.transpose(0, 2, 1) if transposed else chosen
        result[orientation == k] = chosen[:, :: -1 if rows else 1, :: -1 if columns else 1]
    return result


def fingerprints(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The fingerprints (N, F, F) of (N, S, S) thumbnails: unit vectors without the mean brightness.

    Those of blank images, which all look alike, are zero.
    """
    side, k = thumbnails.shape[1], np.arange(_FREQUENCIES)[:, None]
    transform = np.cos(np.pi * k * (2 * np.arange(side) + 1) / (2 * side)) * np.where(k == 0, np.sqrt(0.5), 1)
    transform = transform.astype(np.float32)
    result: NDArray[np.float32] = transform @ thumbnails.astype(np.float32) @ transform.T
    result[:, 0, 0] = 0
    result /= np.maximum(np.linalg.norm(result, axis=(1, 2), keepdims=True), 1e-9)
    pixels = thumbnails.reshape(len(thumbnails), side * side).astype(np.float64)  # all sums are exact
    n, total, squares = pixels.shape[1], pixels.sum(axis=1), np.einsum("np,np->n", pixels, pixels)
    result[n * squares - total**2 < (n * _LEAST_CONTRAST) ** 2] = 0
    return result


def all_orientations(prints: NDArray[np.float32]) -> NDArray[np.float32]:
    """The fingerprints (8, N, F, F) of the images in each of `ORIENTATIONS`."""
    sign = np.where(np.arange(_FREQUENCIES) % 2, -1, 1).astype(np.float32)
    turned = []
    for transposed, rows, columns in ORIENTATIONS:
        each = prints.transpose(0, 2, 1) if transposed else prints
        turned.append(each * (sign[:, None] if rows else 1) * (sign if columns else 1))
    return np.stack(turned).astype(np.float32)


# The orientation that undoes each one: a quarter turn to the left undoes one to the right.
_INVERSE = np.array([ORIENTATIONS.index((t, columns, rows) if t else (t, rows, columns))
                     for t, rows, columns in ORIENTATIONS])  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """M pairs of images that may be near-duplicates.

    Attributes
    ----------
    first, second : (M,) indices of the images, ``first < second``, sorted.
    orientation_of_first, orientation_of_second : (M,) index into `ORIENTATIONS`, in which the images look alike.
    distance : (M,) 1 - correlation of the fingerprints in these orientations.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    orientation_of_first: NDArray[np.intp]
    orientation_of_second: NDArray[np.intp]
    distance: NDArray[np.float32]


def find_candidates(prints: NDArray[np.float32], largest_ratio: float) -> Candidates:
    """Find pairs whose distance is small, compared with that of both images to others that look like them.

    Distances are 1 - correlation. Those of the pairs are at most ``largest_ratio`` times that to the twelfth most
    similar of 512 images.

    Parameters
    ----------
    prints : (N, F, F), from `fingerprints`.
    """
    n = len(prints)
    n_pivots = min(n, max(_LEAST_PIVOTS, int(_PIVOTS_PER_ROOT * n**0.5)))
    pivots = np.unique(np.linspace(0, n - 1, n_pivots).astype(np.intp))
    image, pivot, orientation, scale = _listed(prints, pivots)
    order = np.argsort(pivot, kind="stable")
    image, pivot, orientation = image[order], pivot[order], orientation[order]
    starts = np.searchsorted(pivot, np.arange(len(pivots) + 1))
    found = [_pairs_at_pivot(prints, image[a:b], orientation[a:b], scale, largest_ratio)
             for a, b in pairwise(starts) if b - a > 1]  # fmt: skip
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)] if found else [np.empty(0)] * 5
    first, second, distance = columns[0].astype(np.intp), columns[1].astype(np.intp), columns[4]
    best = np.lexsort((distance, second, first))
    is_first = np.ones(len(best), dtype=bool)
    is_first[1:] = (np.diff(first[best]) != 0) | (np.diff(second[best]) != 0)
    chosen = best[is_first]
    return Candidates(first[chosen], second[chosen], columns[2].astype(np.intp)[chosen],
                      columns[3].astype(np.intp)[chosen], distance[chosen].astype(np.float32))  # fmt: skip


def _listed(
    prints: NDArray[np.float32], pivots: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """List each image at its pivots; returns image, pivot and orientation of each entry, and the scale (N,)."""
    n, p = len(prints), len(pivots)
    flat, turned = prints.reshape(n, -1), all_orientations(prints[pivots]).reshape(8 * p, -1)
    references = np.arange(0, p, -(-p // _REFERENCES))
    per_image, rank = min(_PIVOTS_OF_AN_IMAGE, p), min(_WIDE_RANK + 1, len(references))
    images, at, orientations, scale = [], [], [], np.empty(n, np.float32)
    for start in range(0, n, _BLOCK):
        block = flat[start : start + _BLOCK]
        rows = np.arange(len(block))[:, None]
        of_orientation = (block @ turned.T).reshape(len(block), 8, p)
        similarity = of_orientation.max(axis=1)
        nearest = np.argpartition(-similarity, per_image - 1, axis=1)[:, :per_image]
        by_orientation = of_orientation[rows, :, nearest]  # (block, per_image, 8)
        best = by_orientation.argmax(axis=2)
        closest = similarity[rows, nearest].argmax(axis=1)[:, None]
        second = by_orientation[rows, closest].argsort(axis=2)[:, :, -2]  # a symmetric image looks alike in two
        images.append(np.repeat(np.arange(start, start + len(block)), per_image + 1))
        at.append(np.hstack([nearest, nearest[rows, closest]]).ravel())
        orientations.append(_INVERSE[np.hstack([best, second])].ravel())
        unrelated = similarity[:, references]
        scale[start : start + _BLOCK] = 1 - np.partition(unrelated, -rank, axis=1)[:, -rank]
    return np.concatenate(images), np.concatenate(at), np.concatenate(orientations), scale


def unrelated_distance(
    prints: NDArray[np.float32], images: NDArray[np.intp], related: NDArray[np.intp]
) -> NDArray[np.float32]:
    """The distance of some images to the unrelated images of the set that look most like them.

    It is that to the third most similar of 512 images, without those that may be near-duplicates.

    Parameters
    ----------
    prints : (N, F, F) fingerprints.
    images : (n,) indices, sorted.
    related : (M, 2) pairs of images that may be near-duplicates.

    Returns
    -------
    (n,) 1 - correlation.
    """
    references = np.unique(np.linspace(0, len(prints) - 1, min(len(prints), _REFERENCES)).astype(np.intp))
    flat, turned = prints.reshape(len(prints), -1), all_orientations(prints[references])
    turned = turned.reshape(8, len(references), -1)
    pairs = np.concatenate([related, related[:, ::-1], np.column_stack([images, images])])
    position = np.searchsorted(references, pairs[:, 1])
    is_reference = references[np.minimum(position, len(references) - 1)] == pairs[:, 1]
    rows, columns = np.searchsorted(images, pairs[is_reference, 0]), position[is_reference]
    result = np.empty(len(images), np.float32)
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        similarity = np.max([flat[block] @ orientation.T for orientation in turned], axis=0)
        inside = (rows >= start) & (rows < start + len(block))
        similarity[rows[inside] - start, columns[inside]] = -1
        rank = min(_RANK, len(references))
        result[start : start + _BLOCK] = 1 - np.partition(similarity, -rank, axis=1)[:, -rank]
    return result


def _pairs_at_pivot(
    prints: NDArray[np.float32],
    image: NDArray[np.intp],
    orientation: NDArray[np.intp],
    scale: NDArray[np.float32],
    largest_ratio: float,
) -> tuple[NDArray[Any], ...]:
    """Pairs of the images at one pivot: first, second, their orientations, and distance."""
    turned = all_orientations(prints[image])[orientation, np.arange(len(image))].reshape(len(image), -1)
    found = []
    for start in range(0, len(image), _BLOCK):
        distance = 1 - turned[start : start + _BLOCK] @ turned.T
        rows = np.arange(start, start + len(distance))
        limit = largest_ratio * np.minimum(scale[image[rows]][:, None], scale[image])
        distance[(image[rows][:, None] == image) | (distance > limit)] = np.inf
        n_neighbours = min(_NEIGHBOURS, len(image) - 1)
        near = np.argpartition(distance, n_neighbours - 1, axis=1)[:, :n_neighbours]
        a, column = np.nonzero(np.isfinite(np.take_along_axis(distance, near, axis=1)))
        b = near[a, column]
        a = a + start
        swapped = image[a] > image[b]
        low, high = np.where(swapped, b, a), np.where(swapped, a, b)
        found.append((image[low], image[high], orientation[low], orientation[high], distance[a - start, b]))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
