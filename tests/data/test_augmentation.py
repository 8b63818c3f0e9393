"""Augmentation: functions of (seed, epoch, sample index) alone; crops, rectangles and mixtures are what they say."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from udc_model.data.augmentation import Augmentation, EpochDraws, Mixing, training_input
from udc_model.data.transforms import Preprocessing
from udc_model.params import TrainParams


def _stored(n, side=20):
    return torch.randint(0, 255, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["light", "standard", "strong"])
def test_a_sample_does_not_depend_on_its_batch(name):
    stored, draws = _stored(6), EpochDraws(6, seed=0, epoch=4)
    augmentation = Augmentation.of(TrainParams(augment=name, horizontal_flip=True, color_jitter=0.2))
    indices, never = np.array([4, 0, 2]), np.zeros(3, np.intp)
    together = training_input(stored[indices], indices, never, draws, augmentation, Preprocessing(16))
    torch.manual_seed(99)  # the global generator must not matter
    for row, index in enumerate(indices):
        one = np.array([index])
        alone = training_input(stored[one], one, never[:1], draws, augmentation, Preprocessing(16))
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=0)
    other = training_input(stored[indices], indices, never, EpochDraws(6, 0, 5), augmentation, Preprocessing(16))
    assert not torch.equal(other, together)


def test_an_image_that_comes_twice_is_changed_in_two_ways():
    stored, draws = _stored(3), EpochDraws(3, seed=0, epoch=0, repeats=2)
    augmentation = Augmentation.of(TrainParams(augment="strong"))
    indices = np.array([1, 1])
    images = training_input(stored[indices], indices, np.array([0, 1]), draws, augmentation, Preprocessing(16))
    assert not torch.equal(images[0], images[1])
    once = EpochDraws(3, seed=0, epoch=0)
    assert np.array_equal(once.crop[0], draws.crop[0])  # how often others come changes nothing


def test_no_crop_is_the_identity_and_a_flip_mirrors():
    images = torch.rand(2, 3, 16, 16)
    draws = torch.full((2, 5), 0.25)
    same = Augmentation().crop(images, draws, 16)
    torch.testing.assert_close(same, images, rtol=1e-4, atol=1e-5)
    flipped = Augmentation(horizontal_flip=True).crop(images, draws, 16)
    torch.testing.assert_close(flipped, images.flip(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["light", "standard"])
def test_crops_stay_inside(name):
    """A ramp keeps its range, and its mean stays in the middle over many draws."""
    ramp = torch.linspace(0, 1, 32).repeat(400, 3, 32, 1)
    augmentation = Augmentation.of(TrainParams(augment=name))
    out = augmentation.crop(ramp, torch.from_numpy(EpochDraws(400, 0, 0).crop[0]), 32)
    assert out.min() >= 0
    assert out.max() <= 1
    assert abs(out.mean() - 0.5) < 0.02
    assert out.std(dim=0).max() > 0.01


def test_erased_rectangles_have_the_sizes_and_the_frequency_of_torchvisions():
    images = torch.ones(4000, 1, 64, 64)
    ours = Augmentation(random_erasing=0.25).erase(images, torch.from_numpy(EpochDraws(4000, 1, 0).erase[0]))
    torch.manual_seed(0)
    theirs = torch.stack([v2.RandomErasing(p=0.25, value=[0.0])(image) for image in images])
    erased = [(x == 0).flatten(1).float().mean(1) for x in (ours, theirs)]
    shares = [float((x > 0).float().mean()) for x in erased]
    assert shares == pytest.approx([0.25, 0.25], abs=0.03)
    areas = [float(x[x > 0].mean()) for x in erased]
    assert areas[0] == pytest.approx(areas[1], rel=0.1)
    mask = (ours[erased[0] > 0][0, 0] == 0).int()  # one filled rectangle
    rows, columns = mask.any(1).sum(), mask.any(0).sum()
    assert mask.sum() == rows * columns


def test_explicit_values_take_the_place_of_the_presets():
    strong = Augmentation.of(TrainParams(augment="strong"))
    assert (strong.policy, strong.random_erasing) == ("trivialaugment", 0.25)
    plain = Augmentation.of(TrainParams(augment="strong", policy="none", random_erasing=0.0))
    assert plain == Augmentation.of(TrainParams(augment="standard"))


@pytest.mark.parametrize(("alphas", "kinds"), [((0.4, 0), {"MixUp"}), ((0, 1.0), {"CutMix"}),
                                               ((0.4, 1.0), {"MixUp", "CutMix"})])  # fmt: skip
def test_mixtures_have_the_share_they_tell(alphas, kinds):
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    targets, seen = torch.tensor([5, 6, 7, 8]), set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, partners, share = Mixing(*alphas)(images, targets)
        assert partners.tolist() == [8, 5, 6, 7]
        expected = share * images + (1 - share) * images.roll(1, 0)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected.mean((1, 2, 3)), rtol=1e-4, atol=1e-4)
        seen.add("MixUp" if torch.allclose(mixed, expected, atol=1e-4) and 0 < share < 1 else "CutMix")
    assert seen >= kinds


def test_nothing_is_mixed_by_default():
    images, targets = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    same, _, share = Mixing(0, 0)(images, targets)
    assert share == 1
    assert same is images
