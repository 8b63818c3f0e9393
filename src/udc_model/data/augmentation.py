"""What training does to images: crops, flips, colour and policies, erased rectangles, and mixed pairs.

Draws for one image are pure functions of (seed, epoch, sample index, how often it came before in this epoch).
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

_CROP, _ERASE, _POLICY, _MIX, _DROP = 2, 3, 4, 5, 6  # streams of random numbers that must not meet


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images.

    Parameters
    ----------
    smallest_area : of a random resized crop, as a share of the image, in (0, 1]; 1 crops nothing.
    largest_ratio : of the crop's sides, at least 1; the crop's ratio is log-uniform between its inverse and it.
    horizontal_flip : mirror half of the images.
    policy : ``none``, ``randaugment`` (Cubuk et al. 2020) or ``trivialaugment`` (Müller and Hutter 2021).
    color_jitter : largest relative change of brightness, contrast and saturation, 0 for none.
    random_erasing : share of the images that lose a rectangle (Zhong et al. 2020), in [0, 1].
    """

    smallest_area: float = 1.0
    largest_ratio: float = 1.0
    horizontal_flip: bool = False
    policy: str = "none"
    color_jitter: float = 0.0
    random_erasing: float = 0.0

    @classmethod
    def of(cls, params: TrainParams) -> Augmentation:
        """The preset ``train.augment``, and what other parameters set instead."""
        area, ratio, policy, erasing = {
            "none": (1.0, 1.0, "none", 0.0),
            "light": (0.8, 1.0, "none", 0.0),
            "standard": (0.35, 4 / 3, "none", 0.0),
            "strong": (0.35, 4 / 3, "trivialaugment", 0.25),
        }[params.augment]
        return cls(
            area, ratio, params.horizontal_flip,
            policy=policy if params.auto_augment is None else params.auto_augment,
            color_jitter=params.color_jitter,
            random_erasing=erasing if params.random_erasing is None else params.random_erasing,
        )  # fmt: skip

    @property
    def moves(self) -> bool:
        """Whether images are cropped or mirrored."""
        return self.smallest_area < 1 or self.largest_ratio > 1 or self.horizontal_flip

    def boxes(self, draws: Tensor) -> Tensor:
        """The crops (N, 4) of a random resized crop: left, top, width and height as shares of the image's side.

        The width is negative where the crop is mirrored. ``draws`` (N, 5) in [0, 1): scale, ratio, x, y, mirrored.
        """
        area = self.smallest_area + (1 - self.smallest_area) * draws[:, 0]
        ratio = torch.exp((2 * draws[:, 1] - 1) * float(np.log(self.largest_ratio)))
        width = (area * ratio).sqrt().clamp(max=1.0)
        height = (area / ratio).sqrt().clamp(max=1.0)
        left, top = draws[:, 2] * (1 - width), draws[:, 3] * (1 - height)
        sign = torch.where((draws[:, 4] < 0.5) & self.horizontal_flip, -1.0, 1.0)
        return torch.stack([left, top, sign * width, height], dim=1)

    def erase(self, images: Tensor, draws: Tensor) -> Tensor:
        """Set a rectangle of some normalised images (N, C, S, S) to 0, the mean colour.

        ``draws`` (N, 5) in [0, 1): whether, area (2 to 33% of the image), ratio of the sides (3:10 to 10:3), y, x.
        """
        side = images.shape[-1]
        area = 0.02 + (0.33 - 0.02) * draws[:, 1]
        root = torch.exp((draws[:, 2] - 0.5) * float(np.log(10 / 3)))  # of the ratio
        height, width = ((area.sqrt() * x * side).round().clamp(1, side) for x in (root, 1 / root))
        top, left = (draws[:, 3] * (side - height + 1)).floor(), (draws[:, 4] * (side - width + 1)).floor()
        at = torch.arange(side, device=images.device)
        rows = (at >= top[:, None]) & (at < (top + height)[:, None]) & (draws[:, :1] < self.random_erasing)
        columns = (at >= left[:, None]) & (at < (left + width)[:, None])
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

    @property
    def recolours(self) -> bool:
        """Whether images are changed one by one."""
        return self.policy != "none" or self.color_jitter > 0

    @cached_property
    def _one_by_one(self) -> v2.Transform:
        """What torchvision does to a single image; it draws from torch's generator."""
        from torchvision.transforms import v2

        policies = {"none": v2.Identity, "randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
        return v2.Compose([policies[self.policy](), v2.ColorJitter(*[self.color_jitter] * 3)])

    def recolour(self, stored: Tensor, seeds: list[int]) -> Tensor:
        """Apply policy and colour jitter to stored squares (N, S, S, 3) uint8, each with a seed of its own.

        Leaves torch's generator in a state of its own.
        """
        images = stored.permute(0, 3, 1, 2)
        changed = []
        for image, seed in zip(images, seeds, strict=True):
            torch.manual_seed(seed)
            changed.append(self._one_by_one(image))
        return torch.stack(changed).permute(0, 2, 3, 1)


class EpochDraws:
    """The random numbers behind one epoch's augmentation of n images.

    Parameters
    ----------
    repeats : how often an image comes at most.
    """

    def __init__(self, n: int, seed: int, epoch: int, repeats: int = 1) -> None:
        self._seed, self._epoch, shape = seed, epoch, (repeats, n, 5)
        self.crop = np.random.default_rng([seed, _CROP, epoch]).random(shape, dtype=np.float32)
        self.erase = np.random.default_rng([seed, _ERASE, epoch]).random(shape, dtype=np.float32)

    def seeds(self, repeats: NDArray[np.intp], indices: NDArray[np.intp]) -> list[int]:
        """A seed for each image, for what draws from torch's generator."""
        keys = zip(indices.tolist(), repeats.tolist(), strict=True)
        return [derived_seed(self._seed, _POLICY, self._epoch, index, repeat) for index, repeat in keys]


def derived_seed(*key: int) -> int:
    """A seed for torch's generator, a pure function of its arguments."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def training_input(
    stored: Tensor,
    indices: NDArray[np.intp],
    repeats: NDArray[np.intp],
    draws: EpochDraws,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
) -> Tensor:
    """Stored squares (N, S, S, 3) uint8, recoloured, to cropped, erased, normalised input (N, 3, size, size) float32.

    ``indices`` and ``repeats`` (N,) say which images they are, and how often each came before in this epoch.
    """
    if augmentation.moves:
        boxes = augmentation.boxes(torch.from_numpy(draws.crop[repeats, indices]))
        images = crop_resize(stored, boxes, preprocessing)
    else:
        images = preprocessing.to_input(stored)
    if augmentation.random_erasing:
        images = augmentation.erase(images, torch.from_numpy(draws.erase[repeats, indices]).to(stored.device))
    return images


def crop_resize(stored: Tensor, boxes: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Crop stored squares (N, S, S, 3) uint8, resize bilinearly and normalise.

    Returns (N, 3, size, size) float32, channels last.

    ``boxes`` (N, 4) float32 on the CPU, as `Augmentation.boxes` gives them. On the CPU a native kernel does all of it
    in one pass, where there is one; its last bits differ from torch's.
    """
    size, (scale, shift) = preprocessing.size, preprocessing.scale_and_shift()
    if stored.device.type == "cpu" and load_library() is not None:
        out = torch.empty(len(stored), size, size, 3)
        stored, boxes = stored.contiguous(), boxes.contiguous()
        call("udc_crop_resize", stored.data_ptr(), boxes.data_ptr(), len(stored), stored.shape[1], size,
             scale.data_ptr(), shift.data_ptr(), torch.get_num_threads(), out.data_ptr())  # fmt: skip
        return out.permute(0, 3, 1, 2)
    left, top, width, height = boxes.to(stored.device).unbind(1)
    theta = torch.zeros(len(stored), 2, 3, device=stored.device)
    theta[:, 0, 0], theta[:, 0, 2] = width, 2 * left + width.abs() - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = F.affine_grid(theta, [len(stored), 3, size, size], align_corners=False)
    images = stored.permute(0, 3, 1, 2).float()
    cropped = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cropped * scale.to(stored.device).view(1, 3, 1, 1) + shift.to(stored.device).view(1, 3, 1, 1)


class Mixing:
    """MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) of whole batches, half of them each where both are on.

    Parameters
    ----------
    mixup, cutmix : alpha of the Beta distribution that the shares come from; 0 switches it off.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        self._alphas = {name: alpha for name, alpha in (("MixUp", mixup), ("CutMix", cutmix)) if alpha}

    def __bool__(self) -> bool:
        return bool(self._alphas)

    def __call__(self, images: Tensor, targets: Tensor, *key: int) -> tuple[Tensor, Tensor, float]:
        """Mix each image (N, C, H, W) with the one before it, as the integers ``key`` determine.

        Leaves torch's generator in a state of its own.

        Returns
        -------
        The mixed images, the targets (N,) of the images mixed in, and the share of an image's own target, in [0, 1].
        """
        if not self:
            return images, targets, 1.0
        from torchvision.transforms import v2

        torch.manual_seed(derived_seed(_MIX, *key))
        name = list(self._alphas)[int(torch.randint(len(self._alphas), ()))]
        # labelled by their number, the soft labels tell the share
        numbers = torch.arange(len(images), device=images.device)
        mixed, labels = getattr(v2, name)(alpha=self._alphas[name], num_classes=len(images))(images, numbers)
        return mixed, targets.roll(1, 0), float(labels[0, 0])


def seed_drop_path(*key: int) -> None:
    """Set torch's generator for the draws inside the model, as the integers ``key`` determine."""
    torch.manual_seed(derived_seed(_DROP, *key))
