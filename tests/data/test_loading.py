"""Batches: every sample once, order and augmentation functions of (seed, epoch, index) alone."""

import numpy as np
import pytest
import torch

from udc_model.data.loading import Augmentation, epoch_batches


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (8, 8), (9, 8), (65, 32), (1075, 64)])
def test_every_sample_once_and_no_crumbs(n, batch_size):
    batches = epoch_batches(n, batch_size, seed=3, epoch=2)
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(epoch_batches(50, 7, seed, epoch)).tolist()

    np.random.seed(1)  # noqa: NPY002 (the global generator must not matter)
    first = order(1, 1)
    np.random.seed(2)  # noqa: NPY002
    assert order(1, 1) == first
    assert order(1, 2) != first
    assert order(2, 1) != first


def test_augmentation_of_a_sample_does_not_depend_on_its_batch():
    images = torch.rand(6, 3, 20, 20)
    augmentation = Augmentation("standard", horizontal_flip=True)
    draws = torch.from_numpy(augmentation.draws(6, seed=0, epoch=4))
    together = augmentation(images, draws, 16)
    alone = torch.cat([augmentation(images[i : i + 1], draws[i : i + 1], 16) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_no_crop_is_the_identity_and_a_flip_mirrors():
    images = torch.rand(2, 3, 16, 16)
    draws = torch.full((2, 5), 0.25)
    same = Augmentation("none", horizontal_flip=False)(images, draws, 16)
    torch.testing.assert_close(same, images, rtol=1e-4, atol=1e-5)
    flipped = Augmentation("none", horizontal_flip=True)(images, draws, 16)
    torch.testing.assert_close(flipped, images.flip(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["light", "standard"])
def test_crops_stay_inside(name):
    """A ramp keeps its range, and its mean stays in the middle over many draws."""
    ramp = torch.linspace(0, 1, 32).repeat(400, 3, 32, 1)
    augmentation = Augmentation(name, horizontal_flip=False)
    out = augmentation(ramp, torch.from_numpy(augmentation.draws(400, 0, 0)), 32)
    assert out.min() >= 0
    assert out.max() <= 1
    assert abs(out.mean() - 0.5) < 0.02
    assert out.std(dim=0).max() > 0.01
