"""Lists the images of a source: scikit-learn's digits, a folder with one sub-folder per class, or CSV files."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from udc_model.config import SPLITS, CsvFile, DataParams
from udc_model.data.formats import SUFFIXES
from udc_model.errors import UdcError

_MAX_LISTED = 50  # entries of a list in a message


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image as its source describes it; ``path`` is relative to the source's folder and uses ``/``."""

    path: str
    label: str
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """An image that cannot be used, and the reason."""

    path: str
    reason: str


@dataclass
class ImageSource:
    """The images of a source.

    Attributes
    ----------
    root : folder that all paths are relative to.
    classes : class names, sorted.
    records : the images, sorted by path.
    rejected : images that cannot be used.
    ignored : files that are no images, judged by their suffix.
    pixels : (N, H, W) uint8 grey images of a source without files; None for files.
    """

    root: Path
    classes: list[str]
    records: list[ImageRecord]
    rejected: list[Rejection] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    pixels: NDArray[np.uint8] | None = None


def open_source(params: DataParams) -> ImageSource:
    """List the images of the source ``data.source``.

    Raises
    ------
    UdcError
        The folder or a CSV file is missing or empty, or rows of a CSV file are invalid; the message lists them.
    """
    root = Path(params.path)
    if params.source != "digits" and not root.is_dir():
        raise UdcError(f"data.path: {root} is not a folder; put your images there or set data.path")
    match params.source:
        case "digits":
            source = _digits(params)
        case "folder":
            source = _folder(root, params)
        case "csv":
            source = _csv(root, params)
    if len(source.classes) < 2:
        raise UdcError(
            f"{root}: has {len(source.classes)} class(es) ({', '.join(source.classes)}); at least 2 are needed"
        )
    return source


