"""Applies a trained model and its policy to image files, for ``udc predict``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from textwrap import indent
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from udc_model.csv_files import csv_writer
from udc_model.data.background import computed_ahead
from udc_model.data.sources.records import printable
from udc_model.decisions.familiarity import FAMILIARITY, UNFAMILIAR
from udc_model.decisions.policy import Policy
from udc_model.inference.decoding import NamedImage, prepared_frames
from udc_model.inference.inputs import BadInput, Input
from udc_model.inference.outputs import Outputs
from udc_model.inference.stored_model import StoredModel
from udc_model.native.memory import keep_freed_memory

if TYPE_CHECKING:
    from udc_model.inference.classifier import TrainedClassifier

_BATCH = 64  # images of a forward pass


Row = dict[str, Any]
Item = TypeVar("Item")


def predict(
    inputs: Iterable[Input],
    stored: StoredModel,
    report: Callable[[BadInput], None],
    adapt: Callable[[Policy, NDArray[np.float32]], Policy] | None = None,
) -> Iterator[list[Row]]:
    """Decide images with a model and its policy, and yield them in batches.

    Files are decoded with the settings that are stored with the model: channels, frames, size limit, and the range of
    images deeper than 8 bits, outside of which values are clipped. With ``data.frames: each`` a file of several frames
    has a row for each, with the path ``name#2``.

    Parameters
    ----------
    inputs : the images; they are read one batch after the other.
    report : is called with each input that cannot be used.
    adapt : returns the policy to decide with, from the stored one and the logits (N, K) of all images, N > 0, which are
        then computed before the first decision.

    Yields
    ------
    One mapping per image with ``path`` and what `decided_rows` returns.
    """
    policy, batches = stored.policy, _outputs(inputs, stored, report)
    if adapt is not None:
        batches = iter(complete := list(batches))
        if complete:
            policy = adapt(policy, np.concatenate([outputs.logits for _, outputs in complete]))
    for names, outputs in batches:
        rows = decided_rows(outputs, policy)
        yield [{"path": name} | row for name, row in zip(names, rows, strict=True)]


def _outputs(
    inputs: Iterable[Input], stored: StoredModel, report: Callable[[BadInput], None]
) -> Iterator[tuple[list[str], Outputs]]:
    """Yield names and outputs of the images, in batches."""
    keep_freed_memory()
    classifier = stored.load()
    prepared = (image for each in inputs for image in prepared_frames(each, classifier.preprocessing, report))
    yield from named_outputs(computed_ahead(in_batches(prepared)), classifier)


def in_batches(frames: Iterator[NamedImage]) -> Iterator[list[NamedImage]]:
    """The images in batches of the network, of which the last one can be smaller."""
    return iter(lambda: list(islice(frames, _BATCH)), [])


def named_outputs(
    batches: Iterable[list[NamedImage]], classifier: TrainedClassifier
) -> Iterator[tuple[list[str], Outputs]]:
    """Yield names and outputs of each batch."""
    for batch in batches:
        names, images = zip(*batch, strict=True)
        yield list(names), classifier.outputs_of_stored(np.stack(images))


def decided_rows(outputs: Outputs, policy: Policy) -> list[Row]:
    """A mapping with ``class``, ``expected_cost`` and ``probabilities`` by class name for each of n images.

    Of a policy with familiarity also with ``familiarity``, a p-value, and ``unfamiliar``, whether it is small.
    """
    familiarity = policy.familiarity_of(outputs.distances)
    decisions, names, outcomes = policy.apply(outputs.logits, familiarity), policy.classes, policy.outcomes
    rows: list[Row] = [
        {
            "class": outcomes[decisions.decided[i]],
            "expected_cost": float(decisions.expected_cost[i]),
            "probabilities": dict(zip(names, decisions.probabilities[i].tolist(), strict=True)),
        }
        for i in range(len(outputs))
    ]
    if familiarity is not None:
        flags = policy.is_unfamiliar(familiarity).tolist()
        for row, value, flag in zip(rows, familiarity.tolist(), flags, strict=True):
            row |= {FAMILIARITY: value, UNFAMILIAR: flag}
    return rows


def write_predictions(batches: Iterable[list[Row]], form: str, stream: TextIO) -> None:
    """Write batches of `predict` to a stream as they come; ``form`` is ``json``, ``csv`` or ``table``.

    The columns of the table are as wide as the first batch needs.
    """
    write = {"json": _write_json, "csv": _write_csv, "table": _write_table}[form]
    write(iter(batches), stream)


def _write_json(batches: Iterator[list[Row]], stream: TextIO) -> None:
    """Write a list of objects, in the form of ``json.dumps(rows, indent=2)``."""
    separator = "["
    try:
        for rows in batches:
            for row in rows:
                stream.write(f"{separator}\n{indent(_json(row), '  ')}")
                separator = ","
            stream.flush()
    finally:
        stream.write("[]\n" if separator == "[" else "\n]\n")


def _json(row: Row) -> str:
    """An object as JSON; names of files that are not valid UTF-8 are escaped."""
    text = json.dumps(row, indent=2, ensure_ascii=False)
    return text if text.isascii() or not re.search("[\ud800-\udfff]", text) else json.dumps(row, indent=2)


def _write_csv(batches: Iterator[list[Row]], stream: TextIO) -> None:
    writer = csv_writer(stream.write)
    rows = next(batches, [])
    classes = list(rows[0]["probabilities"]) if rows else []
    others = [name for name in (FAMILIARITY, UNFAMILIAR) if rows and name in rows[0]]
    writer.writerow(["path", "class", "expected_cost", *[f"p_{name}" for name in classes], *others])
    for batch in chain([rows], batches):
        for row in batch:
            cells = [row["path"], row["class"], row["expected_cost"], *row["probabilities"].values()]
            writer.writerow([*cells, *(json.dumps(row[name]) for name in others)])
        stream.flush()


def _write_table(batches: Iterator[list[Row]], stream: TextIO) -> None:
    rows = next(batches, [])
    width = max([4, *(len(printable(row["path"])) for row in rows)])
    names = max([5, *(len(row["class"]) for row in rows)])
    heading = f"  {FAMILIARITY}" if rows and FAMILIARITY in rows[0] else ""
    stream.write(f"{'path':<{width}}  {'class':<{names}}  probability  expected cost{heading}\n")
    for batch in chain([rows], batches):
        for row in batch:
            probability = row["probabilities"].get(row["class"])  # None for a referral
            cell = f"{'-':>11}" if probability is None else f"{probability:>11.4f}"
            path = printable(row["path"])
            line = f"{path:<{width}}  {row['class']:<{names}}  {cell}  {row['expected_cost']:>13.4f}"
            stream.write(f"{line}{_familiarity_cell(row)}\n")
        stream.flush()


def _familiarity_cell(row: Row) -> str:
    """The last column of the table; empty for a policy without familiarity."""
    if FAMILIARITY not in row:
        return ""
    return f"  {row[FAMILIARITY]:>11.4f}" + (f"  {UNFAMILIAR}" if row[UNFAMILIAR] else "")
