"""The class frequencies of a training run: those of its images, and those that its network has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainingFrequencies:
    """Class frequencies, (K,) each, or numbers proportional to them.

    Attributes
    ----------
    images : of the training split.
    learned : that the network's probabilities assume, because rare classes were drawn more often or weigh more in the
        loss; None if they are those of the images.
    """

    images: Sequence[float]
    learned: Sequence[float] | None = None

    @property
    def training_prior(self) -> list[float]:
        """``images`` with the sum 1, as in `Policy`."""
        prior: list[float] = (np.array(self.images) / sum(self.images)).tolist()
        return prior

    @property
    def learned_prior(self) -> list[float] | None:
        """``learned`` as in `Policy`."""
        return None if self.learned is None else list(self.learned)


def logit_offset(images: Sequence[float], learned: Sequence[float]) -> NDArray[np.float64]:
    """What is added to log probabilities (N, K), so that their probabilities assume other class frequencies (K,).

    It is the logarithm of the ratio of the frequencies, with the mean 0: Bayes' theorem, if the images of a class are
    the same under both (Menon et al. 2021, "Long-tail learning via logit adjustment", section 4.1).
    """
    offset = np.log(np.asarray(images, np.float64)) - np.log(np.asarray(learned, np.float64))
    return np.asarray(offset - offset.mean())
