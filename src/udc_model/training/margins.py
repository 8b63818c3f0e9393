"""Records the margin of each training image in each epoch, from the logits that the training steps compute anyway.

The margin is the logit of the label minus the largest other logit (Pleiss et al. 2020, arXiv:2001.10528). Logits are
detached, so nothing here changes a bit of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udc_model.config import TrainParams
from udc_model.data.augmentation import Augmentation, Mixing
from udc_model.data.margins import Margins, half, recorded_every
from udc_model.training.distribution import ALONE, Ranks

_PENDING = 2**17  # logits that wait, in the processor's cache, until they are reduced together; faster than one by one


class MarginRecorder:
    """The margins of the completed epochs and the sums of the current one; equal in all processes.

    With `Mixing`, logits belong to mixtures of two images: they count for the image with the larger share, with the
    weight of that share. An image that occurs several times in an epoch has the weighted mean.

    Parameters
    ----------
    num_images : N.
    epochs : of all members of an ensemble; with very many images and epochs, only some epochs are recorded.
    ranks : the processes that share each batch.
    """

    def __init__(self, num_images: int, epochs: int, ranks: Ranks = ALONE) -> None:
        self._every, self._ranks = recorded_every(num_images, epochs), ranks
        self._number = 0  # of completed epochs
        self._recorded: list[tuple[NDArray[np.float16], NDArray[np.uint16]]] = []
        self._totals = np.zeros(num_images, np.float32)
        self._weights = np.zeros(num_images, np.float32)
        self._rivals = np.zeros(num_images, np.uint16)
        self._pending: list[tuple[NDArray[np.intp], Tensor, Tensor, float]] = []
        self._num_pending = 0

    def add(self, indices: NDArray[np.intp], logits: Sequence[Tensor], targets: Tensor, share: float = 1.0) -> None:
        """Add the logits of a step.

        Parameters
        ----------
        indices : (M,) image indices of the complete batch.
        logits : (n, K) in parts, of this process's part of the batch.
        targets : (n,) their labels.
        share : of these images in the mixtures.
        """
        if self._number % self._every:
            return
        joined = (logits[0] if len(logits) == 1 else torch.cat(list(logits))).detach()
        self._pending.append((indices, joined, targets, share))
        self._num_pending += joined.numel()
        # a checkpoint within an epoch is written by the first process alone: it must not wait for the others
        if self._num_pending > _PENDING or self._ranks.world > 1:
            self._reduce()

    def _reduce(self) -> None:
        """Add the pending logits to the sums of the epoch."""
        if not self._pending:
            return
        all_indices, all_logits, all_targets, shares = zip(*self._pending, strict=True)
        self._pending, self._num_pending = [], 0
        rows = _margins(torch.cat(all_logits), torch.cat(all_targets))
        indices = np.concatenate(all_indices)
        margins, rivals = self._ranks.gather(rows, len(indices)).T
        weights = np.repeat(np.array(shares, np.float32), [len(each) for each in all_indices])
        np.add.at(self._totals, indices, weights * margins)
        np.add.at(self._weights, indices, weights)
        self._rivals[indices] = rivals.astype(np.uint16)

    def end_epoch(self) -> None:
        """Record the sums of an epoch, and begin the next one."""
        self._reduce()
        if self._number % self._every == 0:
            with np.errstate(invalid="ignore"):  # 0 / 0 for images that the epoch did not use
                self._recorded.append((half(self._totals / self._weights), self._rivals.copy()))
        self._number += 1
        self._totals[:], self._weights[:], self._rivals[:] = 0, 0, 0

    def margins(self) -> Margins:
        """The margins of the completed epochs."""
        return Margins.of_epochs(self._recorded, len(self._totals), self._every)

    def tensors(self) -> dict[str, Tensor]:
        """The state, for a checkpoint."""
        self._reduce()
        margins = self.margins()
        state = {"values": margins.values, "recorded_rivals": margins.rivals, "totals": self._totals,
                 "weights": self._weights, "rivals": self._rivals}  # fmt: skip
        return {name: torch.from_numpy(array) for name, array in state.items()}

    def restore(self, tensors: Mapping[str, Tensor], epochs: int) -> None:
        """Restore a state after ``epochs`` completed epochs; `KeyError` or `ValueError` if it does not fit."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._recorded = list(zip(arrays["values"], arrays["recorded_rivals"], strict=True))
        self._number = epochs
        self._totals[:], self._weights[:], self._rivals[:] = arrays["totals"], arrays["weights"], arrays["rivals"]


def margins_note(params: TrainParams) -> str:
    """What the logits of the margins were computed from, for the record of the training run."""
    is_augmented, is_mixed = Augmentation.of(params) != Augmentation(), bool(Mixing(params.mixup, params.cutmix))
    images = "augmented images" if is_augmented else "images without augmentation"
    mixing = "; a mixture counts for the image with the larger share, with the weight of that share" if is_mixed else ""
    average = "; weights of the step, not their moving average" if params.ema_decay is not None else ""
    return f"logits of each training step, before its update: {images}{mixing}{average}"


def _margins(logits: Tensor, targets: Tensor) -> NDArray[np.float32]:
    """Margin and class index of the largest other logit, (n, 2), of logits (n, K), which it overwrites, and labels."""
    logits, column = logits.float(), targets[:, None]
    own = logits.gather(1, column)[:, 0]
    others, rivals = logits.scatter_(1, column, -torch.inf).max(1)
    return torch.stack([own - others, rivals.float()], 1).cpu().numpy()
