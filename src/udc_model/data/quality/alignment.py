"""How much of an image another one explains, after small shifts, crops and changes of brightness (Lucas 1981)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEPS = 4  # of the Gauss-Newton method
_LARGEST_SHIFT, _LARGEST_SCALING = 0.12, 0.12  # of the side
_BLOCK = 256  # pairs aligned at a time


def unexplained_share(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The share of the variance of one image that the other one does not explain, for each of N pairs.

    One image is shifted and scaled along both axes such that a quadratic function of its grey levels is as near to the
    other image as possible. The lower share of both directions counts, since a crop contains less than its original.

    Parameters
    ----------
    first, second : (N, S, S) grey images.

    Returns
    -------
    (N,) from 0, for images that differ by nothing else, to 1.
    """
    shares = []
    for start in range(0, len(first), _BLOCK):
        a, b = (_smoothed(images[start : start + _BLOCK]) for images in (first, second))
        shares.append(np.minimum(_unexplained(a, b), _unexplained(b, a)))
    return np.concatenate([np.empty(0), *shares])


def _smoothed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weigh each pixel with its neighbours by 1, 2, 1 along both axes: the finest structures cannot be aligned."""
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return np.asarray((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16)


def _unexplained(moving: NDArray[np.float32], fixed: NDArray[np.float32]) -> NDArray[np.float64]:
    n, side, _ = moving.shape
    inside = slice(1, side - 1)
    target = fixed[:, inside, inside].reshape(n, -1)
    variance = np.maximum(((target - target.mean(axis=1, keepdims=True)) ** 2).sum(axis=1), 1e-9)
    centred = np.arange(side, dtype=np.float32) - (side - 1) / 2
    motion: NDArray[np.float32] = np.zeros((n, 4), np.float32)
    share: NDArray[np.float64] = np.ones(n)
    limit = np.array([_LARGEST_SHIFT * side] * 2 + [_LARGEST_SCALING] * 2, np.float32)
    for step in range(_STEPS + 1):
        warped = _warped(moving, motion)
        tone: list[NDArray[Any]] = [np.ones_like(warped), warped, warped**2 / 255]
        gradient: Any = np.gradient(warped, axis=(1, 2))
        down, right = gradient
        slopes: list[NDArray[Any]] = [down, right, down * centred[:, None], right * centred]
        terms = np.stack([*tone, *slopes], axis=-1)[:, inside, inside].reshape(n, -1, 7)
        gram, moment = terms.transpose(0, 2, 1) @ terms, (terms.transpose(0, 2, 1) @ target[..., None])[..., 0]
        weights = _solved(gram[:, :3, :3], moment[:, :3])
        residual = target - (terms[..., :3] @ weights[..., None].astype(np.float32))[..., 0]
        share = np.minimum(share, (residual.astype(np.float64) ** 2).sum(axis=1) / variance)
        if step < _STEPS:
            weights = _solved(gram, moment)
            gain = weights[:, 1] + 2 * weights[:, 2] * warped.mean(axis=(1, 2)) / 255
            gain = np.where(np.abs(gain) < 0.1, 0.1, gain)
            motion = np.clip(motion + weights[:, 3:] / gain[:, None], -limit, limit).astype(np.float32)
    return share


def _solved(gram: NDArray[np.float32], moment: NDArray[np.float32]) -> NDArray[np.float64]:
    """Least squares by the normal equations, scaled to ones on the diagonal and slightly regularised."""
    scale = np.sqrt(np.maximum(np.einsum("nii->ni", gram), 1e-9)).astype(np.float64)
    scaled = gram / (scale[:, :, None] * scale[:, None, :]) + 1e-6 * np.eye(gram.shape[1])
    return np.asarray(np.linalg.solve(scaled, (moment / scale)[..., None])[..., 0] / scale)


def _warped(images: NDArray[np.float32], motion: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift and scale (N, S, S) images by (N, 4): shifts down and right in pixels, scalings down and right."""
    rows = _resampled(images, motion[:, 0], motion[:, 2])
    return _resampled(rows.transpose(0, 2, 1), motion[:, 1], motion[:, 3]).transpose(0, 2, 1)


def _resampled(images: NDArray[np.float32], shift: NDArray[np.float32], scaling: NDArray[np.float32]) -> NDArray[Any]:
    """Resample the rows of images, linearly between rows."""
    n, side, _ = images.shape
    middle = (side - 1) / 2
    position = (np.arange(side) - middle) * (1 + scaling[:, None]) + shift[:, None] + middle
    position = np.clip(position, 0, side - 1.001).astype(np.float32)
    lower = position.astype(np.intp)
    weight = (position - lower)[:, :, None]
    index = np.arange(n)[:, None]
    return np.asarray(images[index, lower] * (1 - weight) + images[index, lower + 1] * weight)
