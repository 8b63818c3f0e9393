"""Exported files give each image the familiarity that the model gives it."""

import numpy as np
import pytest
import torch

from udc_model.cli import main
from udc_model.data.packed import PackedDataset
from udc_model.files import Workspace
from udc_model.inference.exports.decision_graph import FAMILIARITY_OUTPUTS, OUTPUTS, Decide, DecisionGraph, Network
from udc_model.inference.exports.export import ExportRequest, load_export
from udc_model.inference.feature_distance import FeatureDistance
from udc_model.inference.stored_model import open_stored
from udc_model.models import load_model
from udc_model.models.ensemble import Ensemble

LEVEL = 0.2  # of 40 calibration images


@pytest.fixture
def familiar(workspace, add_familiarity, set_policy):
    """A function that gives the policy of the workspace a familiarity, and returns the workspace."""

    def change(unfamiliar="warn", workspace=workspace, **policy) -> Workspace:
        set_policy(workspace, **policy)
        data = PackedDataset.open(workspace.prepared)
        images = [np.array(data.split(name).images) for name in ("train", "calibration")]
        add_familiarity(workspace, images[0][:25], images[1], unfamiliar, LEVEL)
        return workspace

    return change


def _check(workspace, request, path, rng, exact=True):
    """Compare an export with the model, on images like the data's and others."""
    run, _ = load_export(request, path)
    stored = open_stored(workspace)
    test = np.array(PackedDataset.open(workspace.prepared).split("test").images)
    images = np.concatenate([test, rng.integers(0, 256, test[:20].shape, dtype=np.uint8), np.zeros_like(test[:1])])
    values = stored.preprocessing.to_input(torch.from_numpy(images)).numpy()
    outputs = run(images if request.takes_images else values)
    assert list(outputs) == [*OUTPUTS, *FAMILIARITY_OUTPUTS]
    computed = stored.load().outputs_of_stored(images)
    expected = stored.policy.familiarity_of(computed.distances)
    step = 1 / (1 + len(stored.policy.familiarity.distances))
    flags = expected <= LEVEL
    assert 5 < flags.sum() < len(flags) - 5
    if not exact:
        assert np.abs(outputs["familiarity"] - expected).mean() < 2 * step  # 1.2 steps with weights of seven bits
    else:
        np.testing.assert_allclose(outputs["familiarity"], expected, atol=0.01 * step)
        assert outputs["unfamiliar"].tolist() == flags.tolist()
        decided = stored.policy.apply(computed.logits, expected).decided
        assert outputs["decision"].tolist() == decided.tolist()
        assert bool((decided[flags] == 3).all()) == stored.policy.refers_unfamiliar


def test_an_onnx_file_gives_it(tmp_path, familiar, rng, capsys):
    pytest.importorskip("onnxruntime")
    workspace = familiar("refer", flip_averaging=True)
    assert main(["export", "--root", str(workspace.root), str(tmp_path / "a.onnx")]) == 0
    assert "familiarity: 0 of 40 flags differ, values by at most 0.000\n" in capsys.readouterr().out
    _check(workspace, ExportRequest(), tmp_path / "a.onnx", rng)


def test_a_torch_file_gives_it(tmp_path, familiar, rng, capsys):
    workspace = familiar()
    assert main(["export", "--root", str(workspace.root), str(tmp_path / "a.pt2"), "--to", "torch-export"]) == 0
    assert "familiarity: 0 of 40 flags differ" in capsys.readouterr().out
    _check(workspace, ExportRequest("torch-export"), tmp_path / "a.pt2", rng)


@pytest.mark.slow
def test_an_int8_file_gives_about_the_same(tmp_path, familiar, rng):
    pytest.importorskip("onnxruntime")
    workspace = familiar()
    options = ["--precision", "int8", "--tolerance", "1"]
    assert main(["export", "--root", str(workspace.root), str(tmp_path / "a.onnx"), *options]) == 0
    _check(workspace, ExportRequest(precision="int8"), tmp_path / "a.onnx", rng, exact=False)


@pytest.mark.slow
def test_an_openvino_folder_gives_it(tmp_path, familiar, rng, capsys):
    pytest.importorskip("openvino")
    workspace = familiar("refer")
    assert main(["export", "--root", str(workspace.root), str(tmp_path / "a"), "--to", "openvino"]) == 0
    assert "familiarity: 0 of 40 flags differ" in capsys.readouterr().out
    _check(workspace, ExportRequest("openvino"), tmp_path / "a", rng)


def test_a_hugging_face_folder_has_none_and_refuses_to_refer(tmp_path, familiar, caplog):
    options = ["--to", "safetensors-hf", "--no-check"]
    workspace = familiar()
    assert main(["export", "--root", str(workspace.root), str(tmp_path / "hf"), *options]) == 0
    assert "familiarity" not in (tmp_path / "hf/policy.json").read_text()
    workspace = familiar("refer")
    assert main(["export", "--root", str(workspace.root), str(tmp_path / "other"), *options]) == 1
    assert "--to safetensors-hf: does not recognise unfamiliar images" in caplog.text
    assert not (tmp_path / "other").exists()


def test_the_graph_of_an_ensemble_gives_it(familiar, rng):
    workspace = familiar()
    member = load_model(workspace.model)
    ensemble = Ensemble.of_members(member.config, [1.0, 2.0], [member.state_dict()] * 2)
    stored = open_stored(workspace)
    double = type(stored.statistics)(*(np.concatenate([each] * 2) for each in (stored.statistics.whitening,
                                                                               stored.statistics.centre)))  # fmt: skip
    values = torch.randn(5, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    graphs = [
        DecisionGraph(None, Network(network, has_features=True), Decide(stored.policy, FeatureDistance(statistics)))
        for network, statistics in ((member, stored.statistics), (ensemble, double))
    ]
    one, two = (graph.eval()(values) for graph in graphs)
    torch.testing.assert_close(one["familiarity"], two["familiarity"])
