"""Tests of augmentation: pure functions of (seed, epoch, sample index); crops and mixtures equal torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from udc_model.config import TrainParams
from udc_model.data import augmentation as augmentation_module
from udc_model.data.augmentation import Augmentation, EpochDraws, Mixing, crop_resize, training_input, turned
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.native.library import load_library


def _stored(n, side=20):
    return torch.randint(0, 255, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["light", "standard", "strong"])
def test_augmented_image_does_not_depend_on_its_batch(name):
    stored, draws = _stored(6), EpochDraws(6, seed=0, epoch=4)
    augmentation = Augmentation.of(
        TrainParams(augment=name, horizontal_flip=True, quarter_turns=True, color_jitter=0.2)
    )
    indices, repeats = np.array([4, 0, 2]), np.zeros(3, np.intp)
    batch = training_input(stored[indices], indices, repeats, draws, augmentation, Preprocessing(16))
    torch.manual_seed(99)  # the global generator must not matter
    for row, index in enumerate(indices):
        single = np.array([index])
        alone = training_input(stored[single], single, repeats[:1], draws, augmentation, Preprocessing(16))
        torch.testing.assert_close(alone[0], batch[row], rtol=0, atol=0)
    next_epoch = training_input(stored[indices], indices, repeats, EpochDraws(6, 0, 5), augmentation, Preprocessing(16))
    assert not torch.equal(next_epoch, batch)


def test_repeated_image_is_augmented_differently():
    stored, draws = _stored(3), EpochDraws(3, seed=0, epoch=0, repeats=2)
    augmentation = Augmentation.of(TrainParams(augment="strong"))
    indices = np.array([1, 1])
    images = training_input(stored[indices], indices, np.array([0, 1]), draws, augmentation, Preprocessing(16))
    assert not torch.equal(images[0], images[1])
    once = EpochDraws(3, seed=0, epoch=0)
    assert np.array_equal(once.crop[0], draws.crop[0])  # independent of the maximum number of repeats
    assert np.array_equal(once.turn[0], draws.turn[0])


@pytest.fixture(params=["native", "torch"])
def _kernel(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(augmentation_module, "load_library", lambda: None)
    elif load_library() is None:
        pytest.skip("no native kernels on this machine")


@pytest.mark.usefixtures("_kernel")
def test_full_crop_is_the_identity_and_flip_mirrors():
    stored, preprocessing = _stored(2, 16), Preprocessing(16, mean=(0.1, 0.5, 0.4), std=(0.2, 0.3, 1.0))
    plain = preprocessing.to_input(stored)
    uncropped = crop_resize(stored, Augmentation().boxes(torch.full((2, 5), 0.25)), preprocessing)
    torch.testing.assert_close(uncropped, plain, rtol=1e-4, atol=1e-5)
    flipped = crop_resize(stored, Augmentation(horizontal_flip=True).boxes(torch.full((2, 5), 0.25)), preprocessing)
    torch.testing.assert_close(flipped, plain.flip(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize(("side", "size"), [(1, 1), (1, 4), (2, 3), (7, 7), (20, 8), (16, 33), (73, 64)])
def test_crops_equal_those_of_torchvision(side, size):
    """Crops with integer bounds equal torchvision's ``resized_crop`` without antialiasing."""
    stored = _stored(5, side)
    rng = np.random.default_rng(0)
    preprocessing = Preprocessing(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    corners = [(int(rng.integers(0, side)), int(rng.integers(0, side))) for _ in range(5)]
    extents = [(int(rng.integers(1, side - top + 1)), int(rng.integers(1, side - left + 1))) for top, left in corners]
    boxes = torch.tensor([[left / side, top / side, width / side, height / side]
                          for (top, left), (height, width) in zip(corners, extents, strict=True)])  # fmt: skip
    crops = crop_resize(stored, boxes, preprocessing)
    for image, (top, left), (height, width), crop in zip(stored, corners, extents, crops, strict=True):
        # grid_sample interpolates with pixels beyond the crop, resized_crop does not: compare the interior
        expected = v2.functional.resized_crop(image.permute(2, 0, 1).float() / 255, top, left, height, width,
                                              [size, size], antialias=False)  # fmt: skip
        inner = [slice(-(-size // (2 * extent)), size - -(-size // (2 * extent))) for extent in (height, width)]
        torch.testing.assert_close(crop[:, inner[0], inner[1]], expected[:, inner[0], inner[1]], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(load_library() is None, reason="no native kernels on this machine")
@pytest.mark.parametrize(("n", "side", "size"), [(1, 1, 3), (3, 2, 2), (4, 23, 16), (7, 40, 63)])
def test_native_crop_equals_grid_sample_for_any_number_of_threads(n, side, size, monkeypatch):
    stored, preprocessing = _stored(n, side), Preprocessing(size, mean=(0.1, 0.5, 0.4), std=(0.2, 0.3, 1.0))
    boxes = Augmentation(0.1, 2.0, horizontal_flip=True).boxes(torch.rand(n, 5))
    crops = []
    threads = torch.get_num_threads()
    for k in (1, 2, 3):
        torch.set_num_threads(k)
        crops.append(crop_resize(stored, boxes, preprocessing))
    torch.set_num_threads(threads)
    assert torch.equal(crops[0], crops[1])
    assert torch.equal(crops[0], crops[2])
    assert crops[0].is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(augmentation_module, "load_library", lambda: None)
    torch.testing.assert_close(crops[0], crop_resize(stored, boxes, preprocessing), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("name", ["light", "standard"])
def test_crops_stay_inside_the_image(name):
    """Crops of a ramp stay in its range, and their mean over many draws is the middle of the range."""
    ramp = torch.linspace(0, 255, 32).byte().view(1, 1, 32, 1).expand(400, 32, 32, 3)
    boxes = Augmentation.of(TrainParams(augment=name)).boxes(torch.from_numpy(EpochDraws(400, 0, 0).crop[0]))
    out = crop_resize(ramp, boxes, Preprocessing(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert out.min() >= 0
    assert out.max() <= 1
    assert abs(out.mean() - 0.5) < 0.02
    assert out.std(dim=0).max() > 0.01


@pytest.mark.parametrize(("alphas", "kinds"), [((0.4, 0), {"MixUp"}), ((0, 1.0), {"CutMix"}),
                                               ((0.4, 1.0), {"MixUp", "CutMix"})])  # fmt: skip
def test_mixtures_have_the_returned_share(alphas, kinds):
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    targets, seen = torch.tensor([5, 6, 7, 8]), set()
    for seed in range(20):
        mixed, partners, share = Mixing(*alphas)(images, targets, seed)
        assert partners.tolist() == [8, 5, 6, 7]
        expected = share * images + (1 - share) * images.roll(1, 0)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected.mean((1, 2, 3)), rtol=1e-4, atol=1e-4)
        seen.add("MixUp" if torch.allclose(mixed, expected, atol=1e-4) and 0 < share < 1 else "CutMix")
    assert seen >= kinds


def test_mixing_with_zero_alphas_returns_the_images():
    images, targets = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    mixed, _, share = Mixing(0, 0)(images, targets)
    assert share == 1
    assert mixed is images


GREY = Preprocessing(16, mean=(0.4,), std=(0.3,), decoding=Decoding(channels=1))


@pytest.mark.usefixtures("_kernel")
def test_crops_of_grey_images_are_those_of_equal_channels():
    grey = _stored(5, 20)[..., :1]
    boxes = Augmentation(0.2, 2.0, horizontal_flip=True).boxes(torch.rand(5, 5))
    colour = Preprocessing(16, mean=(0.4,) * 3, std=(0.3,) * 3)
    crops = crop_resize(grey, boxes, GREY)
    assert crops.shape == (5, 1, 16, 16)
    assert torch.equal(crops, crop_resize(grey.expand(-1, -1, -1, 3), boxes, colour)[:, :1])


@pytest.mark.parametrize("auto_augment", ["none", "randaugment", "trivialaugment"])
def test_per_image_transforms_of_grey_images(auto_augment):
    """All operations accept one channel; those of colours leave it as it is."""
    augmentation = Augmentation(auto_augment=auto_augment, color_jitter=0.4)
    grey = _stored(60, 16)[..., :1]
    out = augmentation.apply_per_image(grey, list(range(60)))
    assert out.shape == grey.shape
    assert out.dtype == torch.uint8
    assert not torch.equal(out, grey)
    assert torch.equal(out, augmentation.apply_per_image(grey, list(range(60))))


def test_saturation_does_not_change_grey_images():
    from torchvision.transforms.v2 import functional

    grey = _stored(1, 16)[..., :1].permute(0, 3, 1, 2)
    assert torch.equal(functional.adjust_saturation(grey, 3.0), grey)


def test_training_input_of_grey_images():
    augmentation = Augmentation(0.5, 4 / 3, horizontal_flip=True, random_erasing=1.0)
    draws, indices = EpochDraws(4, 0, 0), np.arange(4)
    out = training_input(_stored(4, 16)[..., :1], indices, np.zeros(4, np.intp), draws, augmentation, GREY)
    assert out.shape == (4, 1, 16, 16)
    assert (out == 0).any(dim=(1, 2, 3)).all()  # erased


def test_quarter_turns_are_those_of_numpy():
    stored = _stored(5)
    before = stored.clone()
    turns = np.array([0, 1, 2, 3, 1], np.uint8)
    expected = [np.rot90(image, k) for image, k in zip(stored.numpy(), turns, strict=True)]
    np.testing.assert_array_equal(turned(stored, turns).numpy(), np.stack(expected))
    assert torch.equal(stored, before)


@pytest.mark.parametrize("horizontal_flip", [False, True])
def test_quarter_turns_and_mirrors_are_the_symmetries_of_the_square(horizontal_flip):
    image = torch.arange(16 * 16 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(1, 16, 16, 3)
    augmentation = Augmentation.of(TrainParams(quarter_turns=True, horizontal_flip=horizontal_flip))
    n, preprocessing = 400, Preprocessing(16)
    draws, indices = EpochDraws(n, seed=0, epoch=0), np.arange(n)
    stored = image.expand(n, -1, -1, -1).contiguous()
    images = training_input(stored, indices, np.zeros(n, np.intp), draws, augmentation, preprocessing)
    plain = preprocessing.to_input(image)[0]
    symmetries = [
        torch.rot90(side, k, (1, 2)) for k in range(4) for side in ([plain, plain.flip(2)][: 1 + horizontal_flip])
    ]
    counts = [sum(torch.allclose(each, one, rtol=1e-4, atol=1e-4) for each in images) for one in symmetries]
    assert sum(counts) == n
    assert min(counts) > 0.7 * n / len(symmetries)
