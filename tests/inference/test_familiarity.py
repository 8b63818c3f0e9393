"""The distance of images to training images: right values, in every precision and wherever an answer is given."""

import base64
import csv
import hashlib
import io
import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load, save
from sklearn.covariance import LedoitWolf

from udc_model.cli import main
from udc_model.config import ConvNextParams, ModelParams, ResNetParams, TimmParams
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.feature_distance import FeatureDistance
from udc_model.inference.feature_statistics import FAMILIARITY_FILE, FeatureStatistics, directions_of
from udc_model.inference.prediction import decided_rows
from udc_model.inference.serving import ServedClassifier
from udc_model.inference.stored_model import open_stored
from udc_model.models import build_model
from udc_model.models.ensemble import Ensemble

SIZES = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
MODELS = {
    "resnet": ModelParams(resnet=ResNetParams(**SIZES)),
    "convnext": ModelParams(model_type="convnext", convnext=ConvNextParams(num_stages=2, hidden_sizes=[16, 32],
                                                                           depths=[1, 1])),
    "timm": ModelParams(model_type="timm", timm=TimmParams(name="resnet10t")),
}  # fmt: skip


@pytest.fixture
def features(rng):
    """Features (n, M, D) of two networks, with dependent values, of which some are always 0."""
    values = rng.gamma(0.5, 1, (60, 2, 12)) @ rng.normal(0, 1, (12, 12))
    values[..., 3] = 0
    return values.astype(np.float32)


def test_distances_are_mahalanobis_with_the_covariance_of_ledoit_and_wolf(features, rng):
    statistics = FeatureStatistics.fit(features)
    images = np.concatenate([features[:5], rng.normal(0, 3, (20, 2, 12)).astype(np.float32), np.zeros((1, 2, 12), "f")])
    expected = []
    for network in range(2):
        known, new = (directions_of(each[:, network].astype(float)) for each in (features, images))
        np.testing.assert_allclose((known**2).sum(axis=1), 1)
        assert (np.sign(known) == np.sign(features[:, network])).all()
        expected.append(LedoitWolf().fit(known).mahalanobis(new) / 12)
    computed = FeatureDistance(statistics)([torch.tensor(images[:, network]) for network in range(2)])
    np.testing.assert_allclose(computed.numpy(), np.mean(expected, axis=0), rtol=2e-4)


def test_the_scale_of_features_does_not_matter_and_equal_features_have_a_finite_distance(features):
    statistics = FeatureStatistics.fit(features)
    distance = FeatureDistance(statistics)
    parts = list(torch.tensor(features).unbind(dim=1))
    torch.testing.assert_close(distance(parts), distance([100 * part for part in parts]), rtol=1e-4, atol=1e-6)
    constant = FeatureStatistics.fit(np.ones((5, 1, 4), np.float32))
    values = FeatureDistance(constant)([torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]])])
    assert values[0] < 1e-3
    assert values[1] > 1
    assert torch.isfinite(values).all()


def test_a_file_has_the_same_statistics_and_bytes(tmp_path, features):
    statistics = FeatureStatistics.fit(features)
    assert statistics.to_bytes() == FeatureStatistics.fit(features.copy()).to_bytes()
    fortran = FeatureStatistics(np.asfortranarray(statistics.whitening), statistics.centre)
    assert fortran.to_bytes() == statistics.to_bytes()
    (tmp_path / FAMILIARITY_FILE).write_bytes(statistics.to_bytes())
    digest = hashlib.sha256(statistics.to_bytes()).hexdigest()
    familiarity = Familiarity(digest, 12, 2, [])
    loaded = FeatureStatistics.read(tmp_path / FAMILIARITY_FILE, familiarity)
    assert np.array_equal(loaded.whitening, statistics.whitening)
    assert np.array_equal(loaded.centre, statistics.centre)


