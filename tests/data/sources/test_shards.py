"""Tar shards of untrusted origin: bounded headers, no links, damage after the images before it."""

import io
import tarfile

import numpy as np
import pytest

from udc_model.data.formats import BadImageError
from udc_model.data.sources import shards
from udc_model.data.sources.records import Rejection
from udc_model.data.sources.shards import ShardMember, is_shard, list_shard
from udc_model.errors import UdcError

LONG = "d/" * 150 + "long.jpg"  # needs a header of its own in every format


def _add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        _add(tar, "000.jpg", b"first")
        _add(tar, "000.json", b"{}")
        _add(tar, "._000.jpg", b"of macOS")
        _add(tar, "d", type=tarfile.DIRTYPE)
        _add(tar, "d/001.PNG", b"second" * 200)
        _add(tar, "002.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        _add(tar, "003.jpg", type=tarfile.LNKTYPE, linkname="000.jpg")
        _add(tar, "004.jpg", type=tarfile.CHRTYPE)
        _add(tar, LONG, b"third")
        _add(tar, "../../005.jpg", b"fourth")  # only a name: nothing is written
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_at_their_place(tmp_path, form):
    contents = {f"{k}.jpg": bytes([k]) * (k * 137) for k in range(9)} | ({} if form == 0 else {LONG: b"x"})
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name, data in contents.items():
            _add(tar, name, data)
    assert {member.name: member.read() for member in list_shard(tmp_path / "a.tar")} == contents


def test_images_by_their_suffix_and_no_links(shard):
    found = list(list_shard(shard))
    images = {each.name: each.read() for each in found if isinstance(each, ShardMember)}
    assert images == {"000.jpg": b"first", "d/001.PNG": b"second" * 200, LONG: b"third", "../../005.jpg": b"fourth"}
    rejected = [each for each in found if isinstance(each, Rejection)]
    assert [each.path for each in rejected] == ["002.jpg", "003.jpg", "004.jpg"]
    assert {each.reason for each in rejected} == {"is a link, a device or a sparse file in the shard"}


def test_large_images_and_other_names_than_utf8_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBER", 3 * 2**20)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, "a.jpg", bytes(3 * 2**20 + 1))
        _add(tar, "\udcff.jpg", b"x")
    reasons = [each.reason for each in list_shard(tmp_path / "a.tar")]
    assert reasons == ["has 3,145,729 bytes; at most 3 MiB are read", "its name is not UTF-8; rename it"]


def test_a_shard_that_shrinks_or_goes_is_a_bad_image(shard):
    *_, member = [each for each in list_shard(shard) if isinstance(each, ShardMember)]
    shard.write_bytes(shard.read_bytes()[: member.offset + 2])
    with pytest.raises(BadImageError, match="the shard has become shorter since it was listed"):
        member.read()
    shard.unlink()
    with pytest.raises(BadImageError, match="the shard cannot be read: No such file"):
        member.read()


def _until_error(path):
    """The images before the damage, and the message."""
    members = list_shard(path)
    found = []
    with pytest.raises(UdcError, match=r"^is no uncompressed tar file, or damaged: ") as error:
        found.extend(_recorded(members, found))
    return found, str(error.value)


def _recorded(members, found):
    """Add the members to a list one by one, so that it has those before an error."""
    for member in members:
        found.append(member)
    return []


def test_damage_ends_the_list_after_the_images_before_it(shard, tmp_path):
    data = bytearray(shard.read_bytes())
    cut = tmp_path / "cut.tar"
    cut.write_bytes(data[:5000])
    assert [each.name for each in _until_error(cut)[0]][:1] == ["000.jpg"]
    data[1024:1100] = b"\xee" * 76  # the header of the second member: tarfile would end without an error
    cut.write_bytes(data)
    found, message = _until_error(cut)
    assert [each.name for each in found] == ["000.jpg"]
    assert message.endswith("bad header")
    for content in (b"no tar file" * 100, b"\x1f\x8b" + bytes(600), b"x"):
        cut.write_bytes(content)
        assert _until_error(cut)[0] == []
    cut.write_bytes(bytes(10240))
    assert list(list_shard(cut)) == []


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_cannot_fill_the_memory(tmp_path, kind):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 2**33
    with (tmp_path / "a.tar").open("wb") as handle:
        handle.write(header.tobuf(tarfile.GNU_FORMAT))
        handle.truncate(2**33 + 10240)  # sparse on the disk
    assert "a header has more than 1,048,576 bytes" in _until_error(tmp_path / "a.tar")[1]


def test_random_damage_is_an_error_or_a_list(shard, tmp_path):
    rng, original = np.random.default_rng(0), shard.read_bytes()
    for _ in range(300):
        data = bytearray(original)
        for k in rng.integers(0, len(data), 8):
            data[k] = rng.integers(256)
        (tmp_path / "b.tar").write_bytes(data)
        try:
            for each in list_shard(tmp_path / "b.tar"):
                assert isinstance(each, Rejection) or len(each.read()) == each.size
        except UdcError:
            pass


def test_only_uncompressed_tar_files_are_shards():
    assert [is_shard(name) for name in ("a.tar", "A.TAR", "a.tar.gz", "a.tgz", "tar")] == [
        True,
        True,
        False,
        False,
        False,
    ]
