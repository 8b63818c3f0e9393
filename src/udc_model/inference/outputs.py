"""What a network computes of images: logits, and the distances to the training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Outputs:
    """The outputs for N images.

    Parameters
    ----------
    logits : (N, K).
    distances : (N,), see `FeatureStatistics`; None for a policy without familiarity.
    """

    logits: NDArray[np.float32]
    distances: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: slice) -> Outputs:
        """The outputs of some of the images."""
        return Outputs(self.logits[rows], None if self.distances is None else self.distances[rows])