@pytest.mark.parametrize(("change", "message"), [
    (lambda path: path.unlink(), "no such file"),
    (lambda path: path.write_bytes(path.read_bytes()[:-4]), "is incomplete"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), "is another file than the one of policy.json"),
    (lambda path: path.write_bytes(save({"centre": np.zeros((1, 8), "f")})), "has no weight whitening"),
    (lambda path: path.write_bytes(save(load(path.read_bytes()) | {"x": np.zeros(1)})), "has a weight 'x'"),
    (lambda path: path.write_bytes(b"\x80\x04" + bytes(100)), "is not a safetensors file"),
])  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, tiny_workspace, add_familiarity, rng, change, message):
    workspace = _familiar(tmp_path, tiny_workspace, add_familiarity, rng)
    change(workspace.evaluation / FAMILIARITY_FILE)
    with pytest.raises(UdcError) as error:
        open_stored(workspace)
    assert message in str(error.value)
    assert str(error.value).startswith(str(workspace.evaluation / FAMILIARITY_FILE))
    assert str(error.value).endswith("run evaluate (dvc repro), or restore the folder with `dvc checkout evaluation`")


@pytest.mark.parametrize("field", ["features", "networks"])
def test_a_familiarity_of_another_network_is_refused(tmp_path, tiny_workspace, add_familiarity, rng, field):
    workspace = _familiar(tmp_path, tiny_workspace, add_familiarity, rng)
    path = workspace.evaluation / "policy.json"
    values = json.loads(path.read_text())
    values["familiarity"][field] = 7
    path.write_text(json.dumps(values))
    pattern = r"policy.json: its familiarity is of \d network\(s\) with \d features, but .* has 1 with 8; run evaluate"
    with pytest.raises(UdcError, match=pattern):
        open_stored(workspace)


@pytest.fixture(params=[*MODELS, "ensemble"])
def model(request):
    if request.param != "ensemble":
        return build_model(MODELS[request.param], ["a", "b", "c"], 0).eval()
    members = [build_model(MODELS["resnet"], ["a", "b", "c"], seed).eval() for seed in (1, 2)]
    return Ensemble.of_members(members[0].config, [1.0, 2.0], [member.state_dict() for member in members])


