"""A project for `udc fetch`: a new git and DVC repository as the current folder, with empty caches beside it."""

import functools
import http.server
import io
import shutil
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image


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
