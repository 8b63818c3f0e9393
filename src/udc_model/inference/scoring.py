"""Decides any number of images and writes the decisions as Parquet, for ``udc score``.

The inputs are divided into parts of a fixed number, and each part is one file that is complete or absent. Batches of
the network end with the part, so the rows depend neither on interruptions nor on the number of processes. Worker
processes decode images ahead while the network computes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
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
from udc_model.inference.scored_parts import PartCounts, ScoredParts, ScoreRecord
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

    def add(self, counts: PartCounts) -> None:
        """Add what a part contains."""
        self.rows, self.bad = self.rows + counts.rows, self.bad + len(counts.bad)


@dataclass(frozen=True)
class MissingParts:
    """The parts of an output that are to be computed, and with what.

    Attributes
    ----------
    stored : the model and its policy.
    parts : the output, where an engine writes each part.
    listed : all inputs.
    numbers : of the parts, ascending.
    record : what determines the output.
    processes : processes that decode images for a network; None is one per core if there are many images.
    count : is called with a number of inputs that were processed since the last call.
    """

    stored: StoredModel
    parts: ScoredParts
    listed: InputList
    numbers: list[int]
    record: ScoreRecord
    processes: int | None
    count: Callable[[int], None]

    def inputs(self) -> Iterator[Input]:
        """The inputs of the parts, one after the other."""
        return self.listed.inputs(frozenset(self.numbers).__contains__)

    def sizes(self) -> dict[int, int]:
        """The number of inputs of each part."""
        return {number: self.listed.size_of_part(number) for number in self.numbers}


Engine = Callable[[MissingParts], Generator[PartCounts, None, None]]
"""Computes and writes parts, in any order, and yields what each contains."""


def score_here(missing: MissingParts) -> Generator[PartCounts, None, None]:
    """The engine that computes in this process, with decoders in processes of this machine."""
    keep_freed_memory()
    classifier, sizes = missing.stored.load(), missing.sizes()
    return write_parts(missing.parts, sizes, missing.inputs(), classifier, missing.processes, missing.count)


def write_parts(
    parts: ScoredParts,
    sizes: dict[int, int],
    inputs: Iterable[Input],
    classifier: TrainedClassifier,
    processes: int | None,
    count: Callable[[int], None] = lambda new: None,
) -> Generator[PartCounts, None, None]:
    """Compute and write parts one after the other, and yield what each contains.

    Parameters
    ----------
    sizes : the number of inputs of each part, by the number of the part.
    inputs : of these parts, in this order.
    processes, count : see `MissingParts`.
    """
    decoder = Decoder(classifier.preprocessing)
    processes = processes or number_of_workers(sum(sizes.values()))
    results = run_in_workers(decoder, inputs, killed, processes, _PER_TASK)
    decoded = _counted((each for task in results for each in task), count)
    try:
        for number, size in sizes.items():
            bad: list[BadInput] = []
            frames = (frame for each in islice(decoded, size) for frame in decoder.frames_of(each, bad.append))
            yield PartCounts(parts.write(number, named_outputs(in_batches(frames), classifier), bad), bad)
    finally:
        results.close()


def _counted(decoded: Iterable[Decoded], count: Callable[[int], None]) -> Iterator[Decoded]:
    for each in decoded:
        count(1)  # before it is used: after the last one, nobody asks for another
        yield each


def score(
    inputs: Iterable[Input],
    stored: StoredModel,
    folder: Path,
    *,
    processes: int | None = None,
    restart: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, total, new: None,
    engine: Engine = score_here,
) -> Totals:
    """Decide images, and write a folder of Parquet files; parts that are in it are not computed again.

    Parameters
    ----------
    inputs : the images. They are listed in a file before the first one is decoded.
    folder : of the output; it is created. See `ScoredParts`.
    processes : processes that decode images; 1 decodes in this process, None is one per core if there are many images.
    restart : remove what is in the folder, and begin again.
    progress : is called with the number of inputs that are done, of all, and of those that this call has done.
    engine : computes the missing parts; the bytes of the output are the same with all engines.

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
        record = _record(stored, listed)
        parts.begin(record, restart=restart)
        totals, numbers = Totals(), []
        for number in range(listed.num_parts):
            if (counts := parts.counts(number)) is None:
                numbers.append(number)
            else:
                totals.add(counts)
        before = listed.count - sum(map(listed.size_of_part, numbers))

        def count(new: int) -> None:
            totals.inputs += new
            progress(before + totals.inputs, listed.count, totals.inputs)

        if numbers:
            _compute(MissingParts(stored, parts, listed, numbers, record, processes, count), engine, totals)
        parts.write_bad_images(listed.num_parts)
    return totals


def _compute(missing: MissingParts, engine: Engine, totals: Totals) -> None:
    """Compute the missing parts, and add what they contain to the totals."""
    started = time.monotonic()
    missing.count(0)
    try:
        with closing(engine(missing)) as results:
            for counts in results:
                totals.add(counts)
    except KeyboardInterrupt:
        raise Interrupted(_how_to_continue(missing.parts, missing.listed)) from None
    totals.seconds = time.monotonic() - started


def _how_to_continue(parts: ScoredParts, listed: InputList) -> str:
    n_complete = sum(parts.counts(number) is not None for number in range(listed.num_parts))
    return (f"interrupted; {n_complete:,} of {listed.num_parts:,} parts are in {parts.folder}; run the "
            "same command again to continue")  # fmt: skip


def _record(stored: StoredModel, listed: InputList) -> ScoreRecord:
    """What determines the output."""
    return ScoreRecord(
        **machine_record(stored),
        model_sha256=stored.model.weights_sha256,
        preprocessing_sha256=_digest(json.dumps(stored.preprocessing.to_dict(), sort_keys=True)),
        policy_sha256=_digest(stored.policy.to_json()),
        inputs_sha256=listed.sha256,
        inputs=listed.count,
        part_size=PART_SIZE,
    )


def machine_record(stored: StoredModel) -> dict[str, str]:
    """What of this machine determines the output: the fields of `ScoreRecord` with versions and device."""
    import PIL
    import pyarrow
    import torch

    import udc_model
    from udc_model.models.factory import best_device, has_fast_bf16

    device = best_device()
    arithmetic = [device]  # what the last bits of logits depend on
    if device == "cpu":
        arithmetic += [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    elif device == "cuda":
        arithmetic.append(torch.cuda.get_device_name())
    if stored.policy.precision == "bf16" and has_fast_bf16(torch.device(device)):
        arithmetic.append("bf16")
    return {
        "udc_model": udc_model.__version__,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "pyarrow": pyarrow.__version__,
        "device": ", ".join(arithmetic),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
