"""A project that was trained and evaluated, which several files of tests use."""

import pytest

from udc_model.config import override_params
from udc_model.files import Workspace
from udc_model.stages.evaluate import evaluate
from udc_model.stages.prepare import prepare
from udc_model.stages.resolve import resolve
from udc_model.stages.train import train

SETTINGS = ["data.source=folder", "data.image_size=16", "costs.preset=uniform", "model.preset=resnet-mini",
            "train.epochs=1", "train.batch_size=12", "train.device=cpu", "train.precision=fp32", "costs.refer=0.4",
            "data.splits={train: 0.3, validation: 0.1, calibration: 0.4, test: 0.2}"]  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory, shapes_at):
    """A workspace with a model that was trained for one epoch, and its parameters."""
    root = tmp_path_factory.mktemp("project")
    params = override_params([*SETTINGS, f"data.path={shapes_at(root / 'shapes')}"])
    workspace = Workspace(root / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDC_SENDER", "off")
        patch.chdir(root)
        train(resolve(params, prepare(params, workspace)).train, workspace)
        evaluate(params, workspace)
    return workspace, params


@pytest.fixture
def project(trained, monkeypatch):
    """The same, in its folder."""
    monkeypatch.setenv("UDC_SENDER", "off")
    monkeypatch.chdir(trained[0].root.parent)
    return trained
