"""The margins of the training images, which ``train`` records and ``evaluate`` reads, in one bounded file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udc_model.errors import UdcError
from udc_model.files import read_bytes

MARGINS = "margins.safetensors"
MAX_MARGINS = 2**28  # bytes of all margins of a training run
_ADVICE = "restore the folder with `dvc checkout training`, or run train again (dvc repro -f train)"
_HEADER = 2**12  # bytes; more than the header of the file takes
_LARGEST = 60_000.0  # of a margin: the range of half precision
BYTES = 4  # of an image in an epoch


@dataclass(frozen=True)
class Margins:
    """The margin of each of N training images in each of R recorded epochs.

    Attributes
    ----------
    values : (R, N) float16: logit of the label minus the largest other logit, before the step that trains on the image;
        NaN for an image that the epoch did not use.
    rivals : (R, N) uint16: class index of that other logit; 0 where the margin is NaN.
    epochs : (R,) int32: number of each epoch, from 0; it begins anew for each member of an ensemble.
    """

    values: NDArray[np.float16]
    rivals: NDArray[np.uint16]
    epochs: NDArray[np.int32]

    @classmethod
    def of_epochs(
        cls, recorded: Sequence[tuple[NDArray[np.float16], NDArray[np.uint16]]], num_images: int, every: int
    ) -> Margins:
        """Margins and rivals, (N,) each, of the first and then every this many epochs."""
        values, rivals = zip(*recorded, strict=True) if recorded else ((), ())
        shape = len(recorded), num_images
        return cls(np.reshape(np.array(values, np.float16), shape), np.reshape(np.array(rivals, np.uint16), shape),
                   every * np.arange(len(recorded), dtype=np.int32))  # fmt: skip

    @classmethod
    def joined(cls, members: Sequence[Margins]) -> Margins:
        """The margins of all epochs of the members of an ensemble."""
        return cls(*(np.concatenate([getattr(each, name) for each in members])
                     for name in ("values", "rivals", "epochs")))  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write `MARGINS`; the same bytes for the same margins."""
        from safetensors.numpy import save

        # save_file would raise an error of its own if the disk is full
        contents = save({"margin": self.values, "rival": self.rivals, "epoch": self.epochs})
        (folder / MARGINS).write_bytes(contents)

    @classmethod
    def load(cls, folder: Path, num_images: int, num_labels: int) -> Margins | None:
        """Read `MARGINS`; None if an earlier version trained.

        Raises
        ------
        UdcError
            The file is damaged, or of other images.
        """
        path = folder / MARGINS
        if not path.exists():
            return None
        from safetensors import SafetensorError
        from safetensors.numpy import load

        contents = read_bytes(path, _ADVICE, max(MAX_MARGINS, BYTES * num_images) + _HEADER)
        try:
            tensors = load(contents)
            margins = cls(tensors["margin"], tensors["rival"], tensors["epoch"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UdcError(f"{path}: cannot be read ({error!r}); {_ADVICE}") from None
        margins._check(path, num_images, num_labels)
        return margins

    def _check(self, path: Path, num_images: int, num_labels: int) -> None:
        """:class:`UdcError` if the arrays cannot be those of a training run."""
        arrays = (self.values, self.rivals, self.epochs)
        found = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
        num_epochs = self.epochs.size
        shape = num_epochs, num_images
        if not num_epochs or found != f"float16 {shape}, uint16 {shape}, int32 {(num_epochs,)}":
            raise UdcError(f"{path}: contains {found} instead of the margins of {num_images:,} images; {_ADVICE}")
        is_in_order = self.epochs[0] == 0 and ((self.epochs[1:] > self.epochs[:-1]) | (self.epochs[1:] == 0)).all()
        if not is_in_order or self.rivals.max(initial=0) >= num_labels or np.isinf(self.values).any():
            raise UdcError(f"{path}: has an epoch, a class or a margin that cannot occur; {_ADVICE}")

    @property
    def is_early(self) -> NDArray[np.bool_]:
        """(R,) whether an epoch is in the first half of the epochs of its network."""
        begins = np.flatnonzero(self.epochs == 0)
        sizes = np.diff(np.append(begins, len(self.epochs)))
        last = self.epochs[begins + sizes - 1]
        return self.epochs < np.repeat(-(-(last + 1) // 2), sizes)


def recorded_every(num_images: int, epochs: int) -> int:
    """Every how many epochs the margins are recorded, so that ``epochs`` of them have at most `MAX_MARGINS`."""
    return max(1, -(-BYTES * num_images * epochs // MAX_MARGINS))


def half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Margins in half precision, without infinity."""
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)
