"""Tests of predict: files are decoded with the settings that are stored with the model."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from udc_model.cli import main
from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.files import Workspace, sha256_of
from udc_model.inference.inputs import list_inputs
from udc_model.inference.prediction import predict
from udc_model.inference.serving import ServedClassifier
from udc_model.inference.stored_model import open_stored
from udc_model.models import build_model

CLASSES = ["a", "b"]
DEFAULT = Decoding()


def _workspace(folder, decoding, channels=3):
    """A model with random weights and these settings, its policy, and what `udc predict` and MLflow load."""
    workspace = Workspace(folder)
    workspace.model.mkdir(parents=True)
    workspace.evaluation.mkdir()
    resnet = ResNetParams(num_channels=channels, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = build_model(ModelParams(resnet=resnet), CLASSES, 0)
    with torch.no_grad():
        model.classifier[1].weight.mul_(20)  # so that images differ in their costs
    model.save_pretrained(workspace.model)
    mean = (0.5,) * channels
    preprocessing = Preprocessing(8, "squash", mean=mean, std=mean, decoding=replace(decoding, channels=channels))
    preprocessing.save(workspace.model)
    policy = Policy(CLASSES, (1 - np.eye(2)).tolist())
    for path in (workspace.evaluation, folder):
        (path / "policy.json").write_text(policy.to_json())
    return workspace


@pytest.fixture
def workspace(tmp_path):
    return lambda decoding=DEFAULT, channels=3: _workspace(tmp_path / "work", decoding, channels)


def _costs(workspace, *paths):
    bad = []
    batches = list(predict(list_inputs([str(path) for path in paths]), open_stored(workspace), bad.append))
    assert bad == []
    return {row["path"]: row["expected_cost"] for batch in batches for row in batch}


def test_range_of_deep_images_is_that_of_training(tmp_path, workspace, rng):
    twelve = rng.integers(0, 4096, (8, 8)).astype(np.uint16)
    twelve[0, 0] = 5000  # above the range: clipped
    Image.fromarray(twelve).save(tmp_path / "deep.png")
    eight = np.rint(np.minimum(twelve, 4095) / 4095 * 255).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "eight.png")
    settings = workspace(Decoding(intensity=(0, 4095)))
    deep, eight = _costs(settings, tmp_path / "deep.png", tmp_path / "eight.png").values()
    assert deep == eight
    replace(Preprocessing.load(settings.model), decoding=DEFAULT).save(settings.model)
    assert _costs(settings, tmp_path / "deep.png") != pytest.approx({str(tmp_path / "deep.png"): deep}, rel=1e-3)


def test_size_limit_is_the_stored_one(tmp_path, workspace, capfd):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    folder = workspace(Decoding(max_pixels=399)).root
    assert main(["predict", "--root", str(folder), str(tmp_path / "a.png")]) == 1
    message = capfd.readouterr().err
    assert "a.png: 20 x 20 pixels is more than data.max_pixels (399); reduce the image, or raise" in message
    assert "preprocessor_config.json" in message
    config = folder / "model" / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"max_pixels": 399', '"max_pixels": 400'))
    assert main(["predict", "--root", str(folder), str(tmp_path / "a.png")]) == 0


def test_frames_are_those_of_training(tmp_path, workspace, rng, capfd):
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    for k, frame in enumerate(frames, 1):
        frame.save(tmp_path / f"{k}.png")
    settings = workspace(Decoding(frames="each"))
    singles = list(_costs(settings, *(tmp_path / f"{k}.png" for k in (1, 2, 3))).values())
    assert np.ptp(singles) > 1e-3
    costs = _costs(settings, tmp_path / "a.tif")
    assert list(costs) == [f"{tmp_path}/a.tif#{k}" for k in (1, 2, 3)]
    assert list(costs.values()) == pytest.approx(singles)
    replaced = replace(Preprocessing.load(settings.model), decoding=Decoding(frames="first"))
    replaced.save(settings.model)
    assert _costs(settings, tmp_path / "a.tif") == {str(tmp_path / "a.tif"): pytest.approx(singles[0])}
    replace(replaced, decoding=Decoding()).save(settings.model)
    assert main(["predict", "--root", str(settings.root), str(tmp_path / "a.tif")]) == 1
    assert "a.tif: the image has 3 frames" in capfd.readouterr().err


def test_many_frames_are_decided_in_batches(tmp_path, workspace, rng):
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(130)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    costs = _costs(workspace(Decoding(frames="each")), tmp_path / "a.tif", tmp_path / "a.tif")
    assert len(costs) == 130


def test_grey_model_predicts_and_serves_grey_and_colour(tmp_path, workspace, rng):
    grey = rng.integers(0, 256, (9, 11), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "rgb.png")
    settings = workspace(channels=1)
    costs = list(_costs(settings, tmp_path / "grey.png", tmp_path / "rgb.png").values())
    assert costs[0] == costs[1]
    encoded = base64.b64encode((tmp_path / "grey.png").read_bytes()).decode()
    values = [grey, grey.tolist(), np.repeat(grey[..., None], 3, axis=2), encoded]
    out = ServedClassifier(settings.root).predict(pd.DataFrame({"image": pd.Series(values, dtype=object)}))
    assert out["expected_cost"].tolist() == pytest.approx([costs[0]] * 4)


def test_served_model_uses_the_stored_settings(tmp_path, workspace, rng):
    from udc_model.errors import UdcError

    served = ServedClassifier(workspace(Decoding(intensity=(0, 4095), frames="each", max_pixels=100)).root)
    twelve = rng.integers(0, 4096, (8, 8)).astype(np.uint16)
    eight = np.rint(twelve / 4095 * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(twelve).save(buffer, "PNG")
    values = [base64.b64encode(buffer.getvalue()).decode(), eight]
    out = served.predict(pd.DataFrame({"image": pd.Series(values, dtype=object)}))
    assert np.ptp(out["expected_cost"]) < 1e-6
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "TIFF", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    with pytest.raises(UdcError, match="image 0: the image has 2 frames"):
        served.predict(pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()]}))
    with pytest.raises(UdcError, match="image 0: the base64 text is too long"):
        served.predict(pd.DataFrame({"image": ["A" * 801]}))


def test_older_model_folders_have_the_default_settings(tmp_path, workspace):
    settings = workspace()
    path = settings.model / "preprocessor_config.json"
    config = json.loads(path.read_text())
    del config["udc_decoding"]
    path.write_text(json.dumps(config))
    assert Preprocessing.load(settings.model).decoding == Decoding()


def test_grey_model_exports_to_onnx(tmp_path, workspace, rng):
    onnxruntime = pytest.importorskip("onnxruntime")
    settings = workspace(channels=1)
    options = ["--no-check", "--input", "pixel_values"]
    assert main(["export", "--root", str(settings.root), str(tmp_path / "a.onnx"), *options]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    images = rng.normal(size=(3, 1, 8, 8)).astype(np.float32)
    from udc_model.models import load_model

    expected = load_model(settings.model)(torch.from_numpy(images)).logits.detach().numpy()
    np.testing.assert_allclose(session.run(["logits"], {"pixel_values": images})[0], expected, rtol=1e-3, atol=1e-4)
    assert session.get_inputs()[0].shape[1:] == [1, 8, 8]


def test_an_exported_file_has_the_model_card_of_its_weights(tmp_path, workspace):
    onnx = pytest.importorskip("onnx")
    settings = workspace(channels=1)

    def metadata():
        assert main(["export", "--root", str(settings.root), str(tmp_path / "a.onnx"), "--no-check"]) == 0
        return {prop.key: prop.value for prop in onnx.load(tmp_path / "a.onnx").metadata_props}

    card = settings.evaluation / "README.md"
    card.write_text("of another model")
    assert "model_card" not in metadata()
    card.write_text(f"weights: {sha256_of(settings.model / 'model.safetensors')}")
    assert metadata()["model_card"] == card.read_text()


def _images(folder, rng, n):
    folder.mkdir()
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def _set_policy(workspace, **changes):
    path = workspace.evaluation / "policy.json"
    policy = replace(Policy.load(path), training_prior=[0.5, 0.5], **changes)
    path.write_text(policy.to_json())
    return policy


def _write_calibration(workspace, rng, n=200):
    targets = rng.integers(0, 2, n)
    logits = rng.normal(0, 1, (n, 2)) + 2 * np.eye(2)[targets]
    columns = dict.fromkeys(("path", "sha256", "group"), [""] * n) | {"true": np.array(CLASSES)[targets]}
    columns |= {"predicted": "a", "expected_cost": 0.0, "cost_paid": 0.0, "weight": 1.0}
    table = pd.DataFrame(columns | {"logit_a": logits[:, 0], "logit_b": logits[:, 1]})
    (workspace.evaluation / "calibration").mkdir()
    table.to_csv(workspace.evaluation / "calibration" / "predictions.csv", index=False)


def test_estimated_frequencies_are_printed_and_decide(tmp_path, workspace, rng, capsys):
    from udc_model.decisions.decision import shift_prior
    from udc_model.decisions.prior import estimate_prior

    settings, images = workspace(), _images(tmp_path / "images", rng, 20)
    _set_policy(settings, deployment_prior=[0.9, 0.1])  # is replaced
    arguments = ["predict", "--root", str(settings.root), str(images), "--json"]
    assert main([*arguments, "--estimate-prior"]) == 0
    output = capsys.readouterr()
    assert "estimated from 20 images" in output.err
    assert "note: not checked whether more than the class frequencies changed" in output.err
    estimated = np.array([list(row["probabilities"].values()) for row in json.loads(output.out)])
    _set_policy(settings, deployment_prior=None)
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert output.err == ""
    p = np.array([list(row["probabilities"].values()) for row in json.loads(output.out)])
    half = np.full(2, 0.5)
    assert estimated == pytest.approx(shift_prior(p, half, estimate_prior(p, half, resamples=1).prior))


def test_other_images_than_of_calibration_are_a_warning(tmp_path, workspace, rng, capsys):
    settings, images = workspace(), _images(tmp_path / "images", rng, 60)
    _set_policy(settings)
    _write_calibration(settings, rng)
    assert main(["predict", "--root", str(settings.root), str(images), "--csv", "--estimate-prior"]) == 0
    output = capsys.readouterr()
    assert "warning: the images differ from the calibration split by more than their class frequencies" in output.err
    assert len(output.out.splitlines()) == 61


def test_guarantees_that_depend_on_frequencies_refuse_an_estimate(tmp_path, workspace, rng, caplog):
    settings, images = workspace(), _images(tmp_path / "images", rng, 2)
    arguments = ["predict", "--root", str(settings.root), str(images), "--estimate-prior"]
    ceiling = {"ceiling": 0.5, "confidence": 0.9, "threshold": 0.2}
    floor = {"class": "a", "floor": 0.5, "confidence": 0.9, "surcharge": 0.0}
    _set_policy(settings, decision="cost_ceiling", refer=0.3, cost_ceiling=ceiling)
    assert main(arguments) == 1
    assert "--estimate-prior: cost_ceiling, and recall_floor of a set" in caplog.text
    _set_policy(settings, decision="recall_floor", cost_ceiling=None, recall_floor=floor)
    assert main(arguments) == 1
    assert "--estimate-prior: recall_floor must be fitted again" in caplog.text
    _write_calibration(settings, rng)
    assert main(arguments) == 0


def test_no_usable_image_has_no_estimate(tmp_path, workspace, capsys):
    settings = workspace()
    _set_policy(settings)
    (tmp_path / "a.png").write_bytes(b"none")
    assert main(["predict", "--root", str(settings.root), str(tmp_path / "a.png"), "--estimate-prior", "--json"]) == 1
    output = capsys.readouterr()
    assert output.out == "[]\n"
    assert "class frequencies" not in output.err
