"""Data sets of Hugging Face from a cache that the tests fill, and from a hub on the loopback device."""

import hashlib
import http.server
import json
import threading
from urllib.parse import urlsplit

import pyarrow
import pyarrow.parquet
import pytest

from udc_model.errors import UdcError
from udc_model.fetch.huggingface_sets import fetch_huggingface

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
BEANS = ["angular_leaf_spot", "bean_rust", "healthy"]
CARD = """---
license: mit
dataset_info:
  features:
  - name: image
    dtype: image
  - name: labels
    dtype:
      class_label:
        names:
          '0': angular_leaf_spot
          '1': bean_rust
          '2': healthy
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/validation-*
  - split: test
    path: data/test-*
---
# Beans
"""


def _features(**names):
    features = {"image": {"_type": "Image"}} | {k: {"_type": "ClassLabel", "names": v} for k, v in names.items()}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def _parquet(path, images, metadata=None, **columns):
    """Write images (bytes, or None) and columns of labels as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": content, "path": "../../evil.jpg"} for content in images]
    arrays = {"image": pyarrow.array(rows, IMAGE)} | {k: pyarrow.array(v) for k, v in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(arrays).replace_schema_metadata(metadata), path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that returns the snapshot folder of a data set in the cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def create(name="AI-Lab-Makerere/beans", commit=COMMIT, is_main=True):
        repository = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        if is_main:
            (repository / "refs").mkdir()
            (repository / "refs/main").write_text(commit)
        return snapshot

    return create


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def _beans(snapshot, encoded, metadata=None, card=CARD):
    (snapshot / "README.md").write_text(card)
    for split, seeds in (("train", (0, 1, 2, 3)), ("validation", (4, 5, 6)), ("test", (7, 8, 9))):
        _parquet(snapshot / f"data/{split}-00000-of-00001.parquet", [encoded(seed) for seed in seeds], metadata,
                 labels=[seed % 3 for seed in seeds])  # fmt: skip


EXPECTED = {
    "train/angular_leaf_spot/000000.jpg": 0, "train/bean_rust/000001.jpg": 1, "train/healthy/000002.jpg": 2,
    "train/angular_leaf_spot/000003.jpg": 3, "validation/bean_rust/000000.jpg": 4,
    "validation/healthy/000001.jpg": 5, "validation/angular_leaf_spot/000002.jpg": 6,
    "test/bean_rust/000000.jpg": 7, "test/healthy/000001.jpg": 8, "test/angular_leaf_spot/000002.jpg": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", ["beans", "AI-Lab-Makerere/beans", f"beans@{COMMIT}", "beans@main"])
@pytest.mark.parametrize("described_by", ["card", "schema"])
def test_cached_set_is_written_byte_for_byte(hub, out, encoded, contents, name, described_by):
    snapshot = hub()
    card = CARD if described_by == "card" else "# Beans\n"
    _beans(snapshot, encoded, _features(labels=BEANS) if described_by == "schema" else None, card)
    record = fetch_huggingface(name, out)
    assert contents(out) == {path: encoded(seed) for path, seed in EXPECTED.items()}
    assert record["name"] == "huggingface:AI-Lab-Makerere/beans"
    assert record["revision"] == COMMIT
    assert record["url"] == "https://huggingface.co/datasets/AI-Lab-Makerere/beans"
    assert record["license"] == ("mit" if described_by == "card" else None)
    assert record["images"] == {"train": 4, "validation": 3, "test": 3}
    assert record["classes"] == BEANS
    train = "data/train-00000-of-00001.parquet"
    assert record["files"][train] == hashlib.sha256((snapshot / train).read_bytes()).hexdigest()


def test_nothing_cached_is_one_line_that_says_what_to_do(hub, out, tmp_path):
    with pytest.raises(UdcError) as failed:
        fetch_huggingface("beans@v1", out)
    assert str(failed.value) == (
        f"huggingface:beans@v1: not in the cache {tmp_path}/hub, and the hub cannot be reached (HF_HUB_OFFLINE is set);"
        f" run `udc fetch huggingface:beans@v1` on a machine with network access and copy {tmp_path}/hub from there, "
        "or set HF_HOME"
    )


def test_a_revision_selects_its_own_files(hub, out, encoded):
    _beans(hub(), encoded)
    other = hub(commit="f" * 40, is_main=False)
    _parquet(other / "train.parquet", [encoded(50), encoded(51)], _features(label=["no", "yes"]), label=[1, 0])
    record = fetch_huggingface(f"beans@{'f' * 40}", out)
    assert (record["revision"], record["images"]) == ("f" * 40, {"all": 2})  # a single split is not split yet
    assert (out / "yes/000000.jpg").read_bytes() == encoded(50)


def test_several_commits_without_main_must_be_pinned(hub, out):
    hub(is_main=False)
    hub(commit="f" * 40, is_main=False)
    with pytest.raises(UdcError, match=f"has several commits; add one of them as @REVISION: .*{COMMIT}"):
        fetch_huggingface("beans", out)


def test_label_column_is_found_or_asked_for(hub, out, encoded):
    snapshot = hub("x/cifar100")
    _parquet(snapshot / "train.parquet", [encoded(0), encoded(1)],
             _features(fine_label=["apple", "bed"], coarse_label=["fruit", "thing"]),
             fine_label=[0, 1], coarse_label=[0, 1], note=["a", "b"])  # fmt: skip
    with pytest.raises(UdcError, match="several columns of labels: fine_label, coarse_label; choose one with --label"):
        fetch_huggingface("x/cifar100", out)
    with pytest.raises(UdcError, match=r"--label: .* has no such column of labels 'fin'; it has fine_label, coarse"):
        fetch_huggingface("x/cifar100", out, label="fin")
    assert fetch_huggingface("x/cifar100", out, label="coarse_label")["classes"] == ["fruit", "thing"]
    assert fetch_huggingface("x/cifar100", out, label="note")["classes"] == ["a", "b"]


def test_columns_without_class_label_are_used_by_name(hub, out, encoded):
    _parquet(hub("x/y") / "train.parquet", [encoded(0), encoded(1)], label=["cat", "dog"], other=[1, 2])
    assert fetch_huggingface("x/y", out)["classes"] == ["cat", "dog"]
    _parquet(hub("x/z") / "train.parquet", [encoded(0)], kind=["cat"])
    with pytest.raises(UdcError, match="huggingface:x/z: has no column of labels; name one with --label: kind"):
        fetch_huggingface("x/z", out)


def test_several_image_columns_must_be_chosen(hub, out, encoded):
    images = pyarrow.array([{"bytes": encoded(0), "path": None}, {"bytes": encoded(1), "path": None}], IMAGE)
    table = pyarrow.table({"left": images, "right": images, "label": pyarrow.array(["a", "b"])})
    pyarrow.parquet.write_table(table, hub("x/y") / "train.parquet")
    with pytest.raises(UdcError, match="several columns of images: left, right; choose one with --image"):
        fetch_huggingface("x/y", out)
    assert fetch_huggingface("x/y", out, image="right")["images"] == {"all": 2}


def test_configurations_must_be_chosen_unless_one_is_the_default(hub, out, encoded):
    snapshot = hub("x/y")
    for config in ("small", "large"):
        for split in ("train", "test"):
            _parquet(snapshot / f"{config}/{split}/0000.parquet", [encoded(0)], label=[config])
    with pytest.raises(UdcError, match="has the configurations large, small; choose one with --config"):
        fetch_huggingface("x/y", out)
    with pytest.raises(UdcError, match="--config: huggingface:x/y has no configuration 'huge'; it has large, small"):
        fetch_huggingface("x/y", out, config="huge")
    assert fetch_huggingface("x/y", out, config="small")["classes"] == ["small"]
    (snapshot / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small/**\n- config_name: large\n  default: true\n"
        "  data_files:\n    train: large/train/*\n    test: [large/test/*]\n---\n"
    )
    assert fetch_huggingface("x/y", out)["classes"] == ["large"]


def test_a_script_is_refused(hub, out):
    snapshot = hub("x/y")
    (snapshot / "y.py").write_text("raise SystemExit('executed')")
    (snapshot / "data.zip").write_bytes(b"")
    with pytest.raises(UdcError, match=r"has no Parquet files .is loaded by a script, which is never run.; .*try "
                                       "huggingface:x/y@refs/convert/parquet"):  # fmt: skip
        fetch_huggingface("x/y", out)


def test_rows_without_a_label_are_left_out_counted_and_reported(hub, out, encoded, caplog):
    snapshot = hub("x/y")
    _parquet(snapshot / "train.parquet", [encoded(0), encoded(1), encoded(2)], _features(label=["a", "b"]),
             label=[0, -1, 1])  # fmt: skip
    _parquet(snapshot / "test.parquet", [encoded(3)], _features(label=["a", "b"]), label=pyarrow.array([None], "int64"))
    record = fetch_huggingface("x/y", out)
    assert record["images"] == {"all": 2}  # only one split has labels, so the data is not split yet
    assert record["without_label"] == {"train": 1, "test": 1}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.jpg")} == {"a/000000.jpg", "b/000002.jpg"}
    assert "huggingface:x/y: images without a label are left out: test 1, train 1" in caplog.text


def test_other_splits_are_left_out_with_a_warning(hub, out, encoded, caplog):
    snapshot = hub("x/y")
    (snapshot / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files:\n  - {split: train, path: a.parquet}\n"
        "  - {split: extra, path: b.parquet}\n  - {split: dev, path: c.parquet}\n---\n"
    )
    for seed, file in enumerate("abc"):
        _parquet(snapshot / f"{file}.parquet", [encoded(seed)], label=["cat"])
    assert fetch_huggingface("x/y", out)["images"] == {"train": 1, "validation": 1}
    assert "the splits extra are left out" in caplog.text


@pytest.mark.parametrize(("names", "message"), [
    (["a/b", "a:b"], "the classes 'a/b' and 'a:b' would both be the folder 'a_b'"),
    (["cat", "Cat"], "the classes 'cat' and 'Cat' would both be the folder 'Cat'"),
    (["..", "b"], "the name '..' cannot be the name of a file or folder"),
    (["x" * 101, "b"], "has more than 100 characters"),
])  # fmt: skip
def test_class_names_that_cannot_be_folders_are_refused(hub, out, encoded, names, message):
    _parquet(hub("x/y") / "train.parquet", [encoded(0), encoded(1)], _features(label=names), label=[0, 1])
    with pytest.raises(UdcError) as refused:
        fetch_huggingface("x/y", out)
    assert message in str(refused.value)


def test_names_from_the_source_never_leave_the_folder(hub, out, encoded, tmp_path):
    names = ["../../evil", "/etc/x", ".hidden", "a\0b", "C:\\windows"]
    _parquet(hub("x/y") / "train.parquet", [encoded(k) for k in range(5)], _features(label=names), label=list(range(5)))
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    record = fetch_huggingface("x/y", out)
    assert record["classes"] == ["C__windows", "__.._evil", "_etc_x", "_hidden", "a_b"]
    assert {path for path in tmp_path.rglob("*") if out not in path.parents} == before
    assert len(list(out.rglob("0*.jpg"))) == 5


@pytest.mark.parametrize(("problem", "message"), [
    ("truncated", "a Parquet file in .* is damaged or incomplete"),
    ("wrong hash", "damaged or incomplete .its SHA-256 starts with .*; remove .* and fetch again"),
    ("missing shard", "split train: 1 of 2 files data/train-… are there; fetch again with network access"),
    ("broken link", "missing in the cache of Hugging Face; fetch again with network access"),
    ("label too large", "the column labels has the label 7, but 3 class names"),
    ("no bytes", "the image of row 0 is not in the file; it cannot be fetched"),
    ("bad card", "README.md: its YAML header cannot be read"),
])  # fmt: skip
def test_a_half_downloaded_or_damaged_set_is_one_line(hub, out, encoded, problem, message):
    snapshot = hub()
    _beans(snapshot, encoded)
    path = snapshot / "data/train-00000-of-00001.parquet"
    match problem:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-200])
        case "wrong hash":
            blob = snapshot.parents[1] / "blobs" / ("0" * 64)
            blob.parent.mkdir()
            path.rename(blob)
            path.symlink_to(blob)
        case "missing shard":
            path.rename(path.with_name("train-00000-of-00002.parquet"))
        case "broken link":
            path.unlink()
            path.symlink_to(snapshot / "nowhere")
        case "label too large":
            _parquet(path, [encoded(0)], labels=[7])
        case "no bytes":
            _parquet(path, [None], labels=[0])
        case "bad card":
            (snapshot / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(UdcError, match=message) as failed:
        fetch_huggingface("beans", out)
    assert "\n" not in str(failed.value)


def test_a_large_row_group_and_a_full_disk_are_refused_before_reading(hub, out, encoded, monkeypatch):
    _beans(hub(), encoded)
    monkeypatch.setattr("udc_model.fetch.huggingface_sets._MAX_ROW_GROUP", 1000)
    with pytest.raises(UdcError, match=r"a row group has [\d,]+ bytes; at most 1,000 are read"):
        fetch_huggingface("beans", out)
    monkeypatch.undo()


def test_other_formats_keep_their_suffix(hub, out, encoded):
    images = [encoded(0, form) for form in ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")] + [b"\0\0\0 ftypheic", b"text"]
    _parquet(hub("x/y") / "train.parquet", images, label=["a"] * len(images))
    fetch_huggingface("x/y", out)
    suffixes = [path.suffix for path in sorted((out / "a").iterdir())]
    assert suffixes == [".png", ".webp", ".bmp", ".gif", ".tif", ".ppm", ".jpg", ".jpg"]  # the last: from the path


@pytest.mark.parametrize("name", ["../x", "x/../y", "a/b/c", "", "a b"])
def test_names_that_are_no_repository_are_refused(out, name):
    with pytest.raises(UdcError, match="must be huggingface:NAME or huggingface:OWNER/NAME"):
        fetch_huggingface(name, out)


@pytest.fixture
def online(hub, encoded, tmp_path, monkeypatch):
    """The hub on the loopback device with the data set beans; returns the paths of the requests that it gets."""
    from huggingface_hub import constants

    files = tmp_path / "repository"
    files.mkdir()
    _beans(files, encoded)
    (files / "beans.zip").write_bytes(b"not needed")
    content = {path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*") if path.is_file()}
    requests = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def _answer(self, body, headers=(), status=200):
            self.send_response(status)
            for key, value in (("Content-Length", len(body)), *headers):
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = urlsplit(self.path).path
            requests.append(path)
            entries = [{"type": "file", "path": name, "rfilename": name, "size": len(body), "oid": "1" * 40,
                        "blobId": "1" * 40} for name, body in content.items()]  # fmt: skip
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            if path in ("/api/datasets/beans", "/api/datasets/beans/revision/v1"):
                info = {"id": "AI-Lab-Makerere/beans", "sha": COMMIT, "siblings": entries}
                self._answer(json.dumps(info).encode(), [("Content-Type", "application/json")])
            elif path == f"/api/datasets/AI-Lab-Makerere/beans/tree/{COMMIT}":
                self._answer(json.dumps(entries).encode(), [("Content-Type", "application/json")])
            elif name in content:
                etag = hashlib.sha256(content[name]).hexdigest()
                self._answer(content[name], [("ETag", f'"{etag}"'), ("X-Repo-Commit", COMMIT)])
            else:
                self._answer(b"{}", [("X-Error-Code", "RepoNotFound")], 404)

        def do_HEAD(self):
            self.do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        template = f"{constants.ENDPOINT}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield requests
        running.shutdown()


@pytest.mark.parametrize("name", ["beans", "beans@v1"])
def test_download_is_pinned_to_the_commit_and_works_offline_later(
    online, out, encoded, contents, tmp_path, name, caplog, monkeypatch
):
    from huggingface_hub import constants

    caplog.set_level("INFO", "udc_model")
    record = fetch_huggingface(name, out)
    assert contents(out) == {path: encoded(seed) for path, seed in EXPECTED.items()}
    assert record["revision"] == COMMIT
    assert record["license"] == "mit"
    assert f"huggingface:{name}: 3 file(s) of " in caplog.text  # the size, before the download
    assert not any("beans.zip" in path for path in online)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = tmp_path / "again"
    again.mkdir()
    assert fetch_huggingface("beans", again) == record


@pytest.mark.usefixtures("online")
def test_an_unknown_set_and_a_full_disk_are_one_line_before_the_download(out, monkeypatch):
    with pytest.raises(UdcError, match=r"huggingface:nothing: .*check the name, or log in with") as failed:
        fetch_huggingface("nothing", out)
    assert "\n" not in str(failed.value)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UdcError, match=r"huggingface:beans: needs \d+ kB, but .* has 1 kB free"):
        fetch_huggingface("beans", out)
