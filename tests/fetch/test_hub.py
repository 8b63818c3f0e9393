"""Files of the Hugging Face hub: from a cache that the tests fill, and from a hub on the loopback device."""

import hashlib
import http.server
import json
import threading
from urllib.parse import urlsplit

import pytest

from udc_model.errors import UdcError
from udc_model.fetch.huggingface_sets import fetch_huggingface

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["beans", "AI-Lab-Makerere/beans", f"beans@{COMMIT}", "beans@main"])
@pytest.mark.parametrize("described_by", ["card", "schema"])
def test_cached_set_is_written_byte_for_byte(hub, out, contents, name, described_by, features, beans):
    snapshot = hub()
    card = [] if described_by == "card" else ["# Beans\n"]
    names = ["angular_leaf_spot", "bean_rust", "healthy"]
    expected = beans(snapshot, features(labels=names) if described_by == "schema" else None, *card)
    record = fetch_huggingface(name, out)
    assert contents(out) == expected
    assert record["name"] == "huggingface:AI-Lab-Makerere/beans"
    assert record["revision"] == COMMIT
    assert record["url"] == "https://huggingface.co/datasets/AI-Lab-Makerere/beans"
    assert record["license"] == ("mit" if described_by == "card" else None)
    assert record["images"] == {"train": 4, "validation": 3, "test": 3}
    assert record["classes"] == names
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


def test_a_revision_selects_its_own_files(hub, out, encoded, features, write_parquet, beans):
    beans(hub())
    other = hub(commit="f" * 40, is_main=False)
    write_parquet(other / "train.parquet", [encoded(50), encoded(51)], features(label=["no", "yes"]), label=[1, 0])
    record = fetch_huggingface(f"beans@{'f' * 40}", out)
    assert (record["revision"], record["images"]) == ("f" * 40, {"all": 2})  # a single split is not split yet
    assert (out / "yes/000000.jpg").read_bytes() == encoded(50)


def test_several_commits_without_main_must_be_pinned(hub, out):
    hub(is_main=False)
    hub(commit="f" * 40, is_main=False)
    with pytest.raises(UdcError, match=f"has several commits; add one of them as @REVISION: .*{COMMIT}"):
        fetch_huggingface("beans", out)


@pytest.mark.parametrize("name", ["../x", "x/../y", "a/b/c", "", "a b"])
def test_names_that_are_no_repository_are_refused(out, name):
    with pytest.raises(UdcError, match="must be huggingface:NAME or huggingface:OWNER/NAME"):
        fetch_huggingface(name, out)


@pytest.fixture
def online(hub, tmp_path, monkeypatch, beans):
    """The hub on the loopback device with the data set beans; returns the requests that it gets, and the images."""
    from huggingface_hub import constants

    files = tmp_path / "repository"
    files.mkdir()
    expected = beans(files)
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
        yield requests, expected
        running.shutdown()


@pytest.mark.parametrize("name", ["beans", "beans@v1"])
def test_download_is_pinned_to_the_commit_and_works_offline_later(
    online, out, contents, tmp_path, name, caplog, monkeypatch
):
    from huggingface_hub import constants

    caplog.set_level("INFO", "udc_model")
    requests, expected = online
    record = fetch_huggingface(name, out)
    assert contents(out) == expected
    assert record["revision"] == COMMIT
    assert record["license"] == "mit"
    assert f"huggingface:{name}: 3 file(s) of " in caplog.text  # the size, before the download
    assert not any("beans.zip" in path for path in requests)
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
