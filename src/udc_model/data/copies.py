"""Copies of images across splits that the user assigned: which are left out, and what is reported about copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from udc_model.config import SPLITS


@dataclass(frozen=True)
class CopiesAcrossSplits:
    """Images with the same pixels as an image of another split.

    Attributes
    ----------
    original : index of the image that remains, by index of its copy.
    split_of_original : split of that image, by index of the copy; without copies that corrections drop anyway.
    split_of_group : split that the copy has by its group only, by index of the copy.
    """

    original: dict[int, int]
    split_of_original: dict[int, str]
    split_of_group: dict[int, str] = field(default_factory=dict)

    def reason(self, index: int) -> str:
        """Why the copy is left out."""
        group = f", in a group of the {self.split_of_group[index]} split" if index in self.split_of_group else ""
        return f"copy of an image in the {self.split_of_original[index]} split{group}"

    def counts(self) -> dict[str, int]:
        """Number of copies by split of their original."""
        return dict(Counter(self.split_of_original.values()))


def copies_across_splits(
    digests: Sequence[str], fixed: Sequence[str | None], is_dropped: Sequence[bool]
) -> CopiesAcrossSplits:
    """Find the images that must not be trained on, because an image of a later split has the same pixels.

    A user's own test set is never changed: the image of the last split in the order of `SPLITS` remains. An image
    without a split is no copy in this sense of an image of ``train``, which it follows. Of an image that remains, no
    copy is left out because of one that corrections drop.

    Parameters
    ----------
    digests : of the decoded pixels of each of N images.
    fixed : split that the user assigned, or None.
    is_dropped : whether corrections drop the image.
    """
    original: dict[int, int] = {}
    for indices in _by_digest(digests):
        splits = {fixed[i] for i in indices}
        if len(splits) < 2 or splits == {None, "train"}:
            continue
        candidates = [i for i in indices if not is_dropped[i]] or indices
        remaining = max(candidates, key=lambda i: _rank(fixed[i]))
        original |= {i: remaining for i in indices if fixed[i] not in _same_unit(fixed[remaining])}
    return CopiesAcrossSplits(original, {i: str(fixed[k]) for i, k in original.items() if not is_dropped[i]})


def copies_across_groups(
    digests: Sequence[str],
    fixed: Sequence[str | None],
    with_groups: Sequence[str | None],
    is_dropped: Sequence[bool],
) -> CopiesAcrossSplits:
    """Find the images without a split that have the pixels of an image in another split than their group.

    Groups and copies are not divided, so such an image would connect two splits. An image with a split of its own
    always remains. Of images that have one by their groups, those of the last split in the order of `SPLITS` remain.

    Parameters
    ----------
    digests, fixed, is_dropped : as in `copies_across_splits`; the copies that it finds are not looked at again.
    with_groups : the splits from `with_splits_of_groups`.
    """
    original: dict[int, int] = {}
    for indices in _by_digest(digests):
        if not {with_groups[i] for i in indices} - {None} or {fixed[i] for i in indices} - {None, "train"}:
            continue
        candidates = [i for i in indices if not is_dropped[i]] or indices
        remaining = max(candidates, key=lambda i: (fixed[i] is not None, _rank(with_groups[i])))
        original |= {i: remaining for i in indices if with_groups[i] not in _same_unit(with_groups[remaining])}
    return CopiesAcrossSplits(
        original,
        {i: str(with_groups[k]) for i, k in original.items() if not is_dropped[i]},
        {i: split for i in original if (split := with_groups[i]) is not None},
    )


def _rank(split: str | None) -> int:
    return -1 if split is None else SPLITS.index(split)


def _same_unit(split: str | None) -> tuple[str | None, ...]:
    """The splits of the copies that stay with an image; one without a split follows an image of ``train``."""
    return (None, "train") if split == "train" else (split,)


def duplicate_sets(digests: Sequence[str]) -> list[list[int]]:
    """Indices of the images of each set with the same pixels, of two images or more."""
    return [indices for indices in _by_digest(digests) if len(indices) > 1]


def _by_digest(digests: Sequence[str]) -> list[list[int]]:
    """Indices of the images with the same pixels, of each digest."""
    by_digest = defaultdict(list)
    for i, digest in enumerate(digests):
        by_digest[digest].append(i)
    return list(by_digest.values())
