"""Mean and covariance of the features of training images, and the file in which a policy has them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udc_model.decisions.familiarity import Familiarity
from udc_model.errors import UdcError
from udc_model.model_files.weights import read_weights

FAMILIARITY_FILE = "familiarity.safetensors"  # beside policy.json
MOST_REFERENCES = 1000  # training images; with more, intruders are not recognised better
ADVICE = "run evaluate (dvc repro), or restore the folder with `dvc checkout evaluation`"
_SMALLEST = 1e-12  # variance of directions, whose squares add up to 1


@dataclass(frozen=True)
class FeatureStatistics:
    """Where the features of each of M networks are, and how they vary; single precision.

    The distance of features f (D,) is the squared Mahalanobis distance of their direction to the mean direction of
    training images, divided by D: ``|direction(f) @ whitening - centre|²``. One Gaussian for all classes does as well
    as one mean for each (Kamoi and Kobayashi 2020, arXiv:2003.00402), and needs no labels. The direction
    ``sign(f) sqrt(|f| / sum|f|)`` leaves out the length (for distances Mueller and Hein 2025, arXiv:2505.18032), and
    evens out features that are rarely active (Perronnin, Sanchez and Mensink 2010). benchmarks/familiarity.py compares.

    Parameters
    ----------
    whitening : (M, D, D).
    centre : (M, D).
    """

    whitening: NDArray[np.float32]
    centre: NDArray[np.float32]

    @classmethod
    def fit(cls, features: NDArray[np.float32]) -> FeatureStatistics:
        """The statistics of features (n, M, D) of n > 0 images; equal features give equal bits."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # with more threads, the last bits depend on the load of the machine
            parts = [_whitening(features[:, network].astype(np.float64)) for network in range(features.shape[1])]
        whitening, centre = (np.stack(each).astype(np.float32, order="C") for each in zip(*parts, strict=True))
        return cls(whitening, centre)

    def to_bytes(self) -> bytes:
        """The contents of `FAMILIARITY_FILE`."""
        from safetensors.numpy import save

        # safetensors writes the memory of an array as if it were in C order
        tensors = {"centre": self.centre, "whitening": self.whitening}
        return save({name: np.ascontiguousarray(values) for name, values in tensors.items()})

    @classmethod
    def read(cls, path: Path, familiarity: Familiarity) -> FeatureStatistics:
        """Read a file; nothing but its header is read before it has the sizes in the policy.

        Raises
        ------
        UdcError
            The file is missing, damaged, or another one than that of the policy.
        """
        from safetensors.numpy import load

        networks, features = familiarity.networks, familiarity.features
        shapes = [("centre", (networks, features)), ("whitening", (networks, features, features))]
        contents = read_weights(path, shapes, ADVICE, "policy.json")
        if hashlib.sha256(contents).hexdigest() != familiarity.sha256:
            raise UdcError(f"{path}: is another file than the one of policy.json, or damaged; {ADVICE}")
        tensors = load(contents)
        return cls(tensors["whitening"], tensors["centre"])


def _whitening(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The matrix (D, D) that gives directions of features (n, D) unit covariance / D, and their mean (D,) after it."""
    directions = directions_of(features)
    mean = directions.mean(axis=0)
    factor = np.linalg.cholesky(shrunk_covariance(directions - mean))
    whitening = np.linalg.inv(factor).T / np.sqrt(len(mean))
    return whitening, mean @ whitening


def directions_of(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """The signed square roots (n, D) of features (n, D), scaled so that their squares add up to 1."""
    sizes = np.abs(features)
    return np.asarray(np.sign(features) * np.sqrt(sizes / np.maximum(sizes.sum(axis=1, keepdims=True), _SMALLEST)))


def shrunk_covariance(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """The covariance (D, D) of centred values (n, D), shrunk towards a multiple of the identity.

    The share of the identity is that of Ledoit and Wolf 2004 (J. Multivariate Analysis 88:365). It makes the matrix
    invertible, also for fewer images than features.
    """
    n, d = centred.shape
    covariance = centred.T @ centred / n
    scale = max(float(np.trace(covariance)) / d, _SMALLEST)
    spread = float(((covariance - scale * np.eye(d)) ** 2).sum())
    noise = float(((centred**2).sum(axis=1) ** 2).sum()) / n**2 - float((covariance**2).sum()) / n
    share = min(max(noise / spread, _SMALLEST), 1.0) if spread > 0 else 1.0
    return np.asarray((1 - share) * covariance + share * scale * np.eye(d))
