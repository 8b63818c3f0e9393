"""Tests of udc export: what is written decides as the model does, and is refused if it does not."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from udc_model import __version__
from udc_model.cli import main
from udc_model.data.packed import PackedDataset
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.files import sha256_of
from udc_model.inference.exports import export
from udc_model.inference.exports.agreement import Agreement
from udc_model.inference.exports.decision_graph import OUTPUTS
from udc_model.inference.exports.torch_file import check_without_pickle
from udc_model.inference.stored_model import open_stored

CLASSES = ["a", "b", "ç"]


def _export(workspace, target, *options):
    return main(["export", "--root", str(workspace.root), str(target), *options])


def _expected(workspace, images):
    stored = open_stored(workspace)
    return stored.policy, stored.policy.apply(stored.load().outputs(images).logits)


def test_an_onnx_file_decides_decoded_images_as_predict(tmp_path, workspace, rng, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    assert _export(workspace, path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert b"decision_graph.py" not in path.read_bytes()  # no paths of this machine
    assert lines[0].startswith(f"{path}: 0.0 MB, fp32, run with onnxruntime")
    assert lines[1].startswith("test: 0 of 40 decisions differ; mean cost ")
    assert lines[2] == "resizing: 0 of 16 decisions differ from those after Pillow's resizing"
    session = onnxruntime.InferenceSession(path)
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert [each.name for each in session.get_outputs()] == list(OUTPUTS)
    decided = set()
    for shape in ((5, 20, 31, 3), (3, 90, 11, 3), (2, 16, 16, 3), (1, 3, 3, 3)):
        images = (rng.random(shape) * rng.choice([90, 255], (shape[0], 1, 1, 1))).astype(np.uint8)
        policy, expected = _expected(workspace, [Image.fromarray(image) for image in images])
        outputs = dict(zip(OUTPUTS, session.run(None, {"image": images}), strict=True))
        np.testing.assert_array_equal(outputs["decision"], expected.decided)
        np.testing.assert_allclose(outputs["probabilities"], expected.probabilities, atol=1e-5)
        chosen = outputs["expected_costs"][np.arange(len(images)), expected.decided]
        np.testing.assert_allclose(chosen, expected.expected_cost, atol=1e-5)
        decided |= set(outputs["decision"].tolist())
    assert len(decided) > 1
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["outcomes"]) == [*CLASSES, "refer"]
    assert metadata["model_sha256"] == sha256_of(workspace.model / "model.safetensors")
    assert (metadata["costs_digest"], metadata["udc_version"]) == (policy.costs_digest, __version__)
    assert (metadata["input"], metadata["precision"]) == ("image", "fp32")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "work"]


def test_a_torch_file_has_no_pickle_and_decides_equally(tmp_path, workspace, rng, capsys):
    path = tmp_path / "model.pt2"
    assert _export(workspace, path, "--to", "torch-export") == 0
    assert "test: 0 of 40 decisions differ" in capsys.readouterr().out
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(json.loads(extra["metadata.json"])["outcomes"]) == [*CLASSES, "refer"]
    images = rng.integers(0, 256, (4, 33, 21, 3), dtype=np.uint8)
    _, expected = _expected(workspace, [Image.fromarray(image) for image in images])
    outputs = program.module()(torch.from_numpy(images))
    assert list(outputs) == list(OUTPUTS)
    assert outputs["decision"].tolist() == expected.decided.tolist()
    with zipfile.ZipFile(path) as archive:
        names = {info.filename: info.file_size for info in archive.infolist()}
        assert not any(b"decision_graph.py" in archive.read(name) for name in names)
    assert [size for name, size in names.items() if "sample_inputs" in name] == [0]
    program.example_inputs = ((torch.from_numpy(images),), {})
    torch.export.save(program, tmp_path / "with-inputs.pt2")
    with pytest.raises(UdcError, match=r"with-inputs.pt2: its part .*sample_inputs.* is a pickle"):
        check_without_pickle(tmp_path / "with-inputs.pt2")


def test_a_hugging_face_folder_is_loaded_by_transformers(tmp_path, workspace, capsys):
    pytest.importorskip("transformers")
    card = workspace.evaluation / "README.md"
    card.write_text(f"weights: {sha256_of(workspace.model / 'model.safetensors')}")
    target = tmp_path / "hf"
    assert _export(workspace, target, "--to", "safetensors-hf") == 0
    output = capsys.readouterr().out
    assert "run with transformers" in output
    assert "test: 0 of 40 decisions differ" in output
    names = ["README.md", "config.json", "model.safetensors", "policy.json", "preprocessor_config.json"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert Policy.load(target) == Policy.load(workspace.evaluation)
    for name, folder in zip(names, ("evaluation", "model", "model", "evaluation", "model"), strict=True):
        if name != "policy.json":
            assert (target / name).read_bytes() == (workspace.root / folder / name).read_bytes(), name


def test_an_input_may_be_the_networks(tmp_path, workspace, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert _export(workspace, tmp_path / "a.onnx", "--input", "pixel_values") == 0
    assert "resizing" not in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("pixel_values", ["batch", 3, 14, 14])]
    stored, split = open_stored(workspace), PackedDataset.open(workspace.prepared).split("test")
    values = stored.preprocessing.to_input(torch.from_numpy(np.array(split.images)))
    (logits,) = session.run(["logits"], {"pixel_values": values.numpy()})
    np.testing.assert_allclose(logits, stored.load().logits_of_stored(split.images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_openvino_folder_decides_equally(tmp_path, workspace, rng, capsys, precision):
    openvino = pytest.importorskip("openvino")
    options = ["--to", "openvino", "--precision", precision, "--tolerance", "0.2"]
    assert _export(workspace, tmp_path / "a", *options) == 0
    output = capsys.readouterr().out
    assert f", {precision}, run with openvino" in output
    assert int(output.split("test: ")[1].split()[0]) <= (0 if precision == "fp32" else 4)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model.bin", "model.xml"]
    model = openvino.Core().read_model(tmp_path / "a/model.xml")
    assert json.loads(model.get_rt_info(["udc", "outcomes"]).astype(str)) == [*CLASSES, "refer"]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = [Image.fromarray(rng.integers(0, 256, (30, 21, 3), dtype=np.uint8)) for _ in range(2)]
    _, expected = _expected(workspace, images)
    preprocessing = open_stored(workspace).preprocessing
    stored = torch.from_numpy(np.stack([preprocessing.to_stored(image) for image in images]))
    result = compiled(preprocessing.to_input(stored).numpy())
    if precision == "fp32":
        assert result["decision"].tolist() == expected.decided.tolist()
        np.testing.assert_allclose(result["probabilities"], expected.probabilities, atol=1e-3)


@pytest.mark.parametrize("to", ["openvino", "safetensors-hf"])
def test_these_take_the_input_of_the_network_only(tmp_path, workspace, caplog, to):
    assert _export(workspace, tmp_path / "a", "--to", to, "--input", "image") == 1
    assert f"--input image: not available for {to}" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "to", "precision"),
    [("resnet", "onnx", "fp16"), ("convnext", "onnx", "int8"), ("convnext", "torch-export", "bf16")],
)
def test_lower_precisions_are_judged_by_their_costs(tmp_path, workspace_of, capsys, kind, to, precision):
    pytest.importorskip("onnxruntime")
    workspace = workspace_of(kind)
    path = tmp_path / ("a" + export.SUFFIXES[to])
    assert _export(workspace, path, "--to", to, "--precision", precision, "--tolerance", "0.5") == 0
    output = capsys.readouterr().out
    assert f", {precision}, run with" in output
    differing = int(output.split("test: ")[1].split()[0])
    assert differing <= 6


@pytest.mark.slow
def test_int8_that_costs_more_is_refused(tmp_path, workspace, with_outliers, set_policy, caplog):
    """The range of a channel with large activations leaves two of 256 values to the others."""
    pytest.importorskip("onnxruntime")
    with_outliers(workspace)
    set_policy(workspace, model_sha256=sha256_of(workspace.model / "model.safetensors"))
    assert _export(workspace, tmp_path / "a.onnx", "--precision", "int8") == 1
    assert re.search(r"a\.onnx: not written: its decisions cost \S+ on average, .* --tolerance 0\.01", caplog.text)
    assert not (tmp_path / "a.onnx").exists()
    assert _export(workspace, tmp_path / "a.onnx") == 0


@pytest.fixture
def fake_export(monkeypatch):
    """Replaces what is written by a text, and its decisions by that of the last outcome."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export, "_write", lambda request, stored, card, path, data: path.write_text("export"))
    monkeypatch.setattr(
        export, "load_export", lambda *_: (lambda image: {"decision": np.full(len(image), 3)}, "a library")
    )


