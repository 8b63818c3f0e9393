"""`udc fetch` in a project: the folder, DVC, the record in the prepared data; object stores and servers on loopback."""

import json
import struct
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from udc_model.cli import main
from udc_model.config import DataParams, Params
from udc_model.data.packed import PackedDataset
from udc_model.data.source_record import RECORD, read_source_record
from udc_model.errors import UdcError
from udc_model.fetch.project import fetch
from udc_model.fetch.torchvision_sets import cache_folder
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare
from udc_model.stages.train import dataset_input


@pytest.fixture
def eurosat(project, encoded):
    """The images of a cached EuroSAT, ten of each class."""
    images = {f"{label}/{label}_{k}.jpg": encoded(10 * c + k) for c, label in enumerate(("Forest", "River"))
              for k in range(10)}  # fmt: skip
    for path, content in images.items():
        file = cache_folder("EuroSAT") / "eurosat/2750" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return images


@pytest.fixture(scope="module")
def s3_server():
    """The address of an S3 server on the loopback device."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A client of the S3 server with the empty bucket `pictures`; the environment has server and credentials."""
    import boto3

    for name, value in (("AWS_ENDPOINT_URL", s3_server), ("AWS_ACCESS_KEY_ID", "testing"),
                        ("AWS_SECRET_ACCESS_KEY", "SECRET-KEY"), ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="pictures")
    yield client
    for entry in client.list_objects_v2(Bucket="pictures").get("Contents", []):
        client.delete_object(Bucket="pictures", Key=entry["Key"])


def _tracked(path):
    stage = yaml.safe_load(path.with_name(f"{path.name}.dvc").read_text())
    return stage["outs"][0]


def test_command_writes_a_tracked_folder_and_prints_what_to_set(project, eurosat, contents, capsys):
    assert main(["fetch", "torchvision:EuroSAT"]) == 0
    folder = project / "data/raw/EuroSAT"
    assert contents(folder) == eurosat
    assert _tracked(folder)["nfiles"] == len(eurosat) + 1  # the record is versioned with the images
    assert json.loads((folder / RECORD).read_text())["images"] == {"all": 20}
    output = capsys.readouterr().out
    assert output.startswith("data/raw/EuroSAT: 20 images of 2 classes (all 20); revision torchvision 0.")
    assert "  git add data/raw/EuroSAT.dvc data/raw/.gitignore\n" in output
    assert "  udc run -S data.source=auto -S data.path=data/raw/EuroSAT -S costs.preset=uniform\n" in output
    assert "To track the changes" not in output  # DVC's own advice
    assert subprocess.run(["git", "check-ignore", "-q", str(folder)], cwd=project, check=False).returncode == 0


def test_the_same_data_gives_the_same_dvc_hash(project, eurosat):
    fetch("torchvision:EuroSAT", project / "data/raw/a")
    fetch("torchvision:EuroSAT", project / "data/raw/b")
    assert _tracked(project / "data/raw/a")["md5"] == _tracked(project / "data/raw/b")["md5"]


def test_prepare_and_the_run_record_what_was_fetched(project, eurosat):
    fetch("torchvision:EuroSAT")
    params = Params(data=DataParams(source="folder", path="data/raw/EuroSAT", image_size=8))
    info = prepare(params, Workspace(project))
    record = json.loads((project / "data/raw/EuroSAT" / RECORD).read_text())
    assert info["fetched"] == record
    assert info["images"] == 20  # the record is not taken for data
    source = dataset_input(params, PackedDataset.open(Workspace(project).prepared))["source"]
    assert source == {
        "source": "folder", "path": "data/raw/EuroSAT", "fetched.name": "torchvision:EuroSAT",
        "fetched.revision": record["revision"], "fetched.digest": record["digest"],
    }  # fmt: skip


def test_data_put_there_by_hand_has_no_record(project, shapes_folder):
    params = Params(data=DataParams(source="folder", path=str(shapes_folder), image_size=8))
    assert "fetched" not in prepare(params, Workspace(project))
    assert read_source_record(shapes_folder) is None


def test_a_damaged_record_is_an_error(tmp_path):
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(
        UdcError, match=r"\.udc-source\.json: cannot be read .*; restore the folder with `dvc checkout`"
    ):
        read_source_record(tmp_path)
    (tmp_path / "x.dvc").write_text("deps: 3")
    with pytest.raises(UdcError, match=r"x\.dvc: cannot be read"):
        read_source_record(tmp_path / "x")


