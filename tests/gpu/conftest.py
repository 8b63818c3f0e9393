"""Tests that need a CUDA GPU: all are skipped without one. `make gpu` runs them alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from udc_model.config import Params, override_params
from udc_model.files import Workspace
from udc_model.stages.evaluate import evaluate
from udc_model.stages.prepare import prepare
from udc_model.stages.resolve import resolve
from udc_model.stages.train import train

SETTINGS = (
    "data.source=folder", "data.image_size=32", "costs.preset=uniform", "model.preset=resnet-mini", "train.epochs=3",
    "train.batch_size=12", "train.augment=standard", "train.horizontal_flip=true", "train.device=cuda",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder on a machine without a GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="this machine has no CUDA GPU"))


@pytest.fixture(scope="session")
def images(tmp_path_factory, shapes_at) -> Path:
    """A folder of 60 images of three classes."""
    return shapes_at(tmp_path_factory.mktemp("images") / "shapes")


@pytest.fixture
def run(tmp_path, images, monkeypatch):
    """A function that prepares and trains on the GPU in a workspace of its name, and evaluates if it is asked to."""
    monkeypatch.setenv("UDC_SENDER", "off")
    monkeypatch.chdir(tmp_path)

    def train_in(name: str, *settings: str, is_evaluated: bool = False) -> Workspace:
        params: Params = override_params([f"data.path={images}", *SETTINGS, *settings])
        workspace = Workspace(tmp_path / name)
        resolved = resolve(params, prepare(params, workspace))
        train(resolved.train, workspace)
        if is_evaluated:
            evaluate(resolved.evaluate, workspace)
        return workspace

    return train_in


@pytest.fixture
def start(tmp_path, images):
    """A function that prepares in a workspace of its name, and starts stage ``train`` as a process."""

    def start_in(name: str, *settings: str) -> tuple[Workspace, subprocess.Popen]:
        params: Params = override_params([f"data.path={images}", *SETTINGS, *settings])
        workspace = Workspace(tmp_path / name)
        workspace.root.mkdir(exist_ok=True)
        resolved = tmp_path / f"{name}.yaml"
        resolved.write_text(yaml.safe_dump(resolve(params, prepare(params, workspace)).train.model_dump(mode="json")))
        command = [
            sys.executable,
            "-m",
            "udc_model.stages.train",
            "--params",
            str(resolved),
            "--root",
            str(workspace.root),
        ]
        environment = os.environ | {"UDC_SENDER": "off"}
        return workspace, subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return start_in
