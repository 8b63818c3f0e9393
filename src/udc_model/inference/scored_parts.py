"""The output of ``udc score``: a folder of Parquet files, one for each part, complete or absent at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udc_model.csv_files import csv_writer
from udc_model.data.sources.records import printable
from udc_model.decisions.familiarity import FAMILIARITY, UNFAMILIAR
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.files import atomic_file, write_atomically
from udc_model.inference.inputs import BadInput
from udc_model.inference.outputs import Outputs
from udc_model.records import Record, read_record

# Readers of a folder of Parquet files ignore names that begin with _ or a dot.
RECORD, BAD_IMAGES = "_score.json", "_bad_images.csv"
_ADVICE = "name another folder with --out, or score everything again with --restart"
_KEY = b"udc_bad_images"  # in the metadata of a part
_ROWS = 1024  # of a row group, at least; of a part of files with many frames, not all rows are in memory
_SHOWN = 12  # characters of a digest in a message


class ScoreRecord(Record):
    """What determines the rows, the parts and the bytes of the output."""

    udc_model: str
    torch: str
    pillow: str
    pyarrow: str
    device: str
    model_sha256: str
    preprocessing_sha256: str
    policy_sha256: str
    inputs_sha256: str
    inputs: int
    part_size: int


@dataclass(frozen=True)
class PartCounts:
    """What a part contains: rows, and inputs that cannot be used."""

    rows: int
    bad: list[BadInput]


@dataclass(frozen=True)
class ScoredParts:
    """The output folder of a policy."""

    folder: Path
    policy: Policy

    def check_folder(self) -> None:
        """:class:`UdcError` if the folder contains something else than such an output."""
        is_other = self.folder.is_dir() and not (self.folder / RECORD).exists()
        if is_other and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise UdcError(f"{self.folder}: is not empty and has no {RECORD}; name a new or empty folder with --out")

    def begin(self, record: ScoreRecord, *, restart: bool) -> None:
        """Write the record into the folder, or check that its parts are of the same inputs, model and versions.

        Parameters
        ----------
        restart : remove the parts instead.

        Raises
        ------
        UdcError
            They are not, and stay.
        """
        if (self.folder / RECORD).exists() and not restart:
            self._check_same(record)
            return
        for path in (self.folder / BAD_IMAGES, *self.folder.glob("part-*.parquet")):
            path.unlink(missing_ok=True)
        write_atomically(self.folder / RECORD, json.dumps(record.model_dump(), indent=2) + "\n")

    def _check_same(self, record: ScoreRecord) -> None:
        before, now = read_record(self.folder / RECORD, ScoreRecord, _ADVICE).model_dump(), record.model_dump()
        differing = [f"{name} ({_shown(before[name])}, now {_shown(now[name])})" for name in now
                     if before[name] != now[name]]  # fmt: skip
        if differing:
            raise UdcError(f"{self.folder}: the parts in it were scored with other values of {', '.join(differing)}; "
                           f"{_ADVICE}")  # fmt: skip

    def path(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def counts(self, number: int) -> PartCounts | None:
        """What a part contains; None if it is absent or damaged, so that it must be computed."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            metadata = pq.read_metadata(self.path(number))
            bad = json.loads((metadata.metadata or {})[_KEY])
            return PartCounts(metadata.num_rows, [BadInput(str(name), str(reason)) for name, reason in bad])
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
            return None

    def write(self, number: int, batches: Iterable[tuple[list[str], Outputs]], bad: list[BadInput]) -> int:
        """Write a part.

        Parameters
        ----------
        batches : names and outputs of the images.
        bad : the inputs that cannot be used; it is complete when the batches end.

        Returns
        -------
        The number of rows.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema, rows = self._schema(), 0
        with atomic_file(self.path(number)) as scratch:
            with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
                group: list[Any] = []
                for names, outputs in batches:
                    group.append(pa.table(self._columns(names, outputs), schema=schema))
                    rows += len(names)
                    if sum(map(len, group)) >= _ROWS:
                        writer.write_table(pa.concat_tables(group))
                        group = []
                if group:
                    writer.write_table(pa.concat_tables(group))
                writer.add_key_value_metadata({_KEY: json.dumps([[each.name, each.reason] for each in bad])})
            _sync(scratch)
        return rows

    def store(self, number: int, contents: bytes) -> None:
        """Write a part that `write` has written in another folder."""
        with atomic_file(self.path(number)) as scratch:
            scratch.write_bytes(contents)
            _sync(scratch)

    def _schema(self) -> Any:
        import pyarrow as pa

        numbers = ["expected_cost", *(f"p_{name}" for name in self.policy.classes),
                   *(f"cost_{name}" for name in self.policy.outcomes)]  # fmt: skip
        fields = [("path", pa.string()), ("class", pa.string()), *((name, pa.float32()) for name in numbers)]
        if self.policy.familiarity is not None:
            fields += [(FAMILIARITY, pa.float32()), (UNFAMILIAR, pa.bool_())]
        return pa.schema(fields)

    def _columns(self, names: list[str], outputs: Outputs) -> list[Any]:
        """The columns of `_schema`: the decision as in ``udc predict --csv``, the expected cost of each outcome, and
        the familiarity."""
        familiarity = self.policy.familiarity_of(outputs.distances)
        decisions = self.policy.apply(outputs.logits, familiarity)
        outcomes = self.policy.outcomes
        numbers = [decisions.expected_cost, *decisions.probabilities.T, *decisions.expected_costs.T]
        columns = [names, [outcomes[k] for k in decisions.decided], *(column.astype(np.float32) for column in numbers)]
        if familiarity is not None:
            columns += [familiarity.astype(np.float32), self.policy.is_unfamiliar(familiarity)]
        return columns

    def write_bad_images(self, num_parts: int) -> None:
        """Write the list of the inputs that cannot be used, from all parts."""
        with (
            atomic_file(self.folder / BAD_IMAGES) as scratch,
            scratch.open("w", encoding="utf-8", newline="") as handle,
        ):
            writer = csv_writer(handle.write)
            writer.writerow(["path", "reason"])
            for number in range(num_parts):
                writer.writerows((each.name, printable(each.reason)) for each in self._bad(number))

    def _bad(self, number: int) -> Iterator[BadInput]:
        counts = self.counts(number)
        if counts is None:
            raise UdcError(f"{self.path(number)}: was removed or damaged meanwhile; run the same command again")
        yield from counts.bad


def _sync(path: Path) -> None:
    """Flush a file to disk: after a power loss, a part with a name is complete."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _shown(value: Any) -> str:
    text = str(value)
    return text[:_SHOWN] if len(text) == 64 else text
