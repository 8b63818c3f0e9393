"""Shards have the pixels of raw arrays, and the same bytes however their preparation was interrupted or grown."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from udc_model.config import SPLITS
from udc_model.data import audit, preflight, workers
from udc_model.data.packed import PackedDataset
from udc_model.data.preflight import packed_form
from udc_model.data.quality.traits import TRAITS
from udc_model.data.scratch import Checked
from udc_model.data.shards import interim, tar_files, writing
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.errors import UdcError
from udc_model.files import Workspace


@pytest.fixture
def folder(raw, tmp_path):
    """A copy of the image files, with their times."""
    return shutil.copytree(raw, tmp_path / "raw")


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded."""
    names, decode_frames = [], audit.decode_frames

    def spy(source, decoding, name):
        names.append(name)
        return decode_frames(source, decoding, name)

    monkeypatch.setattr(audit, "decode_frames", spy)
    return names


@pytest.mark.parametrize(("channels", "settings"), [
    (3, {}),
    (1, {"resize": "squash"}),
    (3, {"crop_pct": 0.8, "resample": "bilinear"}),
    (1, {"image_size": 40}),
])  # fmt: skip
def test_pixels_splits_and_order_are_those_of_raw_arrays(preparation, raw, tmp_path, channels, settings):
    pixels = PackedDataset.open(preparation.run(raw, tmp_path / "a", "raw", channels, **settings))
    shards = PackedDataset.open(preparation.run(raw, tmp_path / "b", "shards", channels, **settings))
    for name in ("manifest.csv", "image_checksums.npy", "left_out.csv"):
        assert (pixels.folder / name).read_bytes() == (shards.folder / name).read_bytes()
    assert (pixels.preprocessing, pixels.notes) == (shards.preprocessing, shards.notes)
    for name in SPLITS:
        assert (np.asarray(pixels.split(name).images) == np.asarray(shards.split(name).images)).all()


def test_webdataset_reads_the_shards_and_the_manifest_has_their_labels(as_shards):
    shards = sorted((as_shards / "shards").iterdir())
    assert len(shards) > 5
    digests = PackedDataset.open(as_shards).manifest["sha256"]
    names = []
    for shard in shards:
        with tarfile.open(shard) as archive:
            names += [member.name for member in archive if member.isreg() and archive.extractfile(member).read(4)]
    keys, suffixes = zip(*(name.split(".") for name in names), strict=True)
    assert set(keys) == set(digests)
    assert set(suffixes) == {"jpg", "webp"}


def test_images_with_the_same_pixels_are_stored_once(preparation, folder, as_shards, tmp_path):
    shutil.copy(folder / "bar/0000.jpg", folder / "bar/0000-copy.jpg")
    dataset = PackedDataset.open(preparation.run(folder, tmp_path / "out"))
    assert len(dataset.manifest) == 121
    assert preparation.hashes(dataset.folder / "shards") == preparation.hashes(as_shards / "shards")


class _StopError(Exception):
    pass


def _stop_at(monkeypatch, owner, name, n):
    """Let the n-th call of a function raise, before it does anything."""
    original, count = getattr(owner, name), [0]

    def stopping(*arguments, **options):
        count[0] += 1
        if count[0] == n:
            raise _StopError
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.parametrize(("owner", "name", "n"), [
    (interim._Log, "append", 70),
    (writing, "write_shard", 3),
    (interim.InterimImages, "replace", 1),
    (interim.os, "link", 2),
])  # fmt: skip
def test_an_interrupted_preparation_continues_to_the_same_bytes(
    preparation, raw, as_shards, decoded, monkeypatch, tmp_path, owner, name, n
):
    with monkeypatch.context() as patch:
        _stop_at(patch, owner, name, n)
        with pytest.raises(_StopError):
            preparation.run(raw, tmp_path)
    assert not Workspace(tmp_path).prepared.exists()
    n_before = len(decoded)
    assert preparation.hashes(preparation.run(raw, tmp_path)) == preparation.hashes(as_shards)
    assert len(decoded) - n_before == (120 - 64 if name == "append" else 0)  # two tasks of 32 images were complete


