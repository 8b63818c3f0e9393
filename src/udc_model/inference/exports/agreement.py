"""Compares the decisions of a written export with the model's on the test split, by what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from udc_model.data.logits import Images
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.familiarity import evenly_spaced
from udc_model.decisions.policy import Policy
from udc_model.inference.exports.decision_graph import FAMILIARITY_OUTPUTS

Run = Callable[[NDArray[Any]], dict[str, NDArray[Any]]]  # from the input of an export to its outputs by name

_EXACT_SHARE = 0.001  # of the images, that an export in single precision may decide otherwise
_BATCH = 64
_RESIZED = 16  # images that are enlarged
_ENLARGEMENTS = ((1.5, 1.25), (1.2, 2.4), (3.1, 1.3), (1.1, 1.1), (2.2, 2.9))  # of height and width


@dataclass(frozen=True)
class Answers:
    """The decisions (N,) of a model, and the familiarity (N,) of the images; None for a policy without it."""

    decided: NDArray[np.intp]
    familiarity: NDArray[np.float64] | None


@dataclass(frozen=True)
class Agreement:
    """How an export decides the N images of the test split.

    Attributes
    ----------
    images : N.
    different : images that the export decides otherwise than the model.
    cost, model_cost : mean cost of the decisions of the export and of the model, weighted as in evaluate.
    cost_paid : mean of the absolute costs of the model's decisions, to which the tolerance is relative.
    resized, resized_different : enlarged images that were decided, and how many otherwise than after Pillow's resizing.
    flags_different : images that one of them flags as unfamiliar and the other does not; None without familiarity.
    familiarity_difference : largest difference of the familiarity of an image.
    """

    images: int
    different: int
    cost: float
    model_cost: float
    cost_paid: float
    resized: int = 0
    resized_different: int = 0
    flags_different: int | None = None
    familiarity_difference: float = 0.0

    def to_text(self) -> str:
        """One to three lines."""
        lines = [f"test: {self.different:,} of {self.images:,} decisions differ; mean cost {self.cost:.6g} against "
                 f"{self.model_cost:.6g}"]  # fmt: skip
        if self.flags_different is not None:
            lines.append(f"familiarity: {self.flags_different:,} of {self.images:,} flags differ, values by at most "
                         f"{self.familiarity_difference:.3f}")  # fmt: skip
        if self.resized:
            lines.append(f"resizing: {self.resized_different} of {self.resized} decisions differ from those after "
                         "Pillow's resizing")  # fmt: skip
        return "\n".join(lines)

    def problem(self, tolerance: float, is_exact: bool) -> str | None:
        """Why the export is refused; None if it is not.

        Parameters
        ----------
        tolerance : largest increase of the mean cost, as a share of ``cost_paid``.
        is_exact : whether the export has the precision of the model, so that other decisions are an error of it.
        """
        if is_exact and self.different > max(1, _EXACT_SHARE * self.images):
            return (f"{self.different:,} of {self.images:,} decisions differ, more than {_EXACT_SHARE:.1%}, which "
                    "rounding does not explain")  # fmt: skip
        flags = self.flags_different or 0
        if is_exact and flags > max(1, _EXACT_SHARE * self.images):
            return (f"{flags:,} of {self.images:,} flags of unfamiliar images differ, more than {_EXACT_SHARE:.1%}, "
                    "which rounding does not explain")  # fmt: skip
        if self.resized_different > 1:
            return f"{self.resized_different} of {self.resized} decisions depend on how images are resized"
        allowed = tolerance * self.cost_paid
        increase = self.cost - self.model_cost
        if not increase <= allowed + 1e-12 * self.cost_paid:
            share = f"{increase / self.cost_paid:.2%} more" if self.cost_paid else "and the model's decisions cost 0"
            return (f"its decisions cost {self.cost:.6g} on average, the model's {self.model_cost:.6g} ({share}); "
                    f"--tolerance {tolerance:g} allows {tolerance:.2%}")  # fmt: skip
        return None


def compare(
    run: Run, takes_images: bool, split: PackedSplit, model: Answers, policy: Policy,
    preprocessing: Preprocessing,
) -> Agreement:  # fmt: skip
    """Run an export on a split of N > 0 images.

    Parameters
    ----------
    takes_images : whether the input is decoded images, and not the network's normalised input.
    model : answers of the model.
    """
    parts = [run(batch) for batch in _inputs(split.images, takes_images, preprocessing)]
    decided = np.concatenate([part["decision"] for part in parts])
    flags, difference = None, 0.0
    if model.familiarity is not None and "familiarity" in parts[0]:  # no part of safetensors-hf
        familiarity, is_unfamiliar = (np.concatenate([part[name] for part in parts]) for name in FAMILIARITY_OUTPUTS)
        flags = int((is_unfamiliar != policy.is_unfamiliar(model.familiarity)).sum())
        difference = float(np.abs(familiarity - model.familiarity).max())
    weights = policy.weights(split.labels)
    costs = policy.outcome_costs
    cost, model_cost = (float(np.average(costs[split.labels, each], weights=weights))
                        for each in (decided, model.decided))  # fmt: skip
    paid = float(np.average(np.abs(costs[split.labels, model.decided]), weights=weights))
    resized = _resized_decisions(run, split.images, preprocessing) if takes_images else np.empty((0, 2))
    return Agreement(len(decided), int((decided != model.decided).sum()), cost, model_cost, paid, len(resized),
                     int((resized[:, 0] != resized[:, 1]).sum()), flags, difference)  # fmt: skip


def inputs_of(images: Images, preprocessing: Preprocessing) -> Iterator[NDArray[np.float32]]:
    """Normalised inputs (n, C, size, size) of prepared images, in batches."""
    for start in range(0, len(images), _BATCH):
        yield preprocessing.to_input(torch.from_numpy(np.array(images[start : start + _BATCH]))).numpy()


def _inputs(images: Images, takes_images: bool, preprocessing: Preprocessing) -> Iterator[NDArray[Any]]:
    """The input of an export for prepared images (N, S, S, C), in batches; resizing changes nothing in them."""
    with tqdm(total=len(images), desc="checking", unit="img", disable=None, leave=False) as bar:
        batches = (
            (np.array(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH))
            if takes_images else inputs_of(images, preprocessing)
        )  # fmt: skip
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _resized_decisions(run: Run, images: Images, preprocessing: Preprocessing) -> NDArray[np.int64]:
    """Decisions (n, 2) for enlarged images of several shapes: of the export, and of the export after Pillow."""
    decisions: list[list[int]] = []
    for row in evenly_spaced(len(images), _RESIZED):
        tall, wide = _ENLARGEMENTS[len(decisions) % len(_ENLARGEMENTS)]
        pixels = np.asarray(images[int(row)])
        size = round(wide * pixels.shape[1]), round(tall * pixels.shape[0])
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).resize(size)
        enlarged = np.array(image).reshape(1, *image.size[::-1], -1)
        resized = preprocessing.to_stored(image)[None].copy()
        decisions.append([int(run(each)["decision"][0]) for each in (enlarged, resized)])
    return np.array(decisions)