@pytest.mark.usefixtures("fake_export")
def test_an_export_that_costs_more_is_refused(tmp_path, workspace, caplog, set_policy):
    set_policy(workspace, refer=4.0)
    (tmp_path / "a.onnx").write_text("before")
    options = ["--precision", "fp16"]
    assert _export(workspace, tmp_path / "a.onnx", *options) == 1
    assert re.search(r"a\.onnx: not written: its decisions cost 4 on average, the model's \d", caplog.text)
    assert "--tolerance 0.01 allows 1.00%" in caplog.text
    assert (tmp_path / "a.onnx").read_text() == "before"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.onnx", "work"]
    assert _export(workspace, tmp_path / "a.onnx", *options, "--tolerance", "1000") == 0
    assert (tmp_path / "a.onnx").read_text() == "export"
    caplog.clear()
    assert _export(workspace, tmp_path / "b.onnx", "--tolerance", "1000") == 1
    assert "40 of 40 decisions differ, more than 0.1%, which rounding does not explain" in caplog.text
    assert not (tmp_path / "b.onnx").exists()
    set_policy(workspace, precision="bf16")  # of the model: an exact export may decide otherwise
    assert _export(workspace, tmp_path / "b.onnx", "--tolerance", "1000") == 0


@pytest.mark.parametrize(
    ("agreement", "tolerance", "is_exact", "expected"),
    [
        (Agreement(1000, 1, 0.5, 0.5, 0.5), 0.01, True, None),
        (Agreement(1000, 2, 0.5, 0.5, 0.5), 0.01, True, "2 of 1,000 decisions differ"),
        (Agreement(1000, 90, 0.505, 0.5, 0.5), 0.01, False, None),
        (Agreement(1000, 90, 0.506, 0.5, 0.5), 0.01, False, r"0\.506 on average, the model's 0\.5 \(1\.20% more\)"),
        (Agreement(1000, 90, 0.4, 0.5, 0.5), 0.0, False, None),
        (Agreement(1000, 3, 0.001, 0.0, 0.0), 0.01, False, "the model's decisions cost 0"),
        (Agreement(1000, 9, -0.99, -1.0, 1.0), 0.01, False, None),
        (Agreement(1000, 9, -0.98, -1.0, 1.0), 0.01, False, "allows 1.00%"),
        (Agreement(1000, 0, 0.5, 0.5, 0.5, 16, 1), 0.01, True, None),
        (Agreement(1000, 0, 0.5, 0.5, 0.5, 16, 2), 0.01, True, "2 of 16 decisions depend on how images are resized"),
        (Agreement(1000, 9, float("nan"), 0.5, 0.5), 0.01, False, "nan on average"),
    ],
)
def test_the_tolerance_is_a_share_of_the_cost(agreement, tolerance, is_exact, expected):
    problem = agreement.problem(tolerance, is_exact)
    if expected is None:
        assert problem is None
    else:
        assert problem is not None
        assert re.search(expected, problem)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("a.onnx", ["--precision", "bf16"], "--precision bf16: not available for onnx: ONNX Runtime has no"),
        ("a.pt2", ["--to", "torch-export", "--precision", "int8"], "static quantisation is available for"),
        ("a", ["--to", "safetensors-hf", "--precision", "fp16"], "the weights are stored as they were trained"),
        ("a.pt2", [], "a.pt2: the name of the file must end in .onnx"),
        ("a.onnx", ["--tolerance", "-1"], "--tolerance: must be 0 or more, not -1"),
        ("a.onnx", ["--tolerance", "nan"], "--tolerance: must be 0 or more, not nan"),
        ("work", ["--to", "safetensors-hf"], "work: exists and is not an empty folder; name a new folder"),
        ("missing/a", ["--to", "safetensors-hf"], "the folder missing does not exist; create it first"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_one_line(workspace, monkeypatch, caplog, target, options, message):
    monkeypatch.chdir(workspace.root.parent)
    assert _export(workspace, target, *options) == 1
    assert message in caplog.text
    assert [each.name for each in workspace.root.parent.iterdir()] == ["work"]


@pytest.mark.usefixtures("fake_export")
def test_without_prepared_data_nothing_is_written_unless_asked(tmp_path, workspace, caplog, capsys):
    workspace.prepared.rename(tmp_path / "elsewhere")
    assert _export(workspace, tmp_path / "a.onnx") == 1
    assert "prepared: no such folder, and the export is checked on its test split" in caplog.text
    assert "or write it unchecked with --no-check" in caplog.text
    assert _export(workspace, tmp_path / "a.onnx", "--no-check") == 0
    assert capsys.readouterr().out.splitlines()[1] == "not checked"
    caplog.clear()
    assert not (tmp_path / "b.onnx").exists()
    assert _export(workspace, tmp_path / "b.onnx", "--no-check", "--precision", "int8") == 1
    assert "prepared: no such folder, and int8 needs its calibration split" in caplog.text


def test_prepared_data_of_another_model_is_refused(tmp_path, workspace, caplog):
    pytest.importorskip("onnxruntime")
    path = workspace.model / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"resample": 2 if config["resample"] != 2 else 3}))
    assert _export(workspace, tmp_path / "a.onnx") == 1
    assert "was prepared for another model" in caplog.text


def test_a_model_with_mean_and_deviation_of_its_first_weights_is_exported(tmp_path, workspace, caplog):
    pytest.importorskip("onnxruntime")
    path = workspace.model / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.3, 0.4]}))
    assert _export(workspace, tmp_path / "a.onnx") == 0, caplog.text


def test_an_ensemble_is_no_hugging_face_model(tmp_path, workspace, caplog, set_policy):
    from udc_model.models import Ensemble, load_model

    member = load_model(workspace.model)
    states = [{name: value + number for name, value in member.state_dict().items()} for number in range(2)]
    Ensemble.of_members(member.config, [1.0, 2.0], states).save_pretrained(workspace.model)
    set_policy(workspace, model_sha256=None)
    assert _export(workspace, tmp_path / "a", "--to", "safetensors-hf") == 1
    assert "transformers has no model of model_type ensemble; use --to onnx" in caplog.text
