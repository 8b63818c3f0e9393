"""The prepared data set: one memory-mapped array a split, a manifest, and `dataset.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from udc_model.config import SPLITS
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError

MANIFEST_COLUMNS = ("split", "row", "path", "label", "group", "width", "height", "sha256")
_BLOCK_BYTES = 32 * 2**20  # copied at a time, so that memory stays small whatever the size of the data set


@dataclass(frozen=True)
class PackedSplit:
    """One split: ``images`` (N, S, S, 3) uint8, memory-mapped; ``labels`` (N,) class indices; ``paths``, ``groups`` and
    ``digests``, the SHA-256 of the files."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    paths: list[str]
    groups: list[str]
    digests: list[str]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PackedDataset:
    """A folder that `prepare` wrote, opened for reading."""

    folder: Path
    info: dict[str, Any]
    manifest: pd.DataFrame

    @classmethod
    def open(cls, folder: Path) -> PackedDataset:
        """Open a prepared folder.

        Raises
        ------
        UdcError
            A file is missing or does not belong to the others.
        """
        try:
            info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            manifest = pd.read_csv(folder / "manifest.csv", dtype=dict.fromkeys(("path", "label", "group"), str),
                                   keep_default_na=False)  # fmt: skip
        except FileNotFoundError as error:
            raise UdcError(f"{error.filename}: no such file; run prepare first (dvc repro prepare)") from None
        except (OSError, ValueError) as error:
            raise UdcError(f"{folder}: is damaged ({error}); run prepare again (dvc repro -f prepare)") from None
        return cls(folder, info, manifest)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the labels."""
        return list(self.info["classes"])

    @property
    def training_counts(self) -> list[int]:
        """Training images of each class."""
        return [self.info["counts"]["train"][name] for name in self.classes]

    @property
    def preprocessing(self) -> Preprocessing:
        """How the stored images were made and become input tensors."""
        return Preprocessing.from_dict(self.info["preprocessing"])

    def split(self, name: str) -> PackedSplit:
        """Open one of the splits `SPLITS`; it may be empty."""
        rows = self.manifest[self.manifest["split"] == name].sort_values("row")
        index = {label: k for k, label in enumerate(self.classes)}
        labels = np.array([index[label] for label in rows["label"]], dtype=np.int64)
        path = self.folder / f"{name}.npy"
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False) if len(labels) else np.empty((0,), np.uint8)
        except (OSError, ValueError) as error:
            raise UdcError(f"{path}: cannot be read ({error}); run prepare again (dvc repro -f prepare)") from None
        if len(images) != len(labels):
            raise UdcError(f"{path}: holds {len(images)} images, the manifest {len(labels)}; run prepare again")
        return PackedSplit(images, labels, list(rows["path"]), list(rows["group"]), list(rows["sha256"]))


def group_indices(groups: Sequence[str]) -> NDArray[np.intp] | None:
    """The group of each image as a number, (N,); None where there are no groups. An image without one is its own."""
    if not any(groups):
        return None
    names = [group or f"\0{i}" for i, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1]


def write_packed(
    folder: Path,
    scratch: Path,
    rows: Sequence[dict[str, Any]],
    preprocessing: Preprocessing,
    info: dict[str, Any],
) -> dict[str, Any]:
    """Write splits, manifest and ``dataset.json`` into ``folder``.

    Parameters
    ----------
    scratch : file of stored squares; each of ``rows`` names its place there as ``scratch_row``.
    rows : one mapping an image with `MANIFEST_COLUMNS` (without ``row``) and ``scratch_row``, sorted by path.
    info : what ``dataset.json`` says besides counts, preprocessing and digest.

    Returns
    -------
    The contents of ``dataset.json``.
    """
    digest = hashlib.sha256()
    statistics = ChannelStatistics()
    lines: list[dict[str, Any]] = []
    for split in SPLITS:
        members = [row for row in rows if row["split"] == split]
        lines += [{**row, "row": k} for k, row in enumerate(members)]
        with _npy_writer(folder / f"{split}.npy", len(members), preprocessing.stored_size) as handle:
            for block in _stored_rows(scratch, [row["scratch_row"] for row in members], preprocessing.stored_size):
                handle.write(block.tobytes())
                digest.update(block.tobytes())
                if split == "train":
                    statistics.add(block)
    manifest = pd.DataFrame(lines, columns=list(MANIFEST_COLUMNS))
    text = manifest.to_csv(index=False, lineterminator="\n")
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    digest.update(text.encode())

    mean, std = statistics.mean_and_std()
    preprocessing = Preprocessing.from_dict(preprocessing.to_dict() | {"mean": mean, "std": std})
    counts = {name: dict.fromkeys(info["classes"], 0) for name in SPLITS}
    for row in lines:
        counts[row["split"]][row["label"]] += 1
    info = {
        **info,
        "digest": digest.hexdigest(),
        "images": len(lines),
        "counts": counts,
        "preprocessing": preprocessing.to_dict(),
    }
    text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    (folder / "dataset.json").write_text(text, encoding="utf-8")
    return info


@contextmanager
def _npy_writer(path: Path, n: int, side: int) -> Iterator[BinaryIO]:
    with path.open("wb") as handle:
        shape = (n, side, side, 3)
        np.lib.format.write_array_header_1_0(handle, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield handle


def _stored_rows(scratch: Path, rows: list[int], side: int) -> Iterator[NDArray[np.uint8]]:
    """Blocks (n, S, S, 3) of the given rows. Read, not mapped: mapped pages would count as this process's memory."""
    row_bytes = side * side * 3
    per_block = max(1, _BLOCK_BYTES // row_bytes)
    with scratch.open("rb") as handle:
        for start in range(0, len(rows), per_block):
            chunks = []
            for row in rows[start : start + per_block]:
                handle.seek(row * row_bytes)
                chunks.append(handle.read(row_bytes))
            yield np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, side, side, 3)


class ChannelStatistics:
    """Running mean and standard deviation of the three channels of (N, H, W, 3) uint8 images.

    Counts are exact, so the result does not depend on the order of the images.
    """

    def __init__(self) -> None:
        self.histogram = np.zeros((3, 256), dtype=np.int64)

    def add(self, images: NDArray[np.uint8]) -> None:
        """Add a block of images."""
        for channel in range(3):
            self.histogram[channel] += np.bincount(images[..., channel].ravel(), minlength=256)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixel values scaled to [0, 1].

        Raises
        ------
        UdcError
            A channel has the same value everywhere: there is nothing to learn from.
        """
        values = np.arange(256)
        pixels = self.histogram.sum(axis=1)
        mean = self.histogram @ values / pixels
        variance = self.histogram @ values**2 / pixels - mean**2
        if (variance <= 0).any():
            raise UdcError("all pixels of the training images have the same value; there is nothing to learn from")
        return [float(x) / 255 for x in mean], [float(x) / 255 for x in np.sqrt(variance)]
