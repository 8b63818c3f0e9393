"""Image data sets of the Hugging Face hub in Parquet files; scripts are never run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from udc_model.config import SPLITS
from udc_model.data.sources.records import SPLIT_NAMES
from udc_model.errors import UdcError
from udc_model.fetch.hub import HubFiles, open_hub_files
from udc_model.fetch.image_folder import ImageFolderWriter, check_disk, description
from udc_model.fetch.parquet_files import Columns, files_by_split, find_columns

logger = logging.getLogger(__name__)

_MAX_ROW_GROUP = 4_000_000_000  # bytes, uncompressed; it is decompressed in memory
_BATCH = 32  # rows in memory at a time
_SUFFIX_OF = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif",
              b"MM\0*": ".tif", b"P5": ".pgm", b"P6": ".ppm"}  # fmt: skip


def fetch_huggingface(
    name: str, folder: Path, config: str | None = None, image: str | None = None, label: str | None = None
) -> dict[str, Any]:
    """Write the images of a data set of the Hugging Face hub as files, byte for byte.

    Parameters
    ----------
    name : ``NAME`` or ``NAME@REVISION``.
    folder : existing folder to write into.
    config : configuration (subset); None if there is only one, or a default one.
    image, label : columns of images and labels; None to find them.

    Returns
    -------
    The record of what was written, with the commit.

    Raises
    ------
    UdcError
        The data set cannot be reached, has no Parquet files, is ambiguous, or is damaged.
    """
    full_name = f"huggingface:{name}"
    splits: dict[str, list[str]] = {}

    def choose(files: list[str], card: dict[str, Any]) -> list[str]:
        splits.update(files_by_split(files, card, config, full_name))
        return [file for members in splits.values() for file in members]

    hub = open_hub_files(name, choose)
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata  # installed with the extra hub, which open_hub_files has checked

    digests = hub.sha256()
    writer = ImageFolderWriter(folder)
    unlabelled: dict[str, int] = {}
    try:
        check_disk(folder, _image_bytes(hub), full_name)
        for split in [split for split, files in splits.items() if not _has_labels(hub, files, (image, label))]:
            unlabelled[split] = sum(read_metadata(hub.folder / name).num_rows for name in splits.pop(split))
        for split, target in split_folders(list(splits), full_name).items():
            _write_split(hub, splits[split], (image, label), (target, split), writer, unlabelled)
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UdcError(f"{full_name}: a Parquet file in {hub.folder} is damaged or incomplete ({reason}); remove it "
                       "and fetch again") from None  # fmt: skip
    if unlabelled:
        logger.warning("%s: images without a label are left out: %s", full_name,
                       ", ".join(f"{split} {count:,}" for split, count in unlabelled.items()))  # fmt: skip
    licence = hub.card.get("license")
    return description(
        f"huggingface:{hub.repository}", hub.revision, f"https://huggingface.co/datasets/{hub.repository}",
        ", ".join(map(str, licence)) if isinstance(licence, list) else licence and str(licence), writer, digests,
        without_label=unlabelled,
    )  # fmt: skip


def split_folders(splits: list[str], name: str) -> dict[str, str | None]:
    """The split folder of each split; None for the only split, which is not split yet.

    Splits with other names than those of `SPLIT_NAMES` are left out, with a warning.
    """
    if len(splits) == 1:
        return {splits[0]: None}
    folders: dict[str, str | None] = {split: SPLIT_NAMES[split] for split in SPLIT_NAMES if split in splits}
    if others := sorted(set(splits) - set(folders)):
        logger.warning("%s: the splits %s are left out; %s are used", name, ", ".join(others), ", ".join(SPLITS))
    if not folders or len(set(folders.values())) < len(folders):
        raise UdcError(f"{name}: the splits {', '.join(splits)} cannot be assigned to {', '.join(SPLITS)}")
    return folders


def _image_bytes(hub: HubFiles) -> int:
    """Uncompressed size of all columns, bytes: an upper bound of the image files."""
    from pyarrow.parquet import read_metadata

    total = 0
    for name in hub.names:
        metadata = read_metadata(hub.folder / name)
        sizes = [metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups)]
        if max(sizes, default=0) > _MAX_ROW_GROUP:
            raise UdcError(f"{hub.folder / name}: a row group has {max(sizes):,} bytes; at most {_MAX_ROW_GROUP:,} are "
                           "read")  # fmt: skip
        total += sum(sizes)
    return total


def _write_split(
    hub: HubFiles, files: list[str], columns: tuple[str | None, str | None], targets: tuple[str | None, str],
    writer: ImageFolderWriter, unlabelled: dict[str, int],
) -> None:  # fmt: skip
    """Write the labelled images of a split, with the number of the row as file name."""
    target, split = targets
    progress = tqdm(_rows(hub, files, columns), f"{hub.repository} {split}", unit="img", disable=None, leave=False)
    for number, (where, value, label) in enumerate(progress):
        if label is None:
            unlabelled[split] = unlabelled.get(split, 0) + 1
            continue
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if not content:
            raise UdcError(f"{where}: the image of row {number} is not in the file; it cannot be fetched")
        writer.add(target, label, f"{number:06d}{_suffix(content, path)}", content)


def _has_labels(hub: HubFiles, files: list[str], columns: tuple[str | None, str | None]) -> bool:
    """Whether any row of a split has a label; published test sets often have none."""
    return any(label is not None for _, _, label in _rows(hub, files, columns, labels_only=True))


def _rows(
    hub: HubFiles, files: list[str], columns: tuple[str | None, str | None], *, labels_only: bool = False
) -> Iterator[tuple[Path, Any, Any]]:
    """File, image (None if ``labels_only``) and class name of each row; the class name is None without a label."""
    from pyarrow.parquet import ParquetFile

    for name in files:
        path = hub.folder / name
        with ParquetFile(path) as parquet:
            found = find_columns(parquet.schema_arrow, hub.card, *columns, f"huggingface:{hub.repository}")
            needed_columns = [found.label] if labels_only else [found.image, found.label]
            for batch in parquet.iter_batches(_BATCH, columns=needed_columns):
                labels = batch.column(found.label).to_pylist()
                images = [None] * len(labels) if labels_only else batch.column(found.image).to_pylist()
                for image, label in zip(images, labels, strict=True):
                    yield path, image, _class_name(found, label, path)


def _class_name(columns: Columns, label: Any, path: Path) -> str | None:
    if label is None or label == "":
        return None
    if columns.names is None:
        return str(label)
    if label == -1:  # what the library `datasets` writes for a row without a label
        return None
    if not 0 <= label < len(columns.names):
        raise UdcError(f"{path}: the column {columns.label} has the label {label}, but {len(columns.names)} class "
                       "names")  # fmt: skip
    return str(columns.names[label])


def _suffix(content: bytes, path: str | None) -> str:
    """The suffix of an image's format, from its first bytes; else that of its path, and ``prepare`` reports it."""
    for start, suffix in _SUFFIX_OF.items():
        if content.startswith(start):
            return suffix
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    suffix = PurePosixPath(path or "").suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ".unknown"