def _digits(params: DataParams) -> ImageSource:
    """Return the 1,797 handwritten digits of 8 x 8 pixels in scikit-learn (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    if params.group is not None:
        raise UdcError("data.group: the digits have no groups; set it to null for data.source: digits")
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    records = [ImageRecord(f"digits/{i:04d}.png", str(digit)) for i, digit in enumerate(bunch.target)]
    return ImageSource(Path("digits"), [str(digit) for digit in range(10)], records, pixels=pixels)


def _folder(root: Path, params: DataParams) -> ImageSource:
    """List images in class folders, at any depth. Hidden files are skipped; other files without the suffix of an image
    are reported as ignored.
    """
    group_of = _group_pattern(params.group)
    source = ImageSource(root, [], [])
    folders = sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)
    source.classes = [folder.name for folder in folders]
    source.ignored = sorted(p.name for p in root.iterdir() if p.is_file() and not p.name.startswith("."))
    if not folders:
        raise UdcError(f"{root}: has no class folders; data.source: folder needs one folder for each class")
    if params.classes is not None and set(params.classes) != set(source.classes):
        raise UdcError(f"data.classes: {sorted(params.classes)} are not the folders of {root}: {source.classes}")
    empty, unmatched = [], []
    for folder in folders:
        count = 0
        for path in _files_below(folder):
            relative = path.relative_to(root).as_posix()
            if path.suffix.lower() not in SUFFIXES:
                source.ignored.append(relative)
                continue
            count += 1
            try:
                source.records.append(ImageRecord(relative, folder.name, group=group_of(relative)))
            except UdcError as error:
                unmatched.append(str(error))
        if not count:
            empty.append(folder.name)
    if empty:
        raise UdcError(f"{root}: no images in the class folder {join_for_message(empty)}; add images or remove it")
    if unmatched:
        lines = join_for_message(unmatched, "\n  ")
        raise UdcError(f"{len(unmatched)} image(s) belong to no group:\n  {lines}")
    source.records.sort(key=lambda record: record.path)
    return source


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file():
            yield path


def _csv(root: Path, params: DataParams) -> ImageSource:
    """List the images of CSV files with the columns ``image_path``, ``label`` and optionally ``split``, ``group``."""
    source = ImageSource(root, [], [])
    problems: list[str] = []
    seen: dict[str, str] = {}
    classes = set(params.classes) if params.classes is not None else None
    for entry in params.csv_files:
        file = entry if isinstance(entry, CsvFile) else CsvFile(file=entry)
        labels = set()
        for where, row in _rows(root, file.file, params):
            record = _csv_record(row, where, file, params, problems)
            if record is None:
                continue
            if classes is not None and record.label not in classes:
                problems.append(f"{where}: the label {record.label!r} is not among the classes {sorted(classes)}")
                continue
            labels.add(record.label)
            if record.path in seen:
                problems.append(f"{where}: {record.path} is already listed in {seen[record.path]}")
                continue
            seen[record.path] = where
            reason = _unusable_path(root, record.path)
            if reason:
                source.rejected.append(Rejection(record.path, f"{reason} ({where})"))
            else:
                source.records.append(record)
        classes = classes or labels  # without data.classes, the first file defines the classes
    if problems:
        hint = "" if params.classes else "\n(the first file defines the classes, unless data.classes lists them)"
        lines = join_for_message(problems, "\n  ")
        raise UdcError(f"{len(problems)} row(s) of the CSV cannot be used:\n  {lines}{hint}")
    source.classes = sorted(classes or ())
    source.records.sort(key=lambda record: record.path)
    return source


def _rows(root: Path, name: str, params: DataParams) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the rows of one CSV file, each with its location (``file:line``)."""
    if (reason := _unsafe(name)) is not None:
        raise UdcError(f"data.csv_files: {name}: {reason}")
    path = root / name
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            columns = reader.fieldnames or []
            missing = [column for column in ("image_path", params.label_column) if column not in columns]
            if missing:
                raise UdcError(f"{path}: has no column {' and '.join(missing)}; it has {', '.join(columns) or 'none'}")
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except FileNotFoundError:
        raise UdcError(f"{path}: no such file; data.csv_files must name files inside data.path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UdcError(f"{path}: cannot be read as CSV in UTF-8: {error}") from None


def _csv_record(
    row: dict[str, str | None], where: str, file: CsvFile, params: DataParams, problems: list[str]
) -> ImageRecord | None:
    path = (row["image_path"] or "").strip()
    label = (row[params.label_column] or "").strip()
    split = (row.get("split") or "").strip() or file.split
    if not path or not label:
        problems.append(f"{where}: {'image_path' if not path else params.label_column} is empty")
        return None
    if split is not None and split not in SPLITS:
        problems.append(f"{where}: the split {split!r} is none of {', '.join(SPLITS)}")
        return None
    try:
        group = _csv_group(row, path, params)
    except UdcError as error:
        problems.append(f"{where}: {error}")
        return None
    return ImageRecord(PurePosixPath(path).as_posix(), label, split, group)


def _csv_group(row: dict[str, str | None], path: str, params: DataParams) -> str | None:
    column = params.group or "group"
    if column in row:
        group = (row[column] or "").strip()
        if not group:
            raise UdcError(f"the column {column} is empty")
        return group
    return _group_pattern(params.group)(path)


def _unusable_path(root: Path, path: str) -> str | None:
    """Return why a path in a CSV cannot be used, or None."""
    reason = _unsafe(path)
    if reason:
        return reason
    if not (root / path).is_file():
        return "no such file"
    return None


def _unsafe(path: str) -> str | None:
    """Return why a path may lead out of the data folder, or None.

    Symbolic links are allowed: they belong to the owner of the folder, such as DVC.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or PureWindowsPath(path).drive or "\0" in path:
        return "is an absolute path; paths must be relative to data.path"
    if ".." in pure.parts or ".." in PureWindowsPath(path).parts:
        return "leaves the data folder (contains ..)"
    return None


def _group_pattern(pattern: str | None) -> Callable[[str], str | None]:
    """Return a function from a path to its group: the first capture group of ``pattern``, searched in the file name."""
    if pattern is None:
        return lambda path: None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UdcError(f"data.group: {pattern!r} is not a regular expression: {error}") from None
    if compiled.groups < 1:
        raise UdcError(
            f"data.group: {pattern!r} must be a column of the CSV file, or a regular expression with (…) around the "
            "part of the file name that identifies the group"
        )

    def group_of(path: str) -> str | None:
        name = PurePosixPath(path).name
        match = compiled.search(name)
        if match is None or match.group(1) is None:
            raise UdcError(f"data.group: {pattern!r} does not match the file name {name}")
        return match.group(1)

    return group_of


def join_for_message(items: list[str], separator: str = ", ") -> str:
    """Join the first 50 items for a message, followed by the number of further items."""
    more = f"{separator}… and {len(items) - _MAX_LISTED:,} more" if len(items) > _MAX_LISTED else ""
    return separator.join(items[:_MAX_LISTED]) + more
