"""Lists the images for ``udc score``: files, folders, lists, tables and tar shards; the list is kept on disk.

The order of the list decides which images share a part of the output and a batch of the network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from udc_model.data.sources.columns import find_path_column
from udc_model.data.sources.finder import is_file_below, unsafe_path
from udc_model.data.sources.listing import is_utf8
from udc_model.data.sources.records import Rejection, printable
from udc_model.data.sources.shards import ShardMember, is_shard, list_shard
from udc_model.data.sources.tables import is_table, open_table
from udc_model.errors import UdcError
from udc_model.files import atomic_file
from udc_model.inference.inputs import STDIN, BadInput, ImageInput, Input, inputs_at, listed_paths

PART_SIZE = 1024  # inputs of a part of the output


def list_scoring_inputs(paths: Sequence[str], list_file: str | None, column: str | None) -> Iterator[Input]:
    """The images of files, folders, tables, tar shards and a list, one after the other.

    Parameters
    ----------
    paths : files, folders, whose images are listed by path, tables (by the end of their name) of paths relative to the
        folder of the table, and ``.tar`` files, whose images get the name ``FILE/MEMBER``.
    list_file : file with one path per line, or between null characters; ``-`` is standard input.
    column : column of images in the tables; None finds it by the usual names.

    Raises
    ------
    UdcError
        There is no input, an input is named twice, or a list or table cannot be read.
    """
    if not paths and list_file is None:
        raise UdcError("nothing to score: name images, folders, tables or tar files, or --from-list FILE")
    if STDIN in paths:
        raise UdcError("-: an image on standard input cannot be read again after an interruption; use udc predict")
    if column is not None and not any(map(is_table, paths)):
        raise UdcError("--column: no input is a table (.csv, .parquet, …)")
    _check_distinct(paths)
    for path in filter(is_table, paths):
        if not Path(path).is_file():
            raise UdcError(f"{printable(path)}: no such file")
    return _inputs(paths, () if list_file is None else listed_paths(list_file), column)


def _check_distinct(paths: Sequence[str]) -> None:
    """:class:`UdcError` if a path is given twice, or is below another one."""
    given: dict[Path, str] = {}
    for path in paths:
        try:
            place = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):  # listing it gives the reason
            continue
        if place in given:
            raise UdcError(f"{printable(path)}: is named twice; name it once")
        given[place] = path
    for place, path in given.items():
        if outer := next((given[parent] for parent in place.parents if parent in given), None):
            raise UdcError(f"{printable(path)}: is in the folder {printable(outer)}; name one of them")


def _inputs(paths: Sequence[str], listed: Iterable[str], column: str | None) -> Iterator[Input]:
    for path in paths:
        for each in _in_table(Path(path), column) if is_table(path) else _at(path):
            yield _checked(each)
    for path in listed:
        for each in _at(path):
            yield _checked(each)


def _checked(each: Input) -> Input:
    """The input, or why it cannot be scored."""
    if not is_utf8(each.name):
        return BadInput(printable(each.name), "its name is not UTF-8; rename it")
    if isinstance(each, ImageInput) and isinstance(each.source, bytes):
        return BadInput(each.name, "is not a regular file, and could not be read again; copy it to a file")
    return each


def _at(path: str) -> Iterator[Input]:
    if not is_shard(path) or not Path(path).is_file():
        yield from inputs_at(path)
        return
    shard = Path(path)
    try:
        for member in list_shard(shard):
            name = f"{shard}/{member.path if isinstance(member, Rejection) else member.name}"
            yield BadInput(name, member.reason) if isinstance(member, Rejection) else ImageInput(name, member)
    except UdcError as error:
        yield BadInput(str(shard), str(error))


def _in_table(path: Path, column: str | None) -> Iterator[Input]:
    """The images of a table, with the names in the table."""
    columns, rows = open_table(path, if_no_text="convert the table to UTF-8")
    position = find_path_column(path, columns, column)
    for line, cells in rows:
        cell = cells[position]
        if not cell:
            yield BadInput(f"{path}:{line}", "has no image")
        elif reason := unsafe_path(cell):
            yield BadInput(cell, reason.replace("data.path", "the folder of the table"))
        elif is_file_below(path.parent, cell):
            yield ImageInput(cell, path.parent / cell)
        else:
            yield BadInput(cell, f"no such file in {path.parent}")


@dataclass(frozen=True)
class InputList:
    """Inputs in a file, one JSON array a line.

    Attributes
    ----------
    path : the file.
    count : number of inputs.
    sha256 : digest of the file: names, and sizes in bytes.
    """

    path: Path
    count: int
    sha256: str

    @classmethod
    def write(cls, path: Path, inputs: Iterable[Input]) -> InputList:
        """Write inputs to a file, which is replaced."""
        digest, count = hashlib.sha256(), 0
        with atomic_file(path) as scratch, scratch.open("wb") as handle:
            for each in inputs:
                line = json.dumps(_fields(each), separators=(",", ":")).encode() + b"\n"
                digest.update(line)
                handle.write(line)
                count += 1
        return cls(path, count, digest.hexdigest())

    @property
    def num_parts(self) -> int:
        """Number of parts of `PART_SIZE` inputs; the last one can have fewer."""
        return -(-self.count // PART_SIZE)

    def size_of_part(self, number: int) -> int:
        """Number of inputs of a part."""
        return min(PART_SIZE, self.count - number * PART_SIZE)

    def inputs(self, is_needed: Callable[[int], bool]) -> Iterator[Input]:
        """The inputs of the parts whose numbers fulfil a condition."""
        with self.path.open("rb") as handle:
            for number in range(self.num_parts):
                lines = islice(handle, self.size_of_part(number))
                if is_needed(number):
                    yield from (_input(*json.loads(line)) for line in lines)
                else:
                    for _ in lines:
                        pass


def _fields(each: Input) -> list[Any]:
    """An input as JSON: its name and the arguments of `_input`."""
    if isinstance(each, BadInput):
        return [each.name, each.reason]
    assert not isinstance(each.source, bytes)  # _checked
    if isinstance(each.source, ShardMember):
        return [each.name, each.source.size, str(each.source.shard), each.source.name, each.source.offset]
    try:
        size = each.source.stat().st_size
    except OSError:  # decoding gives the reason
        size = -1
    return [each.name, size, *([] if str(each.source) == each.name else [str(each.source)])]


def _input(
    name: str, size_or_reason: int | str, file: str | None = None, member: str | None = None, offset: int = 0
) -> Input:
    if isinstance(size_or_reason, str):
        return BadInput(name, size_or_reason)
    path = Path(name if file is None else file)
    return ImageInput(name, path if member is None else ShardMember(path, member, offset, size_or_reason))
