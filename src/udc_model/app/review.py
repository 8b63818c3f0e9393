"""The review of labels: what is left to look at, corrections, and undo."""

from __future__ import annotations

import io
import shlex
import threading
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from udc_model.app.review_queue import QueueItem, review_queue
from udc_model.config import SPLITS
from udc_model.data.corrections import (
    Correction,
    read_corrections,
    record_correction,
    undo_correction,
    without_reviewed,
)
from udc_model.data.packed import PackedDataset
from udc_model.data.stored_images import StoredImages
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.records import Record

_Text = Annotated[str, Field(max_length=500)]


class Answer(Record):
    """What a person answers about an image of the queue."""

    path: Annotated[str, Field(max_length=4096)]
    action: Literal["relabel", "drop", "keep"]
    value: Annotated[str, Field(max_length=1024)] = ""
    author: _Text
    reason: _Text = ""


class Review:
    """The queue of a workspace and the corrections that were written since the start.

    Parameters
    ----------
    workspace : with ``evaluation/`` and ``data/prepared/``.
    classes : that an image can be relabelled with.
    author : proposed to the page.
    """

    def __init__(self, workspace: Workspace, classes: list[str], author: str) -> None:
        self.workspace, self.classes, self.author = workspace, classes, author
        self._written: list[tuple[Correction, Correction | None]] = []  # and what each replaced
        self._lock = threading.Lock()
        self._images: dict[str, StoredImages | NDArray[np.uint8]] = {}  # by split
        self._items: dict[str, QueueItem] = {}

    @property
    def command(self) -> str:
        """What applies the corrections and trains again."""
        folder = self.workspace.root.resolve()
        return "dvc repro" if folder == Path.cwd() else f"cd {shlex.quote(str(folder))} && dvc repro"

    def load(self) -> dict[str, Any]:
        """Read the queue again; what the page shows.

        Raises
        ------
        UdcError
            Prepared data, a table or the file of corrections is missing or damaged.
        """
        with self._lock:
            dataset = PackedDataset.open(self.workspace.prepared)
            self._images = {name: dataset.split(name).images for name in SPLITS}
            self._items = {each.path: each for each in review_queue(self.workspace, dataset)}
            pending = without_reviewed(self._items.values(), read_corrections(self.workspace.corrections))
            items = [asdict(each) for each in pending]
            return {"items": items, "reviewed": len(self._items) - len(items), "author": self.author,
                    "command": self.command, "file": str(self.workspace.corrections)}  # fmt: skip

    def answer(self, answer: Answer) -> dict[str, Any]:
        """Write the correction of an image of the queue.

        Raises
        ------
        UdcError
            The answer is not allowed, or the file cannot be read or written.
        """
        with self._lock:
            item = self._items.get(answer.path)
            if item is None:
                raise UdcError("the image is not in the queue; load the page again")
            if not answer.author.strip():
                raise UdcError("your name: enter it first; it is recorded with each correction")
            if answer.action == "relabel" and answer.value not in self.classes:
                raise UdcError(f"{answer.value or 'nothing'!r} is no class; choose one of the list")
            if answer.action == "relabel" and answer.value == item.label:
                raise UdcError(f"the label is {item.label} already; k keeps it")
            correction = Correction(item.path, item.sha256, answer.action, answer.value, answer.author.strip(),
                                    date.today().isoformat(), answer.reason.strip())  # fmt: skip
            self._written.append((correction, record_correction(self.workspace, correction)))
            return {"path": item.path}

    def undo(self) -> dict[str, Any]:
        """Take back the last correction; the path of its image, and action and value of the one before or None.

        Raises
        ------
        UdcError
            There is none, or the line was changed since; it then stays as it is, and is not tried again.
        """
        with self._lock:
            if not self._written:
                raise UdcError("nothing to undo: no correction was written since the start")
            written, former = self._written.pop()
            undo_correction(self.workspace, written, former)
            return {"path": written.path,
                    "former": None if former is None else {"action": former.action, "value": former.value}}  # fmt: skip

    def image(self, split: str, row: int) -> bytes:
        """A prepared image as a PNG file; :class:`UdcError` if there is none."""
        with self._lock:
            images = self._images.get(split)
        if images is None or not 0 <= row < len(images):
            raise UdcError("the prepared data has no such image; load the page again")
        file = io.BytesIO()
        Image.fromarray(np.array(images[row]).squeeze()).save(file, "PNG")
        return file.getvalue()
