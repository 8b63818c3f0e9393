"""Describes in a few lines what was recognised in a source."""

from __future__ import annotations

from collections import Counter

from udc_model.config import SPLITS
from udc_model.data.sources.records import ImageSource, count_by_reason, join_for_message, printable
from udc_model.data.sources.subgroups import describe_divisions

_MAX_CLASSES = 12  # listed with their number of images
_MAX_EXAMPLES = 3


def describe_source(source: ImageSource) -> list[str]:
    """Lines about layout, classes, splits, groups, what is left out and why, and what is suspicious."""
    counts = Counter(record.label for record in source.records)
    classes = [f"{name} {counts[name]:,}" for name in source.classes[:_MAX_CLASSES]]
    more = len(source.classes) - _MAX_CLASSES
    lines = [
        f"found {source.layout}",
        f"{len(source.records):,} images of {len(source.classes)} classes: {join_for_message(classes)}"
        + (f", … and {more} more classes" if more > 0 else ""),
    ]
    by_split = Counter(record.split for record in source.records)
    if set(by_split) - {None}:
        parts = [f"{name} {by_split[name]:,}" for name in SPLITS if by_split[name]]
        without = f"; {by_split[None]:,} images without a split" if by_split[None] else ""
        lines.append(f"splits as found: {', '.join(parts)}{without}")
    groups = {record.group for record in source.records} - {None}
    if groups:
        lines.append(f"{len(groups):,} groups")
    lines += describe_divisions(source.divisions, source.records)
    if source.rejected:
        lines.append(f"{len(source.rejected):,} image(s) cannot be used")
    if source.left_out:
        lines.append(f"left out: {_left_out(source)}")
    return lines + source.notes


def _left_out(source: ImageSource) -> str:
    parts = []
    for reason, count in count_by_reason(source.left_out).items():
        examples = [printable(item.path) for item in source.left_out if item.reason == reason][:_MAX_EXAMPLES]
        parts.append(f"{count:,} × {reason} ({', '.join(examples)}{', …' if count > len(examples) else ''})")
    return "; ".join(parts)
