"""A folder of image files of many kinds, and its preparation with shards of a few kilobytes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udc_model.config import DataParams, ModelParams, Params, ResNetParams
from udc_model.data.shards import tar_files
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare

CLASSES = ("bar", "dot", "stripe")


def write_files(root: Path, start: int, end: int) -> None:
    """Write the images with these numbers: JPEG, larger PNG, grey, elongated, rotated by EXIF, and small ones."""
    for number in range(start, end):
        rng = np.random.default_rng(number)
        path = root / CLASSES[number % 3] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = number // 3 % 8
        shape = {1: (40, 30), 2: (90, 11), 3: (16, 16), 4: (20, 33), 5: (7, 9)}.get(kind, (16, 24))
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(shape[::-1])
        if kind in (1, 2, 5):
            (coarse.convert("L") if kind == 2 else coarse).save(path.with_suffix(".png"))
        else:
            exif = Image.Exif()
            exif[274] = 6 if kind == 6 else 1
            coarse.save(path, quality=90, exif=exif)


def run(raw: Path, out: Path, packed: str = "shards", channels: int = 3, **data: object) -> Path:
    """Prepare a folder of images; returns the folder of the prepared images."""
    values = {"source": "folder", "path": str(raw), "image_size": 16, "packed": packed, "max_pixels": 10**6} | data
    model = ModelParams(resnet=ResNetParams(num_channels=channels))
    workspace = Workspace(out)
    prepare(Params(data=DataParams(**values), model=model), workspace)
    return workspace.prepared


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(tar_files, "TARGET_BYTES", 2**14)


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """120 image files, which tests do not change."""
    root = tmp_path_factory.mktemp("files") / "raw"
    write_files(root, 0, 120)
    return root


@pytest.fixture(scope="session")
def as_pixels(raw, tmp_path_factory):
    """The images prepared as arrays of pixels."""
    return run(raw, tmp_path_factory.mktemp("pixels"), "raw")


@pytest.fixture(scope="session")
def as_shards(raw, tmp_path_factory):
    """The images prepared as shards, which tests do not change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_files, "TARGET_BYTES", 2**14)
        return run(raw, tmp_path_factory.mktemp("shards"))


@pytest.fixture
def preparation():
    """The functions above, for tests of other modules."""
    from types import SimpleNamespace

    return SimpleNamespace(run=run, hashes=hashes, write_files=write_files)
