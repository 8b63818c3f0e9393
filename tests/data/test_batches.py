"""Tests of training batches: the order depends on seed and epoch only, and classes have the requested shares."""

import numpy as np
import pytest
import torch

from udc_model.data.augmentation import Augmentation, Mixing
from udc_model.data.batches import TrainingBatches, epoch_order
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing


def _batches(n, batch_size, seed=3, epoch=2):
    split = PackedSplit(np.empty((n, 8, 8, 3), np.uint8), np.zeros(n, np.int64), [""] * n, [""] * n, [""] * n)
    return TrainingBatches(split, Preprocessing(8), Augmentation(), batch_size, seed).plan(epoch).indices


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (8, 8), (9, 8), (65, 32), (1075, 64)])
def test_epoch_has_every_sample_once_in_batches_of_equal_size(n, batch_size):
    batches = _batches(n, batch_size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        return np.concatenate(_batches(50, 7, seed, epoch)).tolist()

    np.random.seed(1)  # noqa: NPY002 (the global generator must not matter)
    first = order(1, 1)
    np.random.seed(2)  # noqa: NPY002
    assert order(1, 1) == first
    assert order(1, 2) != first
    assert order(2, 1) != first


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_shares_follow_kang_et_al(power):
    """Equation 1 of "Decoupling representation and classifier for long-tailed recognition": n^q / sum n^q."""
    counts = np.array([90, 0, 25, 10, 4])
    labels = np.repeat(np.arange(5), counts)
    expected = np.where(counts > 0, counts.clip(1) ** power, 0)
    expected = expected / expected.sum() * len(labels)
    mean = np.zeros(5)
    for epoch in range(40):
        order = epoch_order(labels, 0, epoch, power)
        assert len(order) == len(labels)
        class_counts = np.bincount(labels[order], minlength=5)
        assert np.all(np.abs(class_counts - expected) < 1)
        for label in np.flatnonzero(counts):
            occurrences = np.bincount(order, minlength=len(labels))[labels == label]
            assert occurrences.max() - occurrences.min() <= 1
        mean += class_counts / 40
    assert mean == pytest.approx(expected, abs=0.3)


def test_repeats_count_earlier_occurrences_of_an_image():
    labels = np.array([0] * 12 + [1] * 2)
    split = PackedSplit(np.empty((14, 8, 8, 3), np.uint8), labels, [""] * 14, [""] * 14, [""] * 14)
    plan = TrainingBatches(split, Preprocessing(8), Augmentation(), 4, 0, power=0.0).plan(0)
    seen = np.zeros(14, int)
    for indices, repeats in zip(plan.indices, plan.repeats, strict=True):
        for index, repeat in zip(indices, repeats, strict=True):
            assert repeat == seen[index]
            seen[index] += 1
    assert seen[12:].max() > 2
    assert plan.draws.crop.shape == (seen.max(), 14, 5)


STRONG = Augmentation(
    0.35, 4 / 3, horizontal_flip=True, auto_augment="trivialaugment", color_jitter=0.2, random_erasing=0.5
)


def _split(n):
    images = np.random.default_rng(0).integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    return PackedSplit(images, np.arange(n) % 3, [f"{i}.png" for i in range(n)], [""] * n, [""] * n)


def _load(start=0, **options):
    data = TrainingBatches(_split(23), Preprocessing(8, "crop", 0.67), STRONG, 6, 5, power=0.5, **options)
    return [batch for _, batch in data.load(2, start, torch.device("cpu"))]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    expected = _load()
    batches = _load(workers=workers)
    assert len(batches) == len(expected) == 4
    for batch, reference in zip(batches, expected, strict=True):
        assert torch.equal(batch.images, reference.images)
        assert torch.equal(batch.targets, reference.targets)
    resumed = _load(start=2, workers=workers)
    assert torch.equal(resumed[0].images, expected[2].images)


@pytest.mark.parametrize("world", [2, 3])
def test_parts_of_processes_make_up_the_complete_mixed_batch(world):
    """Each image occurs once, with the partner that it has in the complete batch."""
    expected = _load()
    parts = [_load(rank=rank, world=world, overlap=True) for rank in range(world)]
    for step, batch in enumerate(expected):
        mixed = [Mixing(0.3, 1.0)(parts[rank][step].images, parts[rank][step].targets, 1, 2, step)
                 for rank in range(world)]  # fmt: skip
        images, partners, share = Mixing(0.3, 1.0)(batch.images, batch.targets, 1, 2, step)
        assert torch.equal(torch.cat([part[0][1:] for part in mixed]), images)
        assert torch.equal(torch.cat([part[1][1:] for part in mixed]), partners)
        assert {part[2] for part in mixed} == {share}
        assert all(torch.equal(parts[rank][step].all_targets, batch.targets) for rank in range(world))
