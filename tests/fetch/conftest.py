"""A project for `udc fetch`: a new git and DVC repository as the current folder, with empty caches beside it."""

import functools
import http.server
import io
import json
import shutil
import subprocess
import threading

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
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


@pytest.fixture(scope="session")
def empty_project(tmp_path_factory):
    """A new git and DVC repository, which the tests copy."""
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    Repo.init(str(root)).close()
    return root


@pytest.fixture
def project(empty_project, tmp_path, monkeypatch):
    """The project's folder; the caches of torchvision and Hugging Face are empty folders beside it."""
    from huggingface_hub import constants

    root = tmp_path / "project"
    shutil.copytree(empty_project, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return root


@pytest.fixture
def encoded():
    """A function that returns an image file of 8 x 8 pixels, different for each seed, as bytes."""

    def encode(seed, form="JPEG"):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        return buffer.getvalue()

    return encode


@pytest.fixture
def contents():
    """A function that returns the visible files below a folder, by relative path."""
    return lambda folder: {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder, and the address at which a server on the loopback device offers its files."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


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
    """An empty folder to write a data set into."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def features():
    """A function that returns the metadata of a Parquet file, given the class names of its columns of labels."""

    def describe(**names):
        columns = {"image": {"_type": "Image"}} | {k: {"_type": "ClassLabel", "names": v} for k, v in names.items()}
        return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}

    return describe


@pytest.fixture
def write_parquet():
    """A function that writes images (bytes, or None) and columns of labels as a Parquet file."""

    def write(path, images, metadata=None, **columns):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"bytes": content, "path": "../../evil.jpg"} for content in images]
        arrays = {"image": pyarrow.array(rows, IMAGE)} | {k: pyarrow.array(v) for k, v in columns.items()}
        pyarrow.parquet.write_table(pyarrow.table(arrays).replace_schema_metadata(metadata), path)

    return write


@pytest.fixture
def beans(encoded, write_parquet):
    """A function that writes the files of a small data set; returns its images, by their path in the fetched folder."""

    def write(folder, metadata=None, card=CARD):
        (folder / "README.md").write_text(card)
        expected = {}
        for split, seeds in (("train", (0, 1, 2, 3)), ("validation", (4, 5, 6)), ("test", (7, 8, 9))):
            write_parquet(folder / f"data/{split}-00000-of-00001.parquet", [encoded(seed) for seed in seeds], metadata,
                          labels=[seed % 3 for seed in seeds])  # fmt: skip
            names = ("angular_leaf_spot", "bean_rust", "healthy")
            expected |= {f"{split}/{names[seed % 3]}/{row:06d}.jpg": encoded(seed) for row, seed in enumerate(seeds)}
        return expected

    return write
