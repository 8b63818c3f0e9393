"""Writes the shards of a prepared data set, and for each split where its images are in them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udc_model.config import SPLITS
from udc_model.data.channel_statistics import ChannelStatistics
from udc_model.data.encoding import decoder_versions
from udc_model.data.scratch import PackedSplits
from udc_model.data.shards.interim import InterimImages
from udc_model.data.shards.reading import PLACE, SHARDS, SHARDS_FILE
from udc_model.data.shards.tar_files import first_offsets, shard_bytes, shard_limits, shard_name, write_shard
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError

logger = logging.getLogger(__name__)


class ShardScratch(InterimImages):
    """The state of a preparation, which becomes shards.

    Images with the same pixels are stored once. The order in the shards is that of the paths, whatever their splits
    are, so a changed split changes no shard.
    """

    def write_splits(
        self, folder: Path, members: Mapping[str, Sequence[dict[str, Any]]], preprocessing: Preprocessing
    ) -> PackedSplits:
        """Write ``shards/*.tar``, ``shards.json`` and, for each split, the places of its images in the shards."""
        rows = [row for split in SPLITS for row in members[split]]
        records = self.records()[[row["scratch_row"] for row in rows]]
        by_path = np.array(sorted(range(len(rows)), key=lambda i: rows[i]["path"]), dtype=np.intp)
        digests = np.ascontiguousarray(records["sha256"][by_path]).view("S32").ravel()
        _, first, image_of_row = np.unique(digests, return_index=True, return_inverse=True)
        order = np.sort(first)
        stored = records[by_path[order]]
        places, shards = self._write_shards(folder, stored)
        image = np.empty(len(rows), dtype=np.intp)  # position in ``stored`` of the image of each row
        image[by_path] = np.searchsorted(order, first)[image_of_row]
        statistics, start = ChannelStatistics(preprocessing.channels), 0
        for split in SPLITS:
            end = start + len(members[split])
            np.save(folder / f"{split}.npy", places[image[start:end]])
            if split == "train":
                statistics.sums = records["sums"][start:end, :, : preprocessing.channels].sum(axis=0)
            start = end
        checksums = np.ascontiguousarray(records["prepared_crc32"])
        # another file with the same pixels may have other bytes; it is read again, as if it were the only one
        is_kept = (records["stamp"] != b"") & (records["encoded_crc32"] == stored["encoded_crc32"][image])
        scratch_rows = np.array([row["scratch_row"] for row in rows], dtype=np.intp)
        self._kept = scratch_rows[is_kept], places[image[is_kept]], shards
        info = {"packed": "shards", "decoders": decoder_versions()}
        return PackedSplits(hashlib.sha256(b"shards" + checksums.tobytes()), checksums, statistics, info)

    def _write_shards(self, folder: Path, stored: NDArray[np.void]) -> tuple[NDArray[np.void], list[Path]]:
        """Write the shards of images, by their records; returns the places of the images, and the shards."""
        (folder / SHARDS).mkdir()
        sources = self.paths()
        places, shards, entries, start = np.empty(len(stored), PLACE), [], [], 0
        for number, end in enumerate(shard_limits(stored["sha256"], stored["place"]["length"])):
            part = stored[start:end]
            lengths = part["place"]["length"]
            path = folder / SHARDS / shard_name(part["sha256"], lengths, part["encoded_crc32"])
            if not self._link(path, part):
                images = (self.read(sources, record) for record in part)
                names = [f"{record['sha256'].tobytes().hex()}.{'jpg' if record['is_jpeg'] else 'webp'}"
                         for record in part]  # fmt: skip
                write_shard(path, names, images)
            places[start:end]["shard"], places[start:end]["length"] = number, lengths
            places[start:end]["offset"] = first_offsets(lengths)
            shards.append(path)
            entries.append({"url": f"{SHARDS}/{path.name}", "nsamples": end - start, "filesize": shard_bytes(lengths)})
            start = end
        index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries}
        (folder / SHARDS_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return places, shards

    def _link(self, path: Path, part: NDArray[np.void]) -> bool:
        """Take a shard of the last preparation if it has the same images and is not damaged."""
        earlier = self.folder / SHARDS / path.name
        if not earlier.is_file():
            return False
        expected = part.copy()
        expected["place"]["shard"], expected["place"]["offset"] = 0, first_offsets(part["place"]["length"])
        try:
            for record in expected:
                self.read([earlier], record)
            os.link(earlier, path)
        except (OSError, UdcError):
            return False
        return True

    def remove(self) -> None:
        """Delete the images that are in shards now; links to the shards remain for the next preparation."""
        try:
            self.replace(*self._kept)
        except (UdcError, OSError) as error:
            logger.info("%s; the next preparation reads all files again", error)
            shutil.rmtree(self.folder, ignore_errors=True)