def test_split_sets_have_split_folders_and_lossless_pixels(project, rng):
    raw = cache_folder("FashionMNIST") / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    pixels = rng.integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        head = struct.pack(">4I", 0x803, 10, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 10) + bytes(range(10)))
    fetched = fetch("torchvision:FashionMNIST", project / "data/raw/fashion")
    assert fetched.contents.startswith("20 images of 10 classes (train 10, test 10); revision torchvision ")
    for split in ("train", "test"):
        image = Image.open(project / "data/raw/fashion" / split / "T-shirt_top/00000.png")
        assert (np.asarray(image) == pixels[0]).all()


@pytest.mark.parametrize(("name", "message"), [
    ("EuroSAT", "EuroSAT: must be torchvision:NAME, huggingface:NAME or an address that begins with s3://"),
    ("ftp://x/y.zip", "ftp://x/y.zip: must be torchvision:NAME"),
    ("torchvision:", "torchvision:: must be torchvision:NAME"),
    ("torchvision:CIFAR10", "loads it with pickle, which can run any code; use huggingface:uoft-cs/cifar10"),
    ("https://user:SECRET@host/x.zip", "the address contains a user or a signature"),
    ("https://host/x.zip?X-Amz-Signature=SECRET", "the address contains a user or a signature"),
    ("https://host/x.zip?sig=SECRET", "the address contains a user or a signature"),
    ("https://127.0.0.1:1/x.zip", "x.zip: there is nothing at this address, or it cannot be reached"),
])  # fmt: skip
def test_refusals_are_one_line_without_secrets(project, name, message, caplog, capsys):
    assert main(["fetch", name]) == 1
    assert message in caplog.text
    assert caplog.text.count("error: ") == 1
    assert "SECRET" not in caplog.text + "".join(capsys.readouterr())
    assert not [path for path in (project / "data").rglob("*") if path.is_file()]


def test_an_existing_target_is_not_touched(project, eurosat):
    target = project / "data/raw/EuroSAT"
    target.mkdir(parents=True)
    with pytest.raises(UdcError, match=r"--to: data/raw/EuroSAT exists; remove it, or choose another folder with --to"):
        fetch("torchvision:EuroSAT")
    target.rmdir()
    (project / "data/raw/EuroSAT.dvc").write_text("outs: []")
    with pytest.raises(UdcError, match=r"`dvc pull data/raw/EuroSAT` restores the data set"):
        fetch("torchvision:EuroSAT")
    assert not target.exists()


def test_a_target_or_folder_outside_of_the_project_is_refused(project, eurosat, tmp_path, monkeypatch):
    with pytest.raises(UdcError, match="is not in the project"):
        fetch("torchvision:EuroSAT", tmp_path / "outside")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UdcError, match="is not in a DVC repository; run udc fetch in the project's folder"):
        fetch("torchvision:EuroSAT")


def test_options_of_hugging_face_are_refused_for_other_sets(project, caplog):
    assert main(["fetch", "torchvision:EuroSAT", "--label", "fine"]) == 1
    assert "--config, --image, --label: apply to huggingface:NAME only" in caplog.text


def test_missing_extras_are_named(project, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "dvc_s3", None)
    assert main(["fetch", "huggingface:beans"]) == 1
    assert "huggingface:beans: needs the extra hub: pip install 'udc-model[hub]'" in caplog.text
    assert main(["fetch", "s3://pictures/set"]) == 1
    assert "install the extra: pip install 'udc-model[cloud]'" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["udc_model.fetch.image_folder.ImageFolderWriter.add", "dvc.repo.Repo.add"])
def test_an_interrupted_fetch_leaves_nothing(project, eurosat, monkeypatch, error, where):
    calls = []

    def fail(*args):
        calls.append(args)
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises((KeyboardInterrupt, UdcError, OSError)):
        fetch("torchvision:EuroSAT")
    assert calls
    assert list((project / "data/raw").iterdir()) == []


