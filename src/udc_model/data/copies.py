"""Copies of images across splits that the user assigned: which are left out, and what is reported about copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from udc_model.config import SPLITS


@dataclass(frozen=True)
class CopiesAcrossSplits:
    """Images with the same pixels as an image of another split.

    Attributes
    ----------
    original : index of the image that remains, by index of its copy.
    split_of_original : split of that image, by index of the copy.
    """

    original: dict[int, int]
    split_of_original: dict[int, str]

    def reason(self, index: int) -> str:
        """Why the copy is left out."""
        return f"copy of an image in the {self.split_of_original[index]} split"

    def counts(self) -> dict[str, int]:
        """Number of copies by split of their original."""
        return dict(Counter(self.split_of_original.values()))


def copies_across_splits(digests: Sequence[str], fixed: Sequence[str | None]) -> CopiesAcrossSplits:
    """Find the images that must not be trained on, because an image of a later split has the same pixels.

    A user's own test set is never changed: the image of the last split in the order of `SPLITS` remains. An image
    without a split is no copy in this sense of an image of ``train``, which it follows.

    Parameters
    ----------
    digests : of the decoded pixels of each of N images.
    fixed : split that the user assigned, or None.
    """
    by_digest = defaultdict(list)
    for i, digest in enumerate(digests):
        by_digest[digest].append(i)
    original: dict[int, int] = {}
    for indices in by_digest.values():
        splits = {fixed[i] for i in indices}
        if len(splits) < 2 or splits == {None, "train"}:
            continue
        last = max((name for name in splits if name is not None), key=SPLITS.index)
        remaining = next(i for i in indices if fixed[i] == last)
        original |= {i: remaining for i in indices if fixed[i] != last}
    return CopiesAcrossSplits(original, {i: str(fixed[k]) for i, k in original.items()})


def duplicate_sets(digests: Sequence[str]) -> list[list[int]]:
    """Indices of the images of each set with the same pixels, of two images or more."""
    by_digest = defaultdict(list)
    for i, digest in enumerate(digests):
        by_digest[digest].append(i)
    return [indices for indices in by_digest.values() if len(indices) > 1]
