"""Temperature scaling (Guo et al. 2017): probabilities that mean what they say, for decisions by price."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

Floats = NDArray[np.float64]
logger = logging.getLogger(__name__)

_LOG_T_BOUND = 6.0  # temperatures from 1/400 to 400


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """``softmax(logits / temperature)`` in double precision, (N, K)."""
    return np.asarray(softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1))


def negative_log_likelihood(logits: Floats, targets: NDArray[np.integer], temperature: float = 1.0) -> float:
    """Mean negative log likelihood (nats a sample) of the targets under ``softmax(logits / temperature)``."""
    log_p = log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)
    return float(-log_p[np.arange(len(targets)), targets].mean())


def fit_temperature(logits: Floats, targets: NDArray[np.integer]) -> float:
    """The temperature of least negative log likelihood, in [1/400, 400]; 1 if none improves on it.

    The negative log likelihood is convex in 1/T and so has one minimum over log T, where the search runs. Where every
    sample is classified right it falls for ever as T goes to 0: then no temperature is best, and 1 is kept.
    """
    wrong = logits.argmax(axis=1) != targets
    if not wrong.any():
        logger.info("all %d calibration images are classified right: no temperature is best, 1 is kept", len(targets))
        return 1.0
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, targets, float(np.exp(log_t))),
        bounds=(-_LOG_T_BOUND, _LOG_T_BOUND),
        method="bounded",
        options={"xatol": 1e-6},
    )
    if not found.fun < negative_log_likelihood(logits, targets):
        return 1.0
    if abs(found.x) > _LOG_T_BOUND - 0.01:
        logger.warning("the temperature that fits best, %.3g, is at the bound of the search: the logits say next to "
                       "nothing about the class", np.exp(found.x))  # fmt: skip
    return float(np.exp(found.x))
