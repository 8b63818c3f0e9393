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

from udc_model.data.transforms import Preprocessing
from udc_model.params import TrainParams

if TYPE_CHECKING:
    from torchvision.transforms import v2

_CROP, _ERASE, _POLICY = 2, 3, 4  # streams of random numbers that must not meet


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
            policy=policy if params.policy is None else params.policy,
            color_jitter=params.color_jitter,
            random_erasing=erasing if params.random_erasing is None else params.random_erasing,
        )  # fmt: skip

    @property
    def moves(self) -> bool:
        """Whether images are cropped or mirrored."""
        return self.smallest_area < 1 or self.largest_ratio > 1 or self.horizontal_flip

    def crop(self, images: Tensor, draws: Tensor, size: int) -> Tensor:
        """Crop, resize bilinearly to (N, C, size, size) and mirror images (N, C, S, S).

        ``draws`` (N, 5) in [0, 1): scale, ratio, x, y, mirrored.
        """
        area = self.smallest_area + (1 - self.smallest_area) * draws[:, 0]
        ratio = torch.exp((2 * draws[:, 1] - 1) * float(np.log(self.largest_ratio)))
        width = (area * ratio).sqrt().clamp(max=1.0)  # as shares of the image's side
        height = (area / ratio).sqrt().clamp(max=1.0)
        left, top = draws[:, 2] * (1 - width), draws[:, 3] * (1 - height)
        sign = torch.where((draws[:, 4] < 0.5) & self.horizontal_flip, -1.0, 1.0)
        theta = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
        theta[:, 0, 0], theta[:, 0, 2] = sign * width, 2 * left + width - 1
        theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
        grid = F.affine_grid(theta, [len(images), images.shape[1], size, size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

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

    @cached_property
    def _one_by_one(self) -> v2.Transform | None:
        """What torchvision does to a single image; it draws from torch's generator."""
        if self.policy == "none" and not self.color_jitter:
            return None
        from torchvision.transforms import v2

        policies = {"none": v2.Identity, "randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
        return v2.Compose([policies[self.policy](), v2.ColorJitter(*[self.color_jitter] * 3)])

    def recolour(self, stored: Tensor, seeds: list[int]) -> Tensor:
        """Apply policy and colour jitter to stored squares (N, S, S, 3) uint8, each with a seed of its own.

        Leaves torch's generator in some state of its own.
        """
        if self._one_by_one is None:
            return stored
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
    """Stored squares (N, S, S, 3) uint8 to augmented, normalised input (N, 3, size, size) float32.

    ``indices`` and ``repeats`` (N,) say which images they are, and how often each came before in this epoch.
    """
    stored = augmentation.recolour(stored, draws.seeds(repeats, indices))
    if augmentation.moves:
        images = stored.permute(0, 3, 1, 2).float() / 255
        crops = torch.from_numpy(draws.crop[repeats, indices]).to(stored.device)
        images = preprocessing.normalise(augmentation.crop(images, crops, preprocessing.size))
    else:
        images = preprocessing.to_input(stored)
    if augmentation.random_erasing:
        images = augmentation.erase(images, torch.from_numpy(draws.erase[repeats, indices]).to(stored.device))
    return images


class Mixing:
    """MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) of whole batches, half of them each where both are on.

    Parameters
    ----------
    mixup, cutmix : alpha of the Beta distribution that the shares come from; 0 switches it off.
    """

    def __init__(self, mixup: float, cutmix: float) -> None:
        self._alphas = {"MixUp": mixup, "CutMix": cutmix}

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        """Mix each image (N, C, H, W) with the one before it; draws from torch's generator.

        Returns
        -------
        The mixed images, the targets (N,) of the images mixed in, and the share of an image's own target, in [0, 1].
        """
        names = [name for name, alpha in self._alphas.items() if alpha]
        if not names:
            return images, targets, 1.0
        from torchvision.transforms import v2

        name = names[int(torch.randint(len(names), ()))]
        # labelled by their number, the soft labels tell the share
        numbers = torch.arange(len(images), device=images.device)
        mixed, labels = getattr(v2, name)(alpha=self._alphas[name], num_classes=len(images))(images, numbers)
        return mixed, targets.roll(1, 0), float(labels[0, 0])
