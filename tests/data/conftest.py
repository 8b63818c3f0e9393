"""Small image folders, and the command ``udc inspect`` in this process."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udc_model.cli import main
from udc_model.config import DataParams, Params
from udc_model.data.packed import PackedDataset
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare


@pytest.fixture
def write_images():
    """A function that writes one small image of random pixels to each path below a folder."""
    rng = np.random.default_rng(0)

    def write(root: Path, *paths: str) -> None:
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / path, format="PNG")

    return write


@pytest.fixture
def inspected(capsys, caplog):
    """A function that runs ``udc inspect`` and returns its status, and its output or error message."""

    def run(path: Path, *settings: str) -> tuple[int, str]:
        caplog.clear()
        status = main(["inspect", str(path), *(word for setting in settings for word in ("-S", setting))])
        return status, capsys.readouterr().out or caplog.text

    return run


@pytest.fixture
def prepared(tmp_path):
    """A function that runs the stage with ``data.source: auto`` and returns the packed data set."""

    def run(path: Path, **data: object) -> PackedDataset:
        workspace = Workspace(tmp_path / "out")
        prepare(Params(data=DataParams(**{"source": "auto", "path": str(path), "image_size": 8} | data)), workspace)
        return PackedDataset.open(workspace.prepared)

    return run
