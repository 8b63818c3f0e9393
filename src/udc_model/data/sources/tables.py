"""Reads tables of untrusted origin: CSV with commas, semicolons or tabs, Parquet, JSON lines, COCO, Excel."""

from __future__ import annotations

import codecs
import csv
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udc_model.data.sources.records import join_for_message, printable
from udc_model.errors import UdcError

_MAX_BYTES = 2**30  # of a table, uncompressed
_MAX_CELLS = 100_000_000
_NAME_ENCODING = "name its encoding in data.encoding, as latin-1, cp1252 or utf-16"
Rows = Iterator[tuple[int, Sequence[Any]]]
_SEPARATOR = re.compile(r'"?sep=([,;|\t])"?', re.IGNORECASE)  # first line that Excel reads and writes
_BYTE_ORDER_MARK = "\ufeff"
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes
    ----------
    path : its file.
    columns : C different names without surrounding spaces.
    rows : line number and C cells without surrounding spaces of each row; an absent cell is ``""``.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[int, Sequence[str]]]

    def where(self, line: int) -> str:
        """The place of a row for a message, ``file:line``."""
        return f"{printable(str(self.path))}:{line}"


def is_table(name: str) -> bool:
    """Whether a file name ends as a table that `read_table` reads."""
    return Path(name).suffix.lower() in _READERS


def read_table(path: Path, encoding: str | None = None) -> Table:
    """Read a table; its format follows from the end of the name, its delimiter from the first line.

    Parameters
    ----------
    encoding : of a text file; None stands for that of its byte order mark, or UTF-8.

    Raises
    ------
    UdcError
        The file is missing, damaged, too large, empty, or has two columns of one name.
    """
    columns, rows = open_table(path, encoding)
    return Table(path, columns, list(rows))


def open_table(
    path: Path, encoding: str | None = None, if_no_text: str = _NAME_ENCODING
) -> tuple[list[str], Iterator[tuple[int, Sequence[str]]]]:
    """The columns of a table, and an iterator of its rows, of which one at a time is in memory (CSV and Parquet).

    Other parameters, values and errors are those of `read_table`; errors of rows are raised by the iterator.

    Parameters
    ----------
    if_no_text : what to do if the table is text in another encoding.
    """
    reader = _READERS.get(path.suffix.lower(), _read_csv)
    with _errors_of(path, encoding, if_no_text):
        if path.stat().st_size > _MAX_BYTES:
            raise UdcError(f"{path}: is larger than 1 GiB; split it into several files")
        rows = reader(path, encoding)
        _, header = next(rows, (0, []))
        columns = [_text(name) for name in header]
        _check_columns(path, columns)
        n = len(columns)

    def texts_of_rows() -> Iterator[tuple[int, Sequence[str]]]:
        with _errors_of(path, encoding, if_no_text):
            for line, cells in rows:
                texts = _padded(path, line, cells, n)
                if any(texts):
                    yield line, texts

    return columns, texts_of_rows()


@contextmanager
def _errors_of(path: Path, encoding: str | None, if_no_text: str) -> Iterator[None]:
    """Turn what reading a table raises into `UdcError`."""
    try:
        yield
    except FileNotFoundError:
        raise UdcError(
            f"{printable(str(path))}: no such file; data.csv_files must name files inside data.path"
        ) from None
    except UnicodeError:
        raise UdcError(f"{path}: is not {encoding or 'UTF-8'} text; {if_no_text}") from None
    except LookupError:
        raise UdcError(f"data.encoding: {encoding!r} is no encoding that Python knows, as latin-1 or cp1252") from None
    except (OSError, csv.Error, ValueError, RecursionError) as error:
        raise UdcError(f"{printable(str(path))}: cannot be read as a table: {error}") from None


def _check_columns(path: Path, columns: list[str]) -> None:
    if not any(columns):
        raise UdcError(f"{printable(str(path))}: is empty")
    twice = sorted({name for name in columns if name and columns.count(name) > 1}) if len(columns) < 10_000 else ["…"]
    if twice:
        raise UdcError(f"{printable(str(path))}: has several columns called {join_for_message(twice)}")


def _padded(path: Path, line: int, cells: Sequence[Any], n: int) -> tuple[str, ...]:
    texts = [_text(cell) for cell in cells]
    if len(texts) > n and any(texts[n:]):
        raise ValueError(f"line {line} has {len(texts)} cells, the first line {n}")
    return tuple(texts[:n] + [""] * (n - len(texts)))


def _text(cell: Any) -> str:
    """A cell as text. Whole numbers have no decimals, because pandas turns integers beside empty cells to floats."""
    if cell is None or cell != cell:  # NaN
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, dict | list):
        raise ValueError("a cell contains a list or an object")
    return str(cell).strip()


