"""Opens the source ``data.source``; ``auto`` recognises what ``data.path`` contains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from udc_model.config import CsvFile, DataParams
from udc_model.data.sources.archives import is_archive, unpack
from udc_model.data.sources.columns import find_columns
from udc_model.data.sources.folders import folder_source
from udc_model.data.sources.groups import group_pattern
from udc_model.data.sources.labels import Labels
from udc_model.data.sources.listing import Listing, list_folder
from udc_model.data.sources.records import (
    ImageRecord,
    ImageSource,
    Rejection,
    join_for_message,
    printable,
    split_in_words,
)
from udc_model.data.sources.subgroups import check_divisions, check_has_patterns, parse_divisions
from udc_model.data.sources.table_source import table_source
from udc_model.data.sources.tables import is_table, read_table
from udc_model.errors import UdcError


def open_source(params: DataParams, unpacked: Path) -> ImageSource:
    """List the images of the source ``data.source``, without decoding one.

    Parameters
    ----------
    unpacked : folder to create for the files of an archive; it must exist as long as images are read.

    Raises
    ------
    UdcError
        Nothing is there, it is not clear what is what, or rows of a table are invalid; the message lists them.
    """
    if params.source == "digits":
        return _digits(params)
    path = _folder_or_archive(params)
    return _open_folder(params, path) if path.is_dir() else _open_archive(params, path, unpacked)


def _open_archive(params: DataParams, archive: Path, unpacked: Path) -> ImageSource:
    """The images of an archive; what is said about them names the archive instead of the folder of its files."""
    root, shown = unpacked / archive.name, printable(str(archive))

    def named(text: str) -> str:
        return text.replace(str(root), shown).replace(printable(str(root)), shown)

    try:
        root.mkdir(parents=True)
        unpack(archive, root)
        source = _open_folder(params, root)
    except UdcError as error:
        raise UdcError(named(str(error))) from None
    source.notes = [named(note) for note in source.notes]
    source.rejected = [Rejection(each.path, named(each.reason)) for each in source.rejected]
    return source


def _open_folder(params: DataParams, root: Path) -> ImageSource:
    """The images of a folder, without decoding one."""
    divisions = parse_divisions(params.subgroups or ())
    listing = list_folder(root)
    labels = Labels(params.merge_labels or {})
    tables: Sequence[str | CsvFile] = params.csv_files if params.source == "csv" else ()
    skipped: list[str] = []
    if params.source == "auto":
        tables, skipped = _recognised_tables(root, listing, params)
    if tables:
        source = table_source(root, listing, tables, params, labels)
    else:
        try:
            check_has_patterns(divisions)
            source = folder_source(root, listing, labels, params.classes, group_pattern(params.group), divisions)
        except UdcError as error:
            raise UdcError("\n".join([str(error), *skipped])) from None
    labels.check_merged()
    source.divisions = [each.name for each in divisions]
    check_divisions(source.divisions, source.records)
    source.notes += skipped + labels.notes()
    if len(source.classes) < 2:
        raise UdcError(f"{printable(params.path)}: has {len(source.classes)} class(es) "
                       f"({join_for_message(source.classes)}); at least 2 are needed")  # fmt: skip
    return source


def _folder_or_archive(params: DataParams) -> Path:
    """The path ``data.path``; :class:`UdcError` if it is neither a folder nor an archive."""
    path = Path(params.path)
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]*:", params.path):
        raise UdcError(f"data.path: {params.path} is an address or the name of a data set; bring it into the project "
                       "first (udc fetch), and set data.path to the folder")  # fmt: skip
    if path.is_dir() or (is_archive(path) and path.exists()):
        return path
    if not path.exists():
        raise UdcError(f"data.path: {printable(str(path))} is not a folder; put your images there or set data.path")
    if is_table(path.name):
        raise UdcError(f"data.path: {path} is a table; set data.path to the folder of the images, put the table there, "
                       "and name it in data.csv_files")  # fmt: skip
    raise UdcError(f"data.path: {printable(str(path))} is neither a folder nor a zip or tar archive")


def _recognised_tables(root: Path, listing: Listing, params: DataParams) -> tuple[list[str | CsvFile], list[str]]:
    """Tables beside the images that have columns of images and classes, and lines about those that have not.

    Raises
    ------
    UdcError
        Several tables qualify, and their names do not say which split each is.
    """
    level = _first_level(listing)
    candidates = [name for name in listing.others() if is_table(name) and PurePosixPath(name).parent == level]
    usable, skipped = [], []
    for name in candidates:
        try:
            find_columns(read_table(root / name, params.encoding), params)
            usable.append(name)
        except UdcError as error:
            skipped.append(f"not used as a table of classes: {error}")
    if len(usable) < 2:
        return list(usable), skipped
    splits = {name: split_in_words(PurePosixPath(name).stem) for name in usable}
    if None in splits.values() or len(set(splits.values())) < len(splits):
        raise UdcError(f"{printable(str(root))}: has several tables of labels ({join_for_message(usable)}); "
                       "set data.source: csv and list those to use in data.csv_files")  # fmt: skip
    ordered = sorted(usable, key=lambda name: splits[name] != "train")  # the first table defines the classes
    return [CsvFile.model_validate({"file": name, "split": splits[name]}) for name in ordered], skipped


def _first_level(listing: Listing) -> PurePosixPath:
    """The first folder that contains more than one folder."""
    level = PurePosixPath()
    entries = [PurePosixPath(path) for path in [*listing.folders, *listing.images, *listing.others()]]
    while True:
        inside = [path for path in entries if path.parent == level]
        if len(inside) != 1 or inside[0].as_posix() not in listing.folders:
            return level
        level = inside[0]


def _digits(params: DataParams) -> ImageSource:
    """Return the 1,797 handwritten digits of 8 x 8 pixels in scikit-learn (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    for name, value in (("group", params.group), ("subgroups", params.subgroups)):
        if value is not None:
            raise UdcError(f"data.{name}: the digits have none; set it to null for data.source: digits")
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    records = [ImageRecord(f"digits/{i:04d}.png", str(digit)) for i, digit in enumerate(bunch.target)]
    layout = "the digits of scikit-learn"
    return ImageSource(Path("digits"), layout, [str(digit) for digit in range(10)], records, pixels=pixels)
