"""Tests of the computation of logits."""

import numpy as np
import torch

from udc_model.data.logits import compute_logits
from udc_model.data.transforms import Preprocessing


def test_flip_averaging_is_the_mean_of_image_and_mirror_image():
    stored = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 2, 1]  # three logits that differ between an image and its mirror image

    plain, mirrored = (compute_logits(forward, x, Preprocessing(8), 2) for x in (stored, stored[:, :, ::-1]))
    averaged = compute_logits(forward, stored, Preprocessing(8), 2, flip_averaging=True)
    assert not np.allclose(plain, mirrored)
    np.testing.assert_allclose(averaged, (plain + mirrored) / 2, rtol=1e-6)
