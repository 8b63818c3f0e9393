"""The prepared data set: a memory-mapped array per split, or shards; ``manifest.csv``, ``dataset.json``, checksums."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from udc_model.checksums import read_checksums, write_checksums
from udc_model.config import SPLITS
from udc_model.csv_files import csv_writer
from udc_model.data.dataset_file import ADVICE, DATASET, read_dataset
from udc_model.data.encoding import decoder_versions
from udc_model.data.scratch import Scratch
from udc_model.data.shards.reading import PLACE, SHARDS, SHARDS_FILE, EncodedPixels, ShardList, check_places
from udc_model.data.stored_images import IMAGE_CHECKSUMS, StoredImages
from udc_model.data.stored_preprocessing import PreprocessingRecord
from udc_model.data.subgroups import SUBGROUPS, read_subgroups, write_subgroups
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.files import MAX_JSON, read_bytes
from udc_model.records import read_record

if TYPE_CHECKING:
    import pandas as pd

MANIFEST_COLUMNS = ("split", "row", "path", "label", "group", "width", "height", "sha256")
MANIFEST = "manifest.csv"
_MAX_MANIFEST = 2**34  # bytes


@dataclass(frozen=True)
class PackedSplit:
    """One split of N images.

    Attributes
    ----------
    images : (N, S, S, C) uint8 prepared images, memory-mapped; each is checked when it is first read.
    labels : (N,) class indices.
    paths : N paths relative to the source's folder.
    groups : N group names; empty for an image without a group.
    digests : N hexadecimal SHA-256 digests of the decoded pixels.
    """

    images: StoredImages | NDArray[np.uint8]
    labels: NDArray[np.int64]
    paths: list[str]
    groups: list[str]
    digests: list[str]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PackedDataset:
    """A folder written by the stage ``prepare``, opened for reading.

    Attributes
    ----------
    folder : the folder.
    info : the contents of ``dataset.json``.
    manifest : one row per image with `MANIFEST_COLUMNS`.
    """

    folder: Path
    info: dict[str, Any]
    manifest: pd.DataFrame

    @classmethod
    def open(cls, folder: Path) -> PackedDataset:
        """Open a prepared folder.

        Raises
        ------
        UdcError
            A file is missing or damaged.
        """
        info = read_dataset(folder)
        return cls(folder, info, _read_manifest(folder, info["classes"]))

    @property
    def classes(self) -> list[str]:
        """Class names; the position of a name is its label."""
        return list(self.info["classes"])

    @property
    def notes(self) -> list[str]:
        """Sentences about what was recognised, carved, merged and left out, the most important first."""
        left_out = self.info.get("left_out", {})
        parts = [f"{count:,} × {reason}" for reason, count in left_out.items() if not reason.startswith("copy of")]
        notes = list(self.info.get("notes", []))
        if self.info.get("rejected"):
            parts.insert(0, f"{self.info['rejected']:,} × unusable image")
        return notes + ([f"left out: {'; '.join(parts)} (data/prepared/left_out.csv)"] if parts else [])

    @property
    def training_counts(self) -> list[int]:
        """Number of training images of each class, in the order of `classes`."""
        return [self.info["counts"]["train"][name] for name in self.classes]

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that made the stored images and converts them to inputs."""
        return Preprocessing.of(PreprocessingRecord.model_validate(self.info["preprocessing"]))

    def split(self, name: str) -> PackedSplit:
        """Open one of `SPLITS`; it may be empty.

        Raises
        ------
        UdcError
            The array is missing, damaged or does not match the manifest.
        """
        rows = self.manifest[self.manifest["split"] == name].sort_values("row")
        index = {label: k for k, label in enumerate(self.classes)}
        labels = np.array([index[label] for label in rows["label"].tolist()], dtype=np.int64)
        images = self._images(name, rows.index.to_numpy())
        return PackedSplit(images, labels, *(rows[column].tolist() for column in ("path", "group", "sha256")))

    def subgroups(self, name: str) -> dict[str, list[str]]:
        """The subgroup of each image of a split, by the names of ``data.subgroups``; ``""`` for none.

        Raises
        ------
        UdcError
            ``subgroups.csv`` is damaged.
        """
        columns = read_subgroups(self.folder, self.manifest["path"].tolist(), ADVICE)
        lines = self.manifest[self.manifest["split"] == name].sort_values("row").index
        return {division: [values[line] for line in lines] for division, values in columns.items()}

    def _images(self, name: str, lines: NDArray[np.intp]) -> StoredImages:
        """The images of a split; ``lines`` are their positions in the manifest."""
        path, side = self.folder / f"{name}.npy", self.preprocessing.stored_size
        shape = (len(lines), side, side, self.preprocessing.channels)
        if not len(lines):
            return StoredImages(path, np.empty(shape, np.uint8), None, ADVICE)
        checksums = self.folder / IMAGE_CHECKSUMS
        if self.info.get("packed") == "shards":
            pixels: NDArray[np.uint8] | EncodedPixels = self._encoded(path, len(lines))
            path = self.folder / SHARDS
        else:
            pixels = _load_array(path, np.uint8, shape)
        if not checksums.exists():  # of an earlier version
            return StoredImages(path, pixels, None, ADVICE)
        of_images = _load_array(checksums, np.uint32, (len(self.manifest),))
        read_checksums(self.folder, ADVICE).check(checksums, checksums.read_bytes(), ADVICE)
        return StoredImages(path, pixels, of_images[lines], self._advice if path.name == SHARDS else ADVICE)

    def _encoded(self, index: Path, n: int) -> EncodedPixels:
        """The images of a split in shards, whose places are in the array ``index``."""
        places = np.array(_load_array(index, PLACE, (n,)))
        record = read_record(self.folder / SHARDS_FILE, ShardList, ADVICE, MAX_JSON)
        read_checksums(self.folder, ADVICE).check(path := self.folder / SHARDS_FILE, path.read_bytes(), ADVICE)
        shards = record.check_files(self.folder, ADVICE)
        check_places(index, places, [shard.filesize for shard in record.shardlist], self.preprocessing, ADVICE)
        return EncodedPixels(shards, places, self.preprocessing, self._advice)

    @property
    def _advice(self) -> str:
        """What to do if images are damaged; other decoders than those of stage prepare may give other pixels."""
        now = decoder_versions()
        changed = [f"{name} {version} instead of {now.get(name)}" for name, version in self.info["decoders"].items()
                   if now.get(name) != version]  # fmt: skip
        return f"{ADVICE}; the images were prepared with {', '.join(changed)}" if changed else ADVICE