@pytest.mark.parametrize("flip_averaging", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp32_fused", "bf16"])
def test_one_pass_gives_the_logits_of_before_and_the_distances(model, precision, flip_averaging, rng):
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    cpu = torch.device("cpu")
    classifier = TrainedClassifier(deepcopy(model), Preprocessing(32), cpu, flip_averaging, precision)
    features = classifier.features_of_stored(images, 16)
    networks = 2 if isinstance(model, Ensemble) else 1
    assert features.shape[:2] == (40, networks)
    statistics = FeatureStatistics.fit(features)
    logits = classifier.logits_of_stored(images, 16)
    assert classifier.outputs_of_stored(images, 16).distances is None
    classifier.use_statistics(statistics)
    outputs = classifier.outputs_of_stored(images, 16)
    np.testing.assert_array_equal(outputs.logits, logits)
    distance = FeatureDistance(statistics)
    views = [images, images[:, :, ::-1]] if flip_averaging else [images]
    expected = np.mean([distance(list(torch.tensor(classifier.features_of_stored(np.ascontiguousarray(view), 16))
                                      .unbind(dim=1))).numpy() for view in views], axis=0)  # fmt: skip
    np.testing.assert_allclose(outputs.distances, expected, rtol=1e-4)
    assert len(classifier.outputs_of_stored(images[:0]).distances) == 0


def _images(rng, n):
    """Dark, slightly noisy images."""
    return (rng.integers(40, 80, (n, 1, 1, 1)) + rng.integers(0, 40, (n, 8, 8, 3))).astype(np.uint8)


def _familiar(tmp_path, tiny_workspace, add_familiarity, rng, unfamiliar="warn", **policy):
    """A workspace whose policy has 199 distances of dark images."""
    workspace = tiny_workspace(tmp_path / "work", **policy)
    add_familiarity(workspace, _images(rng, 60), _images(rng, 199), unfamiliar)
    return workspace


@pytest.fixture
def files(tmp_path, rng):
    """A folder with a familiar image and two others: bright noise, and stripes."""
    folder = tmp_path / "images"
    folder.mkdir()
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[::2, :, 0] = 255
    pixels = (_images(rng, 1)[0], rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), stripes)
    for name, image in zip("abc", pixels, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def _expected(workspace, folder):
    """Familiarity by numpy, from the file, the policy and the features."""
    stored = open_stored(workspace)
    images = np.stack([stored.preprocessing.to_stored(Image.open(path)) for path in sorted(folder.iterdir())])
    features = replace(stored, statistics=None).load().features_of_stored(images)[:, 0].astype(float)
    tensors = load((workspace.evaluation / FAMILIARITY_FILE).read_bytes())
    distances = ((directions_of(features) @ tensors["whitening"][0] - tensors["centre"][0]) ** 2).sum(axis=1)
    known = np.array(json.loads((workspace.evaluation / "policy.json").read_text())["familiarity"]["distances"])
    return [(1 + int((known >= each).sum())) / 200 for each in distances]


def test_predict_and_score_and_served_answers_carry_it(tmp_path, tiny_workspace, add_familiarity, rng, files, capsys):
    workspace = _familiar(tmp_path, tiny_workspace, add_familiarity, rng)
    expected = _expected(workspace, files)
    flags = [value <= 0.01 for value in expected]
    assert flags == [False, True, True]
    assert main(["predict", "--root", str(workspace.root), "--json", str(files)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["familiarity"] for row in rows] == pytest.approx(expected)
    assert [row["unfamiliar"] for row in rows] == flags
    assert main(["predict", "--root", str(workspace.root), "--csv", str(files)]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(table[0]) == ["path", "class", "expected_cost", "p_a", "p_b", "familiarity", "unfamiliar"]
    assert [float(row["familiarity"]) for row in table] == pytest.approx(expected)
    assert [row["unfamiliar"] for row in table] == ["false", "true", "true"]
    assert main(["predict", "--root", str(workspace.root), str(files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("expected cost  familiarity")
    assert [line.endswith("  unfamiliar") for line in lines[1:]] == flags
    assert main(["score", "--root", str(workspace.root), str(files), "--out", str(tmp_path / "out")]) == 0
    scored = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pandas()
    assert list(scored.columns[-2:]) == ["familiarity", "unfamiliar"]
    np.testing.assert_allclose(scored["familiarity"], expected, rtol=1e-6)
    assert scored["unfamiliar"].tolist() == flags
    (workspace.root / "policy.json").write_bytes((workspace.evaluation / "policy.json").read_bytes())
    (workspace.root / FAMILIARITY_FILE).write_bytes((workspace.evaluation / FAMILIARITY_FILE).read_bytes())
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in sorted(files.iterdir())]
    served = ServedClassifier(workspace.root).predict(pd.DataFrame({"image": encoded}))
    assert served["familiarity"].tolist() == pytest.approx(expected)
    assert served["unfamiliar"].tolist() == flags


def test_udc_serve_carries_it(tmp_path, tiny_workspace, add_familiarity, rng, files):
    testclient = pytest.importorskip("fastapi.testclient")
    from udc_model.inference.server.app import Limits, create_app

    workspace = _familiar(tmp_path, tiny_workspace, add_familiarity, rng, "refer", refer=0.4)
    expected = _expected(workspace, files)
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in sorted(files.iterdir())]
    with testclient.TestClient(create_app(workspace.root, Limits())) as client:
        answers = client.post("/predict", json={"images": [encoded[0], "no image", *encoded[1:]]}).json()["predictions"]
    assert "error" in answers.pop(1)
    assert [answer["familiarity"] for answer in answers] == pytest.approx(expected)
    assert [answer["unfamiliar"] for answer in answers] == [False, True, True]
    assert [answer["class"] == "refer" for answer in answers][1:] == [True, True]
    assert [answer["expected_cost"] for answer in answers][1:] == pytest.approx([0.4, 0.4])


def test_policies_of_earlier_versions_have_no_column(tmp_path, tiny_workspace, files, capsys):
    workspace = tiny_workspace(tmp_path / "work")
    assert main(["predict", "--root", str(workspace.root), "--csv", str(files)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "path,class,expected_cost,p_a,p_b"
    assert main(["score", "--root", str(workspace.root), str(files), "--out", str(tmp_path / "out")]) == 0
    assert "familiarity" not in pq.read_schema(tmp_path / "out" / "part-00000.parquet").names
    stored = open_stored(workspace)
    rows = decided_rows(stored.load().outputs([Image.open(files / "a.png")]), stored.policy)
    assert list(rows[0]) == ["class", "expected_cost", "probabilities"]
    assert Policy.load(workspace.evaluation).familiarity is None
