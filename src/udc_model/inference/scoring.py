"""Decides any number of images and writes the decisions as Parquet, for ``udc score``.

The inputs are divided into parts of a fixed number, and each part is one file that is complete or absent. Batches of
the network end with the part, so the rows depend neither on interruptions nor on the number of processes. Worker
processes decode images ahead while the network computes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.data.workers import number_of_workers, run_in_workers
from udc_model.errors import Interrupted
from udc_model.files import Workspace, make_folder, only_writer
from udc_model.inference.decoding import Decoded, Decoder, killed
from udc_model.inference.inputs import BadInput, Input
from udc_model.inference.prediction import in_batches, named_outputs
from udc_model.inference.scored_parts import ScoredParts, ScoreRecord
from udc_model.inference.scoring_inputs import PART_SIZE, InputList
from udc_model.inference.stored_model import StoredModel
from udc_model.native.memory import keep_freed_memory

if TYPE_CHECKING:
    from udc_model.inference.classifier import TrainedClassifier

_PER_TASK = 8  # inputs that a worker process decodes at a time
_INPUTS = Path(".udc") / "inputs.jsonl"  # in the output folder


@dataclass
class Totals:
    """What was done: rows, inputs that cannot be used, and of this call the inputs and seconds."""

    rows: int = 0
    bad: int = 0
    inputs: int = 0
    seconds: float = 0.0


def score(
    inputs: Iterable[Input],
    stored: StoredModel,
    folder: Path,
    *,
    processes: int | None = None,
    restart: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, total, new: None,
) -> Totals:
    """Decide images, and write a folder of Parquet files; parts that are in it are not computed again.

    Parameters
    ----------
    inputs : the images. They are listed in a file before the first one is decoded.
    folder : of the output; it is created. See `ScoredParts`.
    processes : processes that decode images; 1 decodes in this process, None is one per core if there are many images.
    restart : remove what is in the folder, and begin again.
    progress : is called with the number of inputs that are done, of all, and of those that this call has done.

    Raises
    ------
    UdcError
        An input list cannot be read, the folder contains something else, or another process writes to it.
    Interrupted
        Ctrl-C; the message says how to continue.
    """
    parts = ScoredParts(make_folder(folder), stored.policy)
    parts.check_folder()
    with only_writer(Workspace(folder)):
        listed = InputList.write(folder / _INPUTS, inputs)
        parts.begin(_record(stored, listed), restart=restart)
        totals, missing = Totals(), []
        for number in range(listed.num_parts):
            if (counts := parts.counts(number)) is None:
                missing.append(number)
            else:
                totals.rows, totals.bad = totals.rows + counts.rows, totals.bad + len(counts.bad)
        done = listed.count - sum(map(listed.size_of_part, missing))
        run = _Run(listed, parts, missing, totals, lambda new: progress(done + new, listed.count, new))
        if missing:
            keep_freed_memory()
            run.score(stored.load(), processes)
        parts.write_bad_images(listed.num_parts)
    return totals


@dataclass
class _Run:
    """The parts that one call computes."""

    listed: InputList
    parts: ScoredParts
    missing: list[int]
    totals: Totals
    progress: Callable[[int], None]

    def score(self, classifier: TrainedClassifier, processes: int | None) -> None:
        """Compute the missing parts."""
        needed, started = frozenset(self.missing), time.monotonic()
        n_inputs = sum(map(self.listed.size_of_part, self.missing))
        decoder = Decoder(classifier.preprocessing)
        results = run_in_workers(decoder, self.listed.inputs(needed.__contains__), killed,
                                 processes or number_of_workers(n_inputs), _PER_TASK)  # fmt: skip
        decoded = (each for task in results for each in task)
        self.progress(0)
        try:
            for number in self.missing:
                bad: list[BadInput] = []
                in_part = islice(decoded, self.listed.size_of_part(number))
                frames = (frame for each in self._counted(in_part) for frame in decoder.frames_of(each, bad.append))
                self.totals.rows += self.parts.write(number, named_outputs(in_batches(frames), classifier), bad)
                self.totals.bad += len(bad)
        except KeyboardInterrupt:
            raise Interrupted(self._how_to_continue()) from None
        finally:
            results.close()
        self.totals.seconds = time.monotonic() - started

    def _counted(self, decoded: Iterable[Decoded]) -> Iterator[Decoded]:
        for each in decoded:
            yield each
            self.totals.inputs += 1
            self.progress(self.totals.inputs)

    def _how_to_continue(self) -> str:
        n_complete = sum(self.parts.counts(number) is not None for number in range(self.listed.num_parts))
        return (f"interrupted; {n_complete:,} of {self.listed.num_parts:,} parts are in {self.parts.folder}; run the "
                "same command again to continue")  # fmt: skip


def _record(stored: StoredModel, listed: InputList) -> ScoreRecord:
    """What determines the output."""
    import PIL
    import pyarrow
    import torch

    import udc_model
    from udc_model.models.factory import best_device, has_fast_bf16

    device = best_device()
    has_bf16 = stored.policy.precision == "bf16" and has_fast_bf16(torch.device(device))

    return ScoreRecord(
        udc_model=udc_model.__version__,
        torch=torch.__version__,
        pillow=PIL.__version__,
        pyarrow=pyarrow.__version__,
        device=f"{device} with bf16" if has_bf16 else device,
        model_sha256=stored.model.weights_sha256,
        preprocessing_sha256=_digest(json.dumps(stored.preprocessing.to_dict(), sort_keys=True)),
        policy_sha256=_digest(stored.policy.to_json()),
        inputs_sha256=listed.sha256,
        inputs=listed.count,
        part_size=PART_SIZE,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