@pytest.mark.parametrize(("file", "size"), [
    ("images.bin", 1),
    ("images.bin", 10_000),
    ("traits.bin", 5),
    ("traits.bin", 10**6),
    ("records.bin", 1),
    ("records.bin", 1000),
])  # fmt: skip
def test_half_written_state_is_used_as_far_as_it_is_complete(
    preparation, raw, as_shards, monkeypatch, tmp_path, file, size
):
    with monkeypatch.context() as patch:
        _stop_at(patch, interim._Log, "append", 70)
        with pytest.raises(_StopError):
            preparation.run(raw, tmp_path)
    path = tmp_path / ".udc/prepare" / file
    os.truncate(path, max(0, path.stat().st_size - size))
    assert preparation.hashes(preparation.run(raw, tmp_path)) == preparation.hashes(as_shards)


def test_worker_processes_give_the_same_bytes(preparation, raw, as_shards, monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "_MIN_ITEMS", 1)
    assert preparation.hashes(preparation.run(raw, tmp_path)) == preparation.hashes(as_shards)


_KILLED = """
import itertools, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import run
from udc_model.data import workers
from udc_model.data.shards import interim, tar_files
tar_files.TARGET_BYTES, workers._MIN_ITEMS = 2**14, 1
if __name__ == "__main__":
    writes, n, append = itertools.count(1), int(sys.argv[4]), interim._Log.append
    def killing(*arguments):
        if next(writes) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return append(*arguments)
    interim._Log.append = killing
    run(Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_killed_processes_leave_what_the_next_one_completes(preparation, raw, as_shards, tmp_path):
    script, out = tmp_path / "killed.py", tmp_path / "out"
    script.write_text(_KILLED)
    for n in np.random.default_rng(0).integers(5, 40, 3):
        arguments = [sys.executable, script, Path(__file__).parent, raw, out, str(n)]
        assert subprocess.run(arguments, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert preparation.hashes(preparation.run(raw, out)) == preparation.hashes(as_shards)


def test_a_grown_folder_is_read_for_its_new_files_only(preparation, folder, decoded, tmp_path):
    first = preparation.hashes(preparation.run(folder, tmp_path / "grown") / "shards")
    shutil.rmtree(Workspace(tmp_path / "grown").prepared)  # as DVC does
    preparation.write_files(folder, 120, 123)  # one at the end of each class
    decoded.clear()
    grown = preparation.run(folder, tmp_path / "grown")
    assert sorted(decoded) == ["0120.jpg", "0121.jpg", "0122.jpg"]
    assert preparation.hashes(grown) == preparation.hashes(preparation.run(folder, tmp_path / "fresh"))
    second = preparation.hashes(grown / "shards")
    assert len(first.items() - second.items()) <= 3 < len(first) / 2
    assert all((grown / "shards" / name).stat().st_nlink == 2 for name in second)  # with those of the state


def test_every_file_is_found_again(tmp_path):
    state = interim.InterimImages(tmp_path / "state", Preprocessing(16), {})
    state.create()
    (tmp_path / "files").mkdir()
    paths = [tmp_path / "files" / f"{number}.jpg" for number in range(1000)]
    traits = np.zeros((), TRAITS).tobytes()
    for path in paths:  # of 1,000 digests, some end with a null byte
        path.touch()
        record = np.zeros((), interim.RECORD)
        record["stamp"] = state.source_file(path).stamp
        state.keep(interim.Encoded(Checked(1, 1, "0" * 64, 0), record.tobytes(), traits, b""), True)
    state.flush()
    state.create()
    assert [found and found.scratch_row for found in map(state.find, paths)] == list(range(1000))
    paths[7].write_bytes(b"longer")
    assert state.find(paths[7]) is None


def test_changed_files_are_read_again_and_removed_ones_vanish(preparation, folder, decoded, tmp_path):
    preparation.run(folder, tmp_path / "out")
    path, same = folder / "dot/0001.jpg", folder / "dot/0010.jpg"
    status = path.stat()
    shutil.copy(folder / "bar/0000.jpg", path)
    os.utime(same, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (folder / "dot/0013.jpg").unlink()
    decoded.clear()
    changed = preparation.run(folder, tmp_path / "out")
    assert sorted(decoded) == ["0001.jpg", "0010.jpg"]
    assert preparation.hashes(changed) == preparation.hashes(preparation.run(folder, tmp_path / "fresh"))


def test_other_settings_use_nothing_of_earlier_ones(preparation, raw, decoded, tmp_path):
    preparation.run(raw, tmp_path / "out")
    decoded.clear()
    other = preparation.run(raw, tmp_path / "out", image_size=12)
    assert len(decoded) == 120
    assert preparation.hashes(other) == preparation.hashes(preparation.run(raw, tmp_path / "fresh", image_size=12))


def test_raw_arrays_delete_the_state(preparation, raw, as_pixels, tmp_path):
    preparation.run(raw, tmp_path)
    assert (tmp_path / ".udc/prepare").is_dir()
    assert preparation.hashes(preparation.run(raw, tmp_path, "raw")) == preparation.hashes(as_pixels)
    assert not (tmp_path / ".udc/prepare").exists()


def test_without_hard_links_the_next_preparation_reads_all(preparation, raw, as_shards, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(interim.os, "link", lambda *paths: (_ for _ in ()).throw(OSError(1, "not permitted")))
    with caplog.at_level("INFO"):
        assert preparation.hashes(preparation.run(raw, tmp_path)) == preparation.hashes(as_shards)
    assert "the next preparation reads all files again" in caplog.text
    assert not (tmp_path / ".udc/prepare").exists()


def test_a_damaged_state_is_one_error(preparation, folder, tmp_path):
    preparation.run(folder, tmp_path / "out")
    shard = next((tmp_path / "out/.udc/prepare/shards").iterdir())
    contents = bytearray(shard.read_bytes())
    contents[600] ^= 1
    shard.write_bytes(contents)
    with pytest.raises(UdcError, match=r"shards/\w+\.tar: is damaged; delete \S+prepare and run the stage again"):
        preparation.run(folder, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/.udc/prepare")
    preparation.run(folder, tmp_path / "out")


def test_auto_depends_on_the_number_and_size_of_the_images(caplog):
    side, n = 256, preflight.LARGEST_RAW // (3 * 256**2)
    assert packed_form("auto", n, Preprocessing(side)) == "raw"
    assert packed_form("auto", 3 * n, Preprocessing(side, decoding=Decoding(1))) == "raw"
    with caplog.at_level("INFO"):
        assert packed_form("auto", n + 1, Preprocessing(side)) == "shards"
    assert len(caplog.messages) == 1
    assert "more than 32 GiB" in caplog.text
    assert packed_form("raw", 10 * n, Preprocessing(side)) == "raw"
    assert packed_form("shards", 1, Preprocessing(side)) == "shards"


def test_limits_are_stable(monkeypatch):
    rng = np.random.default_rng(0)
    digests, lengths = rng.integers(0, 256, (5000, 32), np.uint8), rng.integers(100, 3000, 5000).astype(np.uint32)
    limits = tar_files.shard_limits(digests, lengths)
    sizes = [tar_files.shard_bytes(lengths[a:b]) for a, b in zip([0, *limits], limits, strict=False)]
    assert limits[-1] == 5000
    assert max(sizes) < 4 * tar_files.TARGET_BYTES + 5000
    assert tar_files.TARGET_BYTES / 1.5 < np.mean(sizes) < tar_files.TARGET_BYTES * 1.5
    later = tar_files.shard_limits(np.delete(digests, 2500, 0), np.delete(lengths, 2500))
    assert len({limit for limit in limits if limit <= 2500} ^ {limit for limit in later if limit <= 2500}) <= 1
    assert len({limit - 1 for limit in limits if limit > 2501} ^ {limit for limit in later if limit > 2500}) <= 2
