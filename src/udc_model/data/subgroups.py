"""``subgroups.csv`` of a prepared folder: the subgroups of each image.

It is a file of its own, because no training run depends on it: stage ``train`` does not run again if only the subgroups
change.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udc_model.checksums import read_checksums
from udc_model.csv_files import csv_writer
from udc_model.errors import UdcError
from udc_model.files import read_bytes

SUBGROUPS = "subgroups.csv"
_MAX_BYTES = 2**34


def write_subgroups(folder: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the subgroups of images.

    Parameters
    ----------
    names : of the divisions.
    rows : of each image ``path`` and ``subgroups``, one text for each division, in the order of ``manifest.csv``.
    """
    with (folder / SUBGROUPS).open("w", encoding="utf-8", newline="") as handle:
        writer = csv_writer(handle.write)
        writer.writerow(["path", *names])
        writer.writerows([row["path"], *row["subgroups"]] for row in rows)


def read_subgroups(folder: Path, paths: Sequence[str], advice: str) -> dict[str, list[str]]:
    """The subgroup of each image by division, ``""`` for an image without one; nothing if there is no such file.

    Parameters
    ----------
    paths : of all images, in the order of ``manifest.csv``.
    advice : what to do about a damaged file; the end of the message.

    Raises
    ------
    UdcError
        The file is damaged, or of other images.
    """
    path, checksums = folder / SUBGROUPS, read_checksums(folder, advice)
    if SUBGROUPS not in checksums.sha256:
        return {}
    contents = read_bytes(path, advice, _MAX_BYTES)
    checksums.check(path, contents, advice)
    try:
        header, *rows = csv.reader(io.StringIO(contents.decode("utf-8"), newline=""), strict=True)
        columns = list(zip(*rows, strict=True)) or [()] * len(header)
        if list(columns[0]) != list(paths) or len(columns) != len(header):
            raise ValueError("its images are not those of manifest.csv")
    except (ValueError, IndexError, csv.Error) as error:
        raise UdcError(f"{path}: is damaged ({error}); {advice}") from None
    return {name: list(column) for name, column in zip(header[1:], columns[1:], strict=True)}