def _read_manifest(folder: Path, classes: list[str]) -> pd.DataFrame:
    """The contents of ``manifest.csv``; :class:`UdcError` if it is missing or damaged."""
    import pandas as pd

    path = folder / MANIFEST
    contents = read_bytes(path, ADVICE, _MAX_MANIFEST)
    read_checksums(folder, ADVICE).check(path, contents, ADVICE)
    text = dict.fromkeys(("split", "path", "label", "group", "sha256"), str)
    try:
        manifest = pd.read_csv(io.BytesIO(contents), dtype=text | {"row": np.int64}, keep_default_na=False)
    except ValueError as error:
        raise UdcError(f"{path}: is damaged ({error}); {ADVICE}") from None
    if missing := set(MANIFEST_COLUMNS) - set(manifest.columns):
        raise UdcError(f"{path}: has no column {', '.join(sorted(missing))}; {ADVICE}")
    for column, allowed in (("split", SPLITS), ("label", classes)):
        if len(unknown := manifest[~manifest[column].isin(allowed)]):
            line, value = unknown.index[0] + 2, unknown[column].iloc[0]
            raise UdcError(f"{path}, line {line}: {column} is {value[:80]!r}; allowed: {', '.join(allowed)[:500]}; "
                           f"{ADVICE}")  # fmt: skip
    return manifest


def _manifest_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """The contents of ``manifest.csv``."""
    text = io.StringIO()
    writer = csv_writer(text.write)
    writer.writerow(MANIFEST_COLUMNS)
    writer.writerows(map(itemgetter(*MANIFEST_COLUMNS), rows))
    return text.getvalue()


def _load_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A memory-mapped array; :class:`UdcError` unless the file has this type, shape and size."""
    try:
        array: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        size = path.stat().st_size
    except (OSError, ValueError, EOFError) as error:
        raise UdcError(f"{path}: cannot be read ({error}); {ADVICE}") from None
    if array.dtype != dtype or array.shape != shape:
        raise UdcError(f"{path}: contains {array.dtype} {array.shape}, but dataset.json and manifest.csv describe "
                       f"{np.dtype(dtype)} {shape}; {ADVICE}")  # fmt: skip
    if size != array.offset + array.nbytes:
        raise UdcError(f"{path}: has {size - array.offset:,} bytes of pixels instead of {array.nbytes:,}; {ADVICE}")
    return array


def group_indices(groups: Sequence[str]) -> NDArray[np.intp] | None:
    """Return the group of each image as an integer (N,), or None if no image has a group.

    An image without a group becomes a group of one image.
    """
    if not any(groups):
        return None
    names = [group or f"\0{i}" for i, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1]


def write_packed(
    folder: Path,
    scratch: Scratch,
    rows: Sequence[dict[str, Any]],
    preprocessing: Preprocessing,
    info: dict[str, Any],
    divisions: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the images of all splits, ``manifest.csv``, ``dataset.json``, ``subgroups.csv`` and checksums of them.

    Parameters
    ----------
    folder : existing folder to write into.
    scratch : prepared images, from `check_images`.
    rows : one mapping per image, sorted by path, with `MANIFEST_COLUMNS` except ``row``, and with ``scratch_row``, the
        image's row in ``scratch``.
    preprocessing : made the prepared images; its mean and std are replaced by those of the training images.
    info : entries of ``dataset.json`` besides digest, counts and preprocessing; ``classes`` is required.
    divisions : names of the ``subgroups`` in ``rows``; without any, there is no ``subgroups.csv``.

    Returns
    -------
    The contents of ``dataset.json``.

    Raises
    ------
    UdcError
        All training images have the same single colour.
    """
    members = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    packed = scratch.write_splits(folder, members, preprocessing)
    lines = [{**row, "row": k} for split in SPLITS for k, row in enumerate(members[split])]
    manifest = _manifest_text(lines).encode()
    (folder / MANIFEST).write_bytes(manifest)
    packed.digest.update(manifest)

    mean, std = packed.statistics.mean_and_std()
    preprocessing = replace(preprocessing, mean=tuple(mean), std=tuple(std))
    counts = {name: dict.fromkeys(info["classes"], 0) for name in SPLITS}
    for row in lines:
        counts[row["split"]][row["label"]] += 1
    info = {
        **info,
        **packed.info,
        "digest": packed.digest.hexdigest(),
        "images": len(lines),
        "counts": counts,
        "preprocessing": preprocessing.to_dict(),
    }
    text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    (folder / DATASET).write_text(text, encoding="utf-8")
    np.save(folder / IMAGE_CHECKSUMS, packed.checksums)
    if divisions:
        write_subgroups(folder, divisions, lines)
    more = ([SUBGROUPS] if divisions else []) + ([SHARDS_FILE] if (folder / SHARDS_FILE).exists() else [])
    write_checksums(folder, [DATASET, MANIFEST, IMAGE_CHECKSUMS, *more])
    return info
