"""A project with prepared images, a small model with random weights, and findings about five labels."""

import io

import numpy as np
import pytest
from PIL import Image

from udc_model.config import DataParams, ModelParams, Params, ResNetParams
from udc_model.data.corrections import write_corrections
from udc_model.data.packed import PackedDataset
from udc_model.decisions.policy import Policy
from udc_model.evaluation.label_quality import LABEL_QUALITY
from udc_model.files import Workspace
from udc_model.models import build_model
from udc_model.stages.prepare import prepare

CLASSES = ["bar", "dot", "stripe"]
SECRET = "secret"
SUSPECTS = 5


@pytest.fixture(scope="module")
def params(tmp_path_factory, shapes_at):
    """Parameters of the project; a dot has a copy that is called a bar."""
    images = shapes_at(tmp_path_factory.mktemp("images") / "shapes")
    (images / "bar/copy.png").write_bytes((images / "dot/g0_00.png").read_bytes())
    return Params(data=DataParams(source="folder", path=str(images), image_size=24, copies="keep"))


@pytest.fixture(scope="module")
def project(tmp_path_factory, params):
    """The folder of the project; its file of corrections is empty before each test that uses `workspace`."""
    workspace = Workspace(tmp_path_factory.mktemp("project"))
    write_corrections(workspace.corrections, [])
    prepare(params, workspace)
    dataset = PackedDataset.open(workspace.prepared)
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    workspace.model.mkdir()
    build_model(ModelParams(resnet=resnet), CLASSES, 0).save_pretrained(workspace.model)
    dataset.preprocessing.save(workspace.model)
    (workspace.evaluation / "test").mkdir(parents=True)
    (workspace.root / "params.yaml").write_text("costs: {refer: 0.9}\n")
    (workspace.evaluation / "policy.json").write_text(Policy(CLASSES, (1 - np.eye(3)).tolist(), refer=0.9).to_json())
    manifest = dataset.manifest
    train = manifest[(manifest["split"] == "train") & ~manifest["path"].isin(["bar/copy.png", "dot/g0_00.png"])]
    lines = ["path,sha256,label,suggested_label,score,expected_cost,split,row,is_suspicious"]
    for number, row in enumerate(train.head(SUSPECTS).itertuples()):
        suggested = CLASSES[(CLASSES.index(row.label) + 1) % 3]
        lines.append(f"{row.path},{row.sha256},{row.label},{suggested},0.01,{9 - number},train,{row.row},True")
    (workspace.evaluation / LABEL_QUALITY).write_text("\n".join(lines) + "\n")
    mistake = manifest[manifest["split"] == "test"].iloc[0]
    (workspace.evaluation / "test/costliest_mistakes.csv").write_text(
        f"path,true,decided,probability,cost,row\n{mistake.path},{mistake.label},stripe,0.9,1.0,{mistake.row}\n"
    )
    return workspace


@pytest.fixture
def workspace(project):
    write_corrections(project.corrections, [])
    return project


@pytest.fixture(scope="module")
def application(project):
    from udc_model.app.run import build

    return build(project, SECRET)


@pytest.fixture(scope="session")
def png():
    """A function that returns a PNG file of random pixels."""

    def make(seed=0, side=24):
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return make
