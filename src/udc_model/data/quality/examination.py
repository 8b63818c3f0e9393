"""The images that stage prepare and ``udc inspect`` examine: what was measured, clusters, review and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from udc_model.config import DataParams
from udc_model.data.assignment import UsableImage, usable_images
from udc_model.data.audit import Audit
from udc_model.data.quality.data_report import DataReport
from udc_model.data.quality.near_duplicates import NearDuplicates, find_near_duplicates
from udc_model.data.quality.review import Review, review
from udc_model.data.quality.traits import StoredTraits
from udc_model.data.scratch import Scratch
from udc_model.data.sources import ImageSource, LeftOut, Rejection, describe_source


@dataclass(frozen=True)
class Examination:
    """The N usable images of a source, what was measured of them, and the clusters of near-duplicates among them."""

    usable: list[UsableImage]
    traits: StoredTraits
    near: NearDuplicates

    @classmethod
    def of(cls, audit: Audit) -> Examination:
        """Examine the images that were checked; the files of the audit must exist as long as the result is used."""
        usable = usable_images(audit)
        traits = StoredTraits(audit.traits, np.array([image.checked.scratch_row for image in usable], dtype=np.intp))
        return cls(usable, traits, find_near_duplicates(traits, [image.checked.sha256 for image in usable]))

    def corrected(self, usable: list[UsableImage]) -> Examination:
        """The same N images after corrections, without those that were dropped."""
        kept = np.array([not image.is_dropped for image in usable], dtype=bool)
        remaining = [image for image in usable if not image.is_dropped]
        return Examination(remaining, self.traits.among(kept), self.near.among(kept))

    def review(self, splits: Sequence[str] | None, params: DataParams) -> Review:
        """Review the images; ``splits`` as in `udc_model.data.quality.review.review`."""
        return review(self.usable, self.near, self.traits, splits, params.group)

    def report(
        self,
        source: ImageSource,
        audit: Audit,
        scratch: Scratch,
        found: Review,
        splits: Sequence[str] | None,
        rejected: Sequence[Rejection],
        left_out: Sequence[LeftOut],
        name: str,
    ) -> DataReport:
        """The report about the images, of the data ``name``; the other parameters are those of `DataReport`."""
        rows = [image.checked.scratch_row for image in self.usable]
        return DataReport(
            name if source.pixels is None else source.layout,
            describe_source(source),
            self.usable,
            splits,
            found,
            rejected,
            left_out,
            scratch.images(rows, audit.preprocessing),
        )
