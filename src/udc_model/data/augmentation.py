"""Data augmentation: crops, flips, turns, colour jitter, automatic augmentation, random erasing, MixUp and CutMix.

The random numbers of an image are a pure function of (seed, epoch, sample index, repeat). The repeat is the number of
times that the image occurred earlier in the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from udc_model.config import TrainParams
from udc_model.data.transforms import Preprocessing
from udc_model.native.library import call, load_library

if TYPE_CHECKING:
    from torchvision.transforms import v2

_CROP, _ERASE, _PER_IMAGE, _MIX, _DROP, _TURN = 2, 3, 4, 5, 6, 7  # identifiers of independent streams of random numbers


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation of training images.

    Parameters
    ----------
    smallest_area : minimum area of a random resized crop, as a share of the image, in (0, 1]; 1 disables crops.
    largest_ratio : maximum aspect ratio of the crop, at least 1; the ratio is log-uniform on [1 / largest_ratio,
        largest_ratio].
    horizontal_flip : mirror each image with probability 0.5.
    quarter_turns : rotate each image by 0, 90, 180 or 270 degrees, with equal probabilities.
    auto_augment : ``none``, ``randaugment`` (Cubuk et al. 2020) or ``trivialaugment`` (Müller and Hutter 2021).
    color_jitter : maximum relative change of brightness, contrast and saturation; 0 disables it.
    random_erasing : probability that a rectangle of an image is erased (Zhong et al. 2020), in [0, 1].
    """

    smallest_area: float = 1.0
    largest_ratio: float = 1.0
    horizontal_flip: bool = False
    auto_augment: str = "none"
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    quarter_turns: bool = False

    @classmethod
    def of(cls, params: TrainParams) -> Augmentation:
        """Create the preset ``train.augment``; parameters that are set explicitly override the preset."""
        area, ratio, auto_augment, erasing = {
            "none": (1.0, 1.0, "none", 0.0),
            "light": (0.8, 1.0, "none", 0.0),
            "standard": (0.35, 4 / 3, "none", 0.0),
            "strong": (0.35, 4 / 3, "trivialaugment", 0.25),
        }[params.augment]
        return cls(
            area, ratio, params.horizontal_flip,
            auto_augment=auto_augment if params.auto_augment is None else params.auto_augment,
            color_jitter=params.color_jitter,
            random_erasing=erasing if params.random_erasing is None else params.random_erasing,
            quarter_turns=params.quarter_turns,
        )  # fmt: skip

    @property
    def has_crops_or_flips(self) -> bool:
        """Whether images are cropped or mirrored."""
        return self.smallest_area < 1 or self.largest_ratio > 1 or self.horizontal_flip

    def boxes(self, draws: Tensor) -> Tensor:
        """Convert uniform random numbers to the boxes of random resized crops.

        Parameters
        ----------
        draws : (N, 5) in [0, 1) for area, aspect ratio, x, y and flip.

        Returns
        -------
        (N, 4) left, top, width and height as shares of the image's side. A negative width means a mirrored crop.
        """
        area = self.smallest_area + (1 - self.smallest_area) * draws[:, 0]
        ratio = torch.exp((2 * draws[:, 1] - 1) * float(np.log(self.largest_ratio)))
        width = (area * ratio).sqrt().clamp(max=1.0)
        height = (area / ratio).sqrt().clamp(max=1.0)
        left, top = draws[:, 2] * (1 - width), draws[:, 3] * (1 - height)
        sign = torch.where((draws[:, 4] < 0.5) & self.horizontal_flip, -1.0, 1.0)
        return torch.stack([left, top, sign * width, height], dim=1)

    def erase(self, images: Tensor, draws: Tensor) -> Tensor:
        """Set a random rectangle of some images to 0, the mean colour.

        Parameters
        ----------
        images : (N, C, S, S), normalised.
        draws : (N, 5) in [0, 1) for: erased or not, area (2% to 33% of the image), aspect ratio (3:10 to 10:3), y, x.
        """
        side = images.shape[-1]
        area = 0.02 + (0.33 - 0.02) * draws[:, 1]
        root_ratio = torch.exp((draws[:, 2] - 0.5) * float(np.log(10 / 3)))  # square root of the aspect ratio
        height, width = ((area.sqrt() * x * side).round().clamp(1, side) for x in (root_ratio, 1 / root_ratio))
        top, left = (draws[:, 3] * (side - height + 1)).floor(), (draws[:, 4] * (side - width + 1)).floor()
        position = torch.arange(side, device=images.device)
        is_erased = draws[:, :1] < self.random_erasing
        rows = (position >= top[:, None]) & (position < (top + height)[:, None]) & is_erased
        columns = (position >= left[:, None]) & (position < (left + width)[:, None])
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

    @property
    def has_per_image_transforms(self) -> bool:
        """Whether `apply_per_image` changes images."""
        return self.auto_augment != "none" or self.color_jitter > 0

    @cached_property
    def _per_image(self) -> v2.Transform:
        """The torchvision transform of a single image; it draws from torch's global generator."""
        from torchvision.transforms import v2

        policies = {"none": v2.Identity, "randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
        return v2.Compose([policies[self.auto_augment](), v2.ColorJitter(*[self.color_jitter] * 3)])

    def apply_per_image(self, stored: Tensor, seeds: list[int]) -> Tensor:
        """Apply automatic augmentation and colour jitter to prepared images (N, S, S, C) uint8, one seed per image.

        Changes of saturation leave grey images as they are.

        Reseeds torch's global generator.
        """
        images = stored.permute(0, 3, 1, 2)
        augmented = []
        for image, seed in zip(images, seeds, strict=True):
            torch.manual_seed(seed)
            augmented.append(self._per_image(image))
        return torch.stack(augmented).permute(0, 2, 3, 1)


class EpochDraws:
    """The random numbers for the augmentation of one epoch.

    Parameters
    ----------
    n : number of images.
    seed, epoch : the seed of the training run, and the epoch from 0.
    repeats : maximum number of times that an image occurs in the epoch.
    """

    def __init__(self, n: int, seed: int, epoch: int, repeats: int = 1) -> None:
        self._seed, self._epoch, shape = seed, epoch, (repeats, n, 5)
        self.crop = np.random.default_rng([seed, _CROP, epoch]).random(shape, dtype=np.float32)
        self.erase = np.random.default_rng([seed, _ERASE, epoch]).random(shape, dtype=np.float32)
        self.turn = np.random.default_rng([seed, _TURN, epoch]).integers(0, 4, shape[:2], dtype=np.uint8)

    def seeds(self, repeats: NDArray[np.intp], indices: NDArray[np.intp]) -> list[int]:
        """Return a seed of torch's generator for each image, given ``repeats`` and ``indices`` (N,)."""
        keys = zip(indices.tolist(), repeats.tolist(), strict=True)
        return [derived_seed(self._seed, _PER_IMAGE, self._epoch, index, repeat) for index, repeat in keys]


def derived_seed(*key: int) -> int:
    """Return a seed for torch's generator, a pure function of the integers ``key``."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def training_input(
    stored: Tensor,
    indices: NDArray[np.intp],
    repeats: NDArray[np.intp],
    draws: EpochDraws,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
) -> Tensor:
    """Turn, crop, flip, normalise and erase a batch.

    Parameters
    ----------
    stored : (N, S, S, C) uint8 prepared images, after `Augmentation.apply_per_image`.
    indices, repeats : (N,) sample index of each image, and how often it occurred earlier in the epoch.
    draws : the random numbers of the epoch.

    Returns
    -------
    (N, C, size, size) float32.
    """
    if augmentation.quarter_turns:
        stored = turned(stored, draws.turn[repeats, indices])
    if augmentation.has_crops_or_flips:
        boxes = augmentation.boxes(torch.from_numpy(draws.crop[repeats, indices]))
        images = crop_resize(stored, boxes, preprocessing)
    else:
        images = preprocessing.to_input(stored)
    if augmentation.random_erasing:
        images = augmentation.erase(images, torch.from_numpy(draws.erase[repeats, indices]).to(stored.device))
    return images


def turned(stored: Tensor, turns: NDArray[np.uint8]) -> Tensor:
    """Rotate each of the square images (N, S, S, C) by its number (N,) of quarter turns, anticlockwise."""
    result = stored.clone()
    for count in (1, 2, 3):
        chosen = torch.from_numpy(turns == count).to(stored.device)
        result[chosen] = torch.rot90(stored[chosen], count, (1, 2))
    return result


def crop_resize(stored: Tensor, boxes: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Crop, resize (bilinear) and normalise a batch.

    On the CPU a native kernel does all of it in one pass if it is available. Its result differs from torch's in the
    last bits.

    Parameters
    ----------
    stored : (N, S, S, C) uint8 prepared images.
    boxes : (N, 4) float32 on the CPU, as returned by `Augmentation.boxes`.

    Returns
    -------
    (N, C, size, size) float32, channels last.
    """
    size, channels, (scale, shift) = preprocessing.size, stored.shape[-1], preprocessing.scale_and_shift()
    if stored.device.type == "cpu" and load_library() is not None:
        out = torch.empty(len(stored), size, size, channels)
        stored, boxes = stored.contiguous(), boxes.contiguous()
        call("udc_crop_resize" if channels == 3 else "udc_crop_resize_grey", stored.data_ptr(), boxes.data_ptr(),
             len(stored), stored.shape[1], size, scale.data_ptr(), shift.data_ptr(), torch.get_num_threads(),
             out.data_ptr())  # fmt: skip
        return out.permute(0, 3, 1, 2)
    left, top, width, height = boxes.to(stored.device).unbind(1)
    theta = torch.zeros(len(stored), 2, 3, device=stored.device)
    theta[:, 0, 0], theta[:, 0, 2] = width, 2 * left + width.abs() - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = F.affine_grid(theta, [len(stored), channels, size, size], align_corners=False)
    images = stored.permute(0, 3, 1, 2).float()
    cropped = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cropped * scale.to(stored.device).view(1, -1, 1, 1) + shift.to(stored.device).view(1, -1, 1, 1)


class Mixing:
    """MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) of batches; if both are on, each batch draws one of them.

    Parameters
    ----------
    mixup, cutmix : alpha of the Beta distribution of the mixing shares; 0 disables the method.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        self._alphas = {name: alpha for name, alpha in (("MixUp", mixup), ("CutMix", cutmix)) if alpha}

    def __bool__(self) -> bool:
        return bool(self._alphas)

    def __call__(self, images: Tensor, targets: Tensor, *key: int) -> tuple[Tensor, Tensor, float]:
        """Mix each image of a batch with the image before it.

        Reseeds torch's global generator.

        Parameters
        ----------
        images, targets : (N, C, H, W) and (N,).
        key : integers that determine the random numbers.

        Returns
        -------
        The mixed images (N, C, H, W); the targets (N,) of the partners, i.e. the images that were mixed in; the share
        of each image in its mixture, in [0, 1], which is the weight of its target.
        """
        if not self:
            return images, targets, 1.0
        from torchvision.transforms import v2

        torch.manual_seed(derived_seed(_MIX, *key))
        name = list(self._alphas)[int(torch.randint(len(self._alphas), ()))]
        # With each image as a class, the soft label of image 0 contains its share.
        numbers = torch.arange(len(images), device=images.device)
        mixed, labels = getattr(v2, name)(alpha=self._alphas[name], num_classes=len(images))(images, numbers)
        return mixed, targets.roll(1, 0), float(labels[0, 0])


def seed_drop_path(*key: int) -> None:
    """Seed torch's global generator for drop path; the seed is a pure function of the integers ``key``."""
    torch.manual_seed(derived_seed(_DROP, *key))
