"""Class frequencies of unlabelled images, and whether only the frequencies changed since training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]

RESAMPLES = 500
SHIFT_LEVEL = 0.01  # p-value of `shift_test` below which a warning is printed
_SEED = 20020101
_ITERATIONS, _RESAMPLED_ITERATIONS = 5000, 500
_TOLERANCE, _RESAMPLED_TOLERANCE = 1e-8, 1e-5  # largest change of a share in the last iteration
_LARGEST_BLOCK = 4_000_000  # numbers: images times resamples that are computed together
_CELLS = 20  # of the test, at most about
_LEAST_EXPECTED = 5.0  # images in a cell of the test
_LISTED = 30  # classes in the text


@dataclass(frozen=True)
class PriorEstimate:
    """Estimated class frequencies, (K,) each: ``prior``, and the ends ``low`` and ``high`` of each one's interval."""

    prior: Floats
    low: Floats
    high: Floats


def estimate_prior(
    probabilities: Floats,
    training: Floats,
    refitted: Iterable[Floats] = (),
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> PriorEstimate:
    """Estimate the class frequencies of images by maximum likelihood, with an interval for each class.

    The likelihood is maximised by EM (Saerens, Latinne and Decaestecker 2002). One image of training's frequencies is
    added, so that few images give no class a share of 0. The interval is a Bayesian bootstrap (Rubin 1981) with one
    unseen image of the class (high end) or of another class (low end): if the probabilities are 0 and 1, it is the
    interval of Clopper and Pearson.

    Parameters
    ----------
    probabilities : (N, K) calibrated posteriors under the frequencies ``training``; N > 0.
    training : (K,) class frequencies. The share of a class without any stays 0.
    refitted : the same probabilities by calibrations that were fitted on resamples of the calibration images, so that
        the interval includes the uncertainty of the calibration; without any, the calibration counts as exact.
    confidence : level of each class's interval.
    resamples : of the images, divided among ``refitted``.
    """
    n, rng = len(probabilities), np.random.default_rng(_SEED)
    ratios = _likelihoods(probabilities, training)
    prior = _maximise(ratios, np.ones((1, n)), training, training, _ITERATIONS, _TOLERANCE)[0]
    variants = [_likelihoods(each, training) for each in refitted] or [ratios]
    left = -(-resamples // len(variants))
    size = min(left, max(1, _LARGEST_BLOCK // n))
    lows, highs = [], []
    for variant, start in product(variants, range(0, left, size)):
        weights = rng.standard_exponential((min(size, left - start), n))
        unseen = rng.standard_exponential((len(weights), 1))
        total = weights.sum(axis=1, keepdims=True)
        # weights of mean 1, so that the added image counts as one
        shares = _maximise(variant, weights * (n / total), training, prior, _RESAMPLED_ITERATIONS, _RESAMPLED_TOLERANCE)
        lows.append(shares * total / (total + unseen))
        highs.append((shares * total + unseen) / (total + unseen))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.vstack(lows), tail, axis=0), np.quantile(np.vstack(highs), 1 - tail, axis=0)
    return PriorEstimate(prior, np.minimum(low, prior), np.where(training > 0, np.maximum(high, prior), 0.0))


def _likelihoods(probabilities: Floats, training: Floats) -> Floats:
    """Likelihood of each class (N, K), up to a factor of each row: posterior over prior."""
    return np.asarray(np.where(training > 0, probabilities / np.where(training > 0, training, 1.0), 0.0))


def _maximise(
    likelihoods: Floats, weights: Floats, training: Floats, start: Floats, iterations: int, tolerance: float
) -> Floats:
    """Maximum-likelihood class frequencies (B, K) of N images under each row of weights (B, N), by EM.

    Parameters
    ----------
    training : (K,) frequencies of the one image that is added.
    start : (K,) frequencies to start from, above 0 where those of training are.
    """
    total = weights.sum(axis=1, keepdims=True) + 1.0
    shares = np.tile(start, (len(weights), 1))
    for _ in range(iterations):
        mixture = np.maximum(shares @ likelihoods.T, 1e-300)  # (B, N); 0 only for a row without any probability
        updated = (shares * ((weights / mixture) @ likelihoods) + training) / total
        updated /= updated.sum(axis=1, keepdims=True)
        change = float(np.abs(updated - shares).max())
        shares = updated
        if change < tolerance:
            break
    return np.asarray(shares)


def shift_test(
    probabilities: Floats,
    prior: Floats,
    training: Floats,
    calibration: Floats,
    targets: Indices,
    resamples: int = RESAMPLES,
) -> float | None:
    """p-value of the hypothesis that only the class frequencies changed since training.

    Images are counted by most probable class and its probability. The chi-square distance of these counts from those
    that the calibration images imply, weighted to the frequencies ``prior``, is measured in units of the variance of
    both, and compared with its distribution if the hypothesis is true. That is computed by a bootstrap of the
    calibration images: one resample gives the images, whose frequencies are estimated again, another one what is
    expected.

    Parameters
    ----------
    probabilities : (N, K) calibrated posteriors of the images, under the frequencies ``training``.
    prior : (K,) estimated class frequencies.
    calibration, targets : (M, K) posteriors under ``training``, and (M,) classes, of the calibration split.

    Returns
    -------
    The p-value; None if more than one image is expected to be of a class without calibration images.
    """
    n, k, rng = len(probabilities), len(prior), np.random.default_rng(_SEED)
    sizes = np.bincount(targets, minlength=k)
    if not len(targets) or n * prior[sizes == 0].sum() > 1:
        return None
    shares = np.where(sizes > 0, prior, 0.0)
    shares /= shares.sum()
    image_weights = (shares / np.maximum(sizes, 1))[targets]
    cells, new_cells = _cells(calibration, image_weights, probabilities)
    d = int(cells.max()) + 1
    by_class = np.zeros((k, d))  # distribution of the calibration images of each class over the cells
    np.add.at(by_class, (targets, cells), 1 / sizes[targets])
    known = np.maximum(sizes, 1)[:, None]
    # of what is expected; a cell without any image of a class may have a share of about one image
    noise = prior**2 @ ((by_class * (1 - by_class) + 1 / known) / known)
    variance = np.maximum(n * (prior @ by_class), 1.0) + n**2 * noise
    observed = _distance(np.bincount(new_cells, minlength=d), n * (prior @ by_class), variance)
    likelihoods = _likelihoods(calibration, training)
    size = max(1, _LARGEST_BLOCK // max(len(targets), 1))
    distances: list[float] = []
    while len(distances) < resamples:
        count = min(size, resamples - len(distances))
        drawn = rng.multinomial(n, image_weights / image_weights.sum(), size=count)
        estimates = _maximise(
            likelihoods, drawn.astype(np.float64), training, prior, _RESAMPLED_ITERATIONS, _RESAMPLED_TOLERANCE
        )
        for images, estimate in zip(drawn, estimates, strict=True):
            expected = n * (estimate @ _resampled(targets, cells, sizes, d, rng))
            distances.append(_distance(np.bincount(cells, images, minlength=d), expected, variance))
    return (1 + int(np.sum(np.array(distances) >= observed))) / (1 + len(distances))


def _resampled(targets: Indices, cells: Indices, sizes: Indices, d: int, rng: np.random.Generator) -> Floats:
    """Distribution over the cells, (K, d), of each class's calibration images, resampled within the class."""
    order = np.argsort(targets, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[targets[order]]
    chosen = order[starts + (rng.random(len(targets)) * sizes[targets[order]]).astype(np.intp)]
    by_class = np.zeros((len(sizes), d))
    np.add.at(by_class, (targets[chosen], cells[chosen]), 1 / sizes[targets[chosen]])
    return by_class


def _distance(counts: NDArray[np.number], expected: Floats, variance: Floats) -> float:
    return float(((counts - expected) ** 2 / variance).sum())


def _cells(calibration: Floats, weights: Floats, probabilities: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The cell of each calibration image (M,) and of each other image (N,).

    A cell is a most probable class and a range of its probability; rarely decided classes share their cells.

    Parameters
    ----------
    weights : (M,) of the calibration images; their sum is 1.
    """
    n, k = len(probabilities), probabilities.shape[1]
    classes, new_classes = calibration.argmax(axis=1), probabilities.argmax(axis=1)
    top, new_top = calibration.max(axis=1), probabilities.max(axis=1)
    shares = np.bincount(classes, weights, minlength=k)
    least = max(2 * _LEAST_EXPECTED / n, 1 / _CELLS)
    block = np.where(shares >= least, np.arange(k), k)  # k: the rarely decided classes together
    cells, new_cells = np.zeros(len(calibration), np.intp), np.zeros(n, np.intp)
    first = 0
    for each in np.unique(block):
        inside, new_inside = block[classes] == each, block[new_classes] == each
        share = float(weights[inside].sum())
        parts = max(1, int(min(share * _CELLS, share * n / _LEAST_EXPECTED)))
        edges = _quantiles(top[inside], weights[inside], parts)
        cells[inside] = first + np.searchsorted(edges, top[inside], side="right")
        new_cells[new_inside] = first + np.searchsorted(edges, new_top[new_inside], side="right")
        first += len(edges) + 1
    return _consecutive(cells, new_cells)


def _consecutive(cells: NDArray[np.intp], new_cells: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The same cells, numbered from 0; those without a calibration image are one cell, the last."""
    names = np.unique(cells)
    numbers = np.searchsorted(names, new_cells)
    is_new = names[np.minimum(numbers, len(names) - 1)] != new_cells
    return np.searchsorted(names, cells), np.where(is_new, len(names), numbers)


def _quantiles(values: Floats, weights: Floats, parts: int) -> Floats:
    """Distinct values that divide weighted values into ``parts`` of equal weight."""
    if parts == 1 or not len(values) or weights.sum() <= 0:
        return np.empty(0)
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order]) / weights.sum()
    edges = values[order][np.searchsorted(cumulated, np.arange(1, parts) / parts).clip(max=len(values) - 1)]
    return np.unique(edges)


def describe_prior(
    estimate: PriorEstimate, classes: Sequence[str], training: Floats, n: int, confidence: float = 0.95
) -> str:
    """A table of estimated frequencies beside training's; of many classes those that differ most."""
    change = np.abs(estimate.prior - training)
    listed = sorted(np.argsort(-change, kind="stable")[:_LISTED])
    width = max(5, *(len(classes[k]) for k in listed))
    lines = [f"class frequencies, estimated from {n:,} images without labels:",
             f"{'class':<{width}}  training  estimated  {confidence:.0%} interval"]  # fmt: skip
    lines += [
        f"{classes[k]:<{width}}  {training[k]:>8.4f}  {estimate.prior[k]:>9.4f}  "
        f"{estimate.low[k]:.4f} to {estimate.high[k]:.4f}"
        for k in listed
    ]
    if len(classes) > len(listed):
        lines.append(f"({len(classes) - len(listed)} classes that differ less are not listed)")
    return "\n".join(lines)
