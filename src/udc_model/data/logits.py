"""Computes logits of prepared images without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from udc_model.data.stored_images import StoredImages
from udc_model.data.transforms import Preprocessing

Images = NDArray[np.uint8] | StoredImages
_CPU = torch.device("cpu")


def evaluation_batches(
    images: Images, preprocessing: Preprocessing, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield normalised inputs (n, C, size, size) of prepared images (N, S, S, C), in order and without augmentation."""
    for start in range(0, len(images), batch_size):
        stored = torch.from_numpy(np.array(images[start : start + batch_size]))
        if device.type == "cuda":
            stored = stored.pin_memory().to(device, non_blocking=True)
        yield preprocessing.to_input(stored)


@torch.inference_mode()
def compute_logits(
    forward: Callable[[Tensor], Tensor],
    images: Images,
    preprocessing: Preprocessing,
    batch_size: int,
    progress: str | None = None,
    flip_averaging: bool = False,
    device: torch.device = _CPU,
) -> NDArray[np.float32]:
    """Compute the logits of prepared images.

    Parameters
    ----------
    forward : maps an input batch (n, C, size, size) to logits (n, K).
    images : prepared images (N, S, S, C) uint8, N > 0.
    preprocessing : converts prepared images to inputs.
    batch_size : images per call of ``forward``.
    progress : label of a progress bar, shown on a terminal only; None shows no bar.
    flip_averaging : average the logits of each image and its mirror image.
    device : of the model; a GPU also normalises the images.

    Returns
    -------
    (N, K) logits.
    """
    # One array from the beginning: small results of each batch between its large arrays would fragment the heap, which
    # then grows by a batch of images each time.
    result, pending, num_done = np.empty(0, np.float32), torch.empty(0), 0
    with tqdm(total=len(images), desc=progress, unit="img", disable=None if progress else True, leave=False) as bar:
        for batch in evaluation_batches(images, preprocessing, batch_size, device):
            logits = forward(batch).float()
            if flip_averaging:
                logits = (logits + forward(batch.flip(-1)).float()) / 2
            if num_done:  # a batch later, because it waits for the GPU, which has the next batch by now
                result[num_done - len(pending) : num_done] = pending.cpu().numpy()
            else:
                result = np.empty((len(images), *logits.shape[1:]), np.float32)
            pending, num_done = logits, num_done + len(logits)
            bar.update(len(batch))
    result[num_done - len(pending) :] = pending.cpu().numpy()
    return result