def test_an_interrupted_import_leaves_nothing(project, s3, monkeypatch):
    s3.put_object(Bucket="pictures", Key="set/a/1.jpg", Body=b"1")

    def interrupted(repository, url, out):
        (project / out / "a").mkdir(parents=True)
        (project / f"{out}.dvc").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr("dvc.repo.Repo.imp_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("s3://pictures/set")
    assert list((project / "data/raw").iterdir()) == []


def test_import_from_s3_is_tracked_and_can_be_updated(project, s3, encoded, contents, capsys, caplog):
    caplog.set_level("INFO")
    images = {f"{label}/{k}.jpg": encoded(k) for label in ("a", "b") for k in range(3)}
    for path, content in images.items():
        s3.put_object(Bucket="pictures", Key=f"set/{path}", Body=content)
    assert main(["fetch", "s3://pictures/set"]) == 0
    folder = project / "data/raw/set"
    assert contents(folder) == images
    stage = yaml.safe_load((project / "data/raw/set.dvc").read_text())
    assert stage["deps"][0]["path"] == "s3://pictures/set"
    assert stage["frozen"] is True
    record = read_source_record(folder)
    assert record == {"name": "s3://pictures/set", "revision": stage["deps"][0]["md5"]}
    assert read_source_record(folder / "a") == record
    output = capsys.readouterr()
    assert "data/raw/set: 6 file(s), " in output.out
    assert "-S data.path=data/raw/set " in output.out
    assert "s3://pictures/set: importing 6 file(s), " in caplog.text
    assert "SECRET-KEY" not in caplog.text + output.out + output.err

    s3.put_object(Bucket="pictures", Key="set/b/new.jpg", Body=encoded(9))
    from dvc.repo import Repo

    with Repo() as repository:
        repository.update(["data/raw/set.dvc"])
    assert contents(folder) == images | {"b/new.jpg": encoded(9)}
    assert read_source_record(folder)["revision"] != record["revision"]


def test_server_and_credentials_can_come_from_a_dvc_remote(project, s3, s3_server, encoded, monkeypatch):
    from dvc.repo import Repo

    s3.put_object(Bucket="pictures", Key="set/a/1.jpg", Body=encoded(1))
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with Repo() as repository, repository.config.edit("local") as config:
        config["remote"]["store"] = {"url": "s3://pictures", "endpointurl": s3_server, "access_key_id": "testing",
                                     "secret_access_key": "SECRET-KEY"}  # fmt: skip
    fetched = fetch("remote://store/set")
    assert (fetched.path / "a/1.jpg").read_bytes() == encoded(1)
    assert "SECRET-KEY" not in (project / "data/raw/set.dvc").read_text()


def test_object_names_that_leave_the_folder_are_refused(project, s3, tmp_path):
    s3.put_object(Bucket="pictures", Key="set/a/1.jpg", Body=b"1")
    s3.put_object(Bucket="pictures", Key="set/../../../../evil.jpg", Body=b"evil")
    with pytest.raises(UdcError, match=r"contains the name '\.\./\.\./.*evil.jpg', which leads out of the folder"):
        fetch("s3://pictures/set")
    assert not list(tmp_path.rglob("evil.jpg"))
    assert not (project / "data/raw/set").exists()


@pytest.mark.parametrize(("url", "message"), [
    ("s3://pictures/none", "s3://pictures/none: there is nothing at this address"),
    ("s3://no-such-bucket/x", "s3://no-such-bucket/x: there is nothing at this address"),
])  # fmt: skip
def test_missing_objects_are_one_line(project, s3, url, message, caplog):
    assert main(["fetch", url]) == 1
    assert message in caplog.text
    assert "Traceback" not in caplog.text


def test_a_full_disk_is_noticed_before_an_import(project, s3, monkeypatch):
    s3.put_object(Bucket="pictures", Key="set/a/1.jpg", Body=b"x" * 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1999}))
    with pytest.raises(UdcError, match=r"s3://pictures/set: needs 2 kB, but .* has 2 kB free"):
        fetch("s3://pictures/set")


def test_an_archive_is_imported_from_a_server(project, server, encoded):
    folder, address = server
    with zipfile.ZipFile(folder / "birds.zip", "w") as archive:
        archive.writestr("crow/1.jpg", encoded(1))
    fetched = fetch(f"{address}/birds.zip")
    assert fetched.path.as_posix() == "data/raw/birds.zip"
    assert fetched.path.read_bytes() == (folder / "birds.zip").read_bytes()
    assert read_source_record(fetched.path)["name"] == f"{address}/birds.zip"
    with pytest.raises(UdcError, match=r"--to: data/raw/birds must end in \.zip, as the address"):
        fetch(f"{address}/birds.zip", project.relative_to(project) / "data/raw/birds")
    with pytest.raises(UdcError, match=r"none.zip: there is nothing at this address"):
        fetch(f"{address}/none.zip")


def test_a_transfer_that_breaks_off_leaves_nothing(project, monkeypatch):
    import http.server

    class Broken(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.send_header("ETag", '"1"')
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(b"half")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}/x.zip"
        with pytest.raises(UdcError, match=r"x.zip: cannot be fetched") as failed:
            fetch(address)
        running.shutdown()
    assert "\n" not in str(failed.value)
    assert list((project / "data/raw").iterdir()) == []
