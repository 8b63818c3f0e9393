"""Reviews the images of a data set, and orders what was found by what it means for the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from udc_model.data.assignment import UsableImage
from udc_model.data.copies import duplicate_sets
from udc_model.data.quality.group_names import GroupProposal, propose_group
from udc_model.data.quality.near_duplicates import NearDuplicates
from udc_model.data.quality.outliers import Outliers, find_outliers
from udc_model.data.quality.shortcuts import Shortcut, find_shortcuts, shortcut_summary
from udc_model.data.quality.traits import StoredTraits
from udc_model.data.splits import connected_components


@dataclass(frozen=True)
class Review:
    """What is suspicious about N images.

    Attributes
    ----------
    near : clusters of near-duplicates.
    copies : indices of the images of each set with the same pixels.
    conflicts : indices of the images of each set of copies or near-duplicates that has several labels.
    crossing : indices of the images of each set of copies or near-duplicates that is in several splits; empty without
        splits.
    shortcuts : classes that can be predicted from what should not matter.
    proposal : a value of ``data.group``; None if it is set, or if no file names suggest one.
    outliers : images far from the others.
    """

    near: NearDuplicates
    copies: list[list[int]]
    conflicts: list[list[int]]
    crossing: list[list[int]] = field(default_factory=list)
    shortcuts: list[Shortcut] = field(default_factory=list)
    proposal: GroupProposal | None = None
    outliers: list[Outliers] = field(default_factory=list)

    def sentences(self, n_images: int, n_broken: int) -> list[str]:
        """What was found, the most important first: what makes a result wrong, then what makes a model worse."""
        clusters = self.near.clusters
        in_clusters = sum(map(len, clusters))
        sentences = []
        if self.proposal:
            sentences.append(f"a random split leaks: {self.proposal.to_text()}")
        if clusters:
            across = f", {len(self.crossing):,} of them across splits" if self.crossing else ""
            sentences.append(
                f"{in_clusters:,} of {n_images:,} images are near-duplicates in {len(clusters):,} cluster(s){across}: "
                "a test image like a training image makes the result look better than it is (data.near_duplicates: "
                "group keeps each cluster in one split)"
            )
        if self.conflicts:
            sentences.append(f"{len(self.conflicts):,} set(s) of copies or near-duplicates have different labels: one "
                             "of the labels is wrong, or the classes overlap")  # fmt: skip
        if self.shortcuts:
            sentences.append(f"possible shortcut: {shortcut_summary(self.shortcuts)}; a network may learn it instead "
                             "of what the images show")  # fmt: skip
        if n_broken:
            sentences.append(f"{n_broken:,} image(s) cannot be used")
        if self.copies:
            n_copies = sum(len(images) - 1 for images in self.copies)
            sentences.append(f"{n_copies:,} image(s) have the pixels of another one")
        sentences += [f"{len(each.images):,} image(s) differ from the others in {each.property}, most {each.values[0]}"
                      for each in self.outliers]  # fmt: skip
        return sentences

    def notes(self) -> list[str]:
        """The sentences for the evaluation report: what makes its result doubtful, and no other note says."""
        notes = [f"a random split may leak: {self.proposal.to_text()}"] if self.proposal else []
        if self.shortcuts:
            notes.append(f"possible shortcut: {shortcut_summary(self.shortcuts)} (data/prepared/data_report.html)")
        return notes


def review(
    usable: Sequence[UsableImage],
    near: NearDuplicates,
    traits: StoredTraits,
    splits: Sequence[str] | None,
    group: str | None,
) -> Review:
    """Review N images.

    Parameters
    ----------
    usable : the images.
    near, traits : of the images.
    splits : of the images; ``""`` for one that is left out. None if they have none yet.
    group : ``data.group``.
    """
    paths, labels = [image.record.path for image in usable], [image.record.label for image in usable]
    digests = [image.checked.sha256 for image in usable]
    sizes = np.array([[image.checked.width, image.checked.height] for image in usable], dtype=np.intp).reshape(-1, 2)
    clusters = [str(k) if k >= 0 else None for k in near.cluster]
    units: NDArray[np.intp] = connected_components(len(usable), [[i.record.group for i in usable], digests, clusters])
    copies = duplicate_sets(digests)
    sets: list[list[int]] = [*(images.tolist() for images in near.clusters)]
    sets += [images for images in copies if near.cluster[images[0]] < 0]
    has_groups = any(image.record.group for image in usable)
    return Review(
        near,
        copies,
        [images for images in sets if len({labels[i] for i in images}) > 1],
        [images for images in sets if splits is not None and len({splits[i] for i in images} - {""}) > 1],
        find_shortcuts(paths, labels, units, sizes, traits),
        None if has_groups or group else propose_group(paths, labels, traits),
        find_outliers(sizes, traits),
    )
