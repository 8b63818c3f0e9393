"""Tests of the computation of logits."""

import subprocess
import sys

import numpy as np
import pytest
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


_GROWTH = """
import numpy as np, torch
from udc_model.data.logits import compute_logits
from udc_model.data.transforms import Preprocessing
from udc_model.native.memory import keep_freed_memory

def in_use():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

keep_freed_memory()
torch.set_num_threads(1)
weight = torch.ones(8, 3, 3, 3)
forward = lambda batch: torch.nn.functional.conv2d(batch, weight).relu().mean((2, 3))
images = np.zeros((64 * 150, 64, 64, 3), np.uint8)
compute_logits(forward, images[: 64 * 20], Preprocessing(64), 64)
before = in_use()
compute_logits(forward, images, Preprocessing(64), 64)
print(in_use() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_batches():
    done = subprocess.run([sys.executable, "-c", _GROWTH], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 1024  # kB; results of each batch between its images took 330 MB