def _read_csv(path: Path, encoding: str | None) -> Rows:
    with path.open(encoding=encoding or _marked_encoding(path), newline="") as lines:
        first = next((line for line in lines if line.strip(f"{_BYTE_ORDER_MARK}\r\n")), "")
        separator = _SEPARATOR.fullmatch(first.strip(f"{_BYTE_ORDER_MARK}\r\n"))
        lines.seek(0)
        if lines.read(1) != _BYTE_ORDER_MARK:  # it remains if the encoding was named without it, as utf-8
            lines.seek(0)
        delimiter = separator[1] if separator else _delimiter(first)
        reader = csv.reader(_without_nulls(lines), delimiter=delimiter, strict=True)
        rows = (cells for cells in reader if cells)
        if separator:
            next(rows, None)
        for cells in rows:
            yield reader.line_num, cells


def _marked_encoding(path: Path) -> str:
    """The encoding of the byte order mark, or UTF-8."""
    with path.open("rb") as handle:
        head = handle.read(4)
    return next((name for bom, name in _BYTE_ORDER_MARKS.items() if head.startswith(bom)), "utf-8")


def _without_nulls(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a text; `UnicodeError` if there is a null character: the text is of another encoding."""
    for line in lines:
        if "\0" in line:
            raise UnicodeError
        yield line


def _decoded(path: Path, encoding: str | None) -> str:
    text = path.read_bytes().decode(encoding or _marked_encoding(path))
    if "\0" in text:
        raise UnicodeError
    return text.removeprefix(_BYTE_ORDER_MARK)


def _delimiter(text: str) -> str:
    """Comma, semicolon or tab: the one that the first line contains most often outside quotes."""
    first_line = text.lstrip(f"{_BYTE_ORDER_MARK}\r\n").split("\n", 1)[0].split("\r", 1)[0]
    unquoted = "".join(first_line.split('"')[::2])
    return max(",;\t", key=unquoted.count)


def _read_json_lines(path: Path, encoding: str | None) -> Rows:
    # Only \n ends a line: a string may contain the other characters at which str.splitlines divides.
    lines = [(number, line) for number, line in enumerate(_decoded(path, encoding).split("\n"), 1) if line.strip()]
    objects = [(number, json.loads(line)) for number, line in lines]
    return _objects(objects)


def _objects(objects: Sequence[tuple[int, Any]]) -> Rows:
    """Rows of objects with the same keys; the keys of all objects together are the columns."""
    for number, item in objects:
        if not isinstance(item, dict):
            raise ValueError(f"entry {number} is not an object with columns as keys")
    columns = list(dict.fromkeys(key for _, item in objects for key in item))
    yield 0, columns
    for number, item in objects:
        yield number, [item.get(column) for column in columns]


def _read_json(path: Path, encoding: str | None) -> Rows:
    content = json.loads(_decoded(path, encoding))
    if isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content:
        return _objects(_coco_rows(content))
    if not isinstance(content, list):
        raise ValueError("must be a list of objects, or a COCO file with images, annotations and categories")
    return _objects(list(enumerate(content, 1)))


def _coco_rows(content: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """One row per annotation of a COCO file (Lin et al. 2014) that labels images and draws no boxes."""
    try:
        if any(item.get("bbox") or item.get("segmentation") for item in content["annotations"]):
            raise ValueError("has boxes or outlines of objects; this project decides whole images, so cut each object "
                             "out into an image of its own first")  # fmt: skip
        names = {item["id"]: item["name"] for item in content["categories"]}
        files = {item["id"]: item["file_name"] for item in content["images"]}
        return [
            (number, {"image_path": files[item["image_id"]], "label": names[item["category_id"]]})
            for number, item in enumerate(content["annotations"], 1)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is not a complete COCO file: {error!r}") from None


def _read_parquet(path: Path, encoding: str | None) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            kinds = zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)
            flat = [name for name, kind in kinds if not (pa.types.is_nested(kind) or "binary" in str(kind))]
            if file.metadata.num_rows * max(1, len(flat)) > _MAX_CELLS:
                raise ValueError(f"has {file.metadata.num_rows:,} rows of {len(flat)} columns, which is too large")
            yield 0, flat
            number = 0
            for batch in file.iter_batches(batch_size=10_000, columns=flat):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, cells
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _read_excel(path: Path, encoding: str | None) -> Rows:
    try:
        import openpyxl
    except ImportError:
        raise UdcError(f"{path}: openpyxl is not installed; pip install 'udc-model[excel]'") from None
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > _MAX_BYTES:
                raise ValueError("is larger than 1 GiB uncompressed")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        for number, cells in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
            if any(cell is not None for cell in cells):
                yield number, cells
    except (ValueError, OSError):
        raise
    except Exception as error:  # openpyxl raises errors of every kind on damaged files
        raise ValueError(f"damaged: {error!r}") from None


_READERS: dict[str, Callable[[Path, str | None], Rows]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".xlsx": _read_excel,
}
