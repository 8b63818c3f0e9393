"""Batches: which image comes when depends on seed and epoch alone; shares of the classes are as asked for."""

import numpy as np
import pytest

from udc_model.data.augmentation import Augmentation
from udc_model.data.batches import TrainingBatches, epoch_order
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing


def _batches(n, batch_size, seed=3, epoch=2):
    split = PackedSplit(np.empty((n, 8, 8, 3), np.uint8), np.zeros(n, np.int64), [""] * n, [""] * n, [""] * n)
    return TrainingBatches(split, Preprocessing(8), Augmentation(), batch_size, seed).epoch(epoch).indices


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (8, 8), (9, 8), (65, 32), (1075, 64)])
def test_every_sample_once_and_no_crumbs(n, batch_size):
    batches = _batches(n, batch_size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(_batches(50, 7, seed, epoch)).tolist()

    np.random.seed(1)  # noqa: NPY002 (the global generator must not matter)
    first = order(1, 1)
    np.random.seed(2)  # noqa: NPY002
    assert order(1, 1) == first
    assert order(1, 2) != first
    assert order(2, 1) != first


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_have_the_shares_of_kang_et_al(power):
    """Equation 1 of "Decoupling representation and classifier for long-tailed recognition": n^q / sum n^q."""
    counts = np.array([90, 0, 25, 10, 4])
    labels = np.repeat(np.arange(5), counts)
    expected = np.where(counts > 0, counts.clip(1) ** power, 0)
    expected = expected / expected.sum() * len(labels)
    mean = np.zeros(5)
    for epoch in range(40):
        order = epoch_order(labels, 0, epoch, power)
        assert len(order) == len(labels)
        found = np.bincount(labels[order], minlength=5)
        assert np.all(np.abs(found - expected) < 1)
        for label in np.flatnonzero(counts):
            times = np.bincount(order, minlength=len(labels))[labels == label]
            assert times.max() - times.min() <= 1
        mean += found / 40
    assert mean == pytest.approx(expected, abs=0.3)


def test_repeats_count_how_often_an_image_came_before():
    labels = np.array([0] * 12 + [1] * 2)
    split = PackedSplit(np.empty((14, 8, 8, 3), np.uint8), labels, [""] * 14, [""] * 14, [""] * 14)
    batches = TrainingBatches(split, Preprocessing(8), Augmentation(), 4, 0, power=0.0).epoch(0)
    seen = np.zeros(14, int)
    for indices, repeats in zip(batches.indices, batches.repeats, strict=True):
        for index, repeat in zip(indices, repeats, strict=True):
            assert repeat == seen[index]
            seen[index] += 1
    assert seen[12:].max() > 2
    assert batches.draws.crop.shape == (seen.max(), 14, 5)
