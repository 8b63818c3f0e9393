"""Tests of tar files: the headers are those of Python's ``tarfile``."""

import tarfile

import pytest

from udc_model.data.shards.tar_files import write_shard


@pytest.mark.parametrize("size", [0, 1, 511, 512, 100_000])
def test_a_shard_has_the_bytes_of_tarfile(tmp_path, size):
    name, image = f"{'0123456789abcdef' * 4}.webp", bytes(range(256)) * (size // 256) + bytes(size % 256)
    write_shard(tmp_path / "a.tar", [name], [image])
    header = tarfile.TarInfo(name)
    header.size = size
    expected = header.tobuf(tarfile.USTAR_FORMAT) + image + bytes(-size % 512) + bytes(1024)
    assert (tmp_path / "a.tar").read_bytes() == expected
