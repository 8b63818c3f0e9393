"""Tests of the served model: it accepts all forms of an image and raises for values that are not images."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import udc_model
from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.calibration import Calibration
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.files import sha256_of
from udc_model.inference import serving
from udc_model.inference.serving import ServedClassifier
from udc_model.models import build_model
from udc_model.tracking.model import save_model

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "model").mkdir()
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    build_model(ModelParams(resnet=resnet), CLASSES, 0).save_pretrained(folder / "model")
    Preprocessing(16).save(folder / "model")
    policy = Policy(CLASSES, (1 - np.eye(3)).tolist(), calibration=Calibration("temperature", {"temperature": 2.0}))
    (folder / "policy.json").write_text(policy.to_json())
    return ServedClassifier(folder)


def _encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_all_forms_of_an_image_give_the_same_decision(served, rng):
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    out = served.predict(pd.DataFrame({"image": [_encoded(pixels), pixels, pixels.tolist()]}))
    assert len(set(out["class"])) == 1
    assert np.ptp(out["expected_cost"]) < 1e-6
    assert sum(out["probabilities"][0].values()) == pytest.approx(1)
    assert out["expected_cost"][0] == pytest.approx(1 - max(out["probabilities"][0].values()))


def test_grey_array_and_grey_file_give_the_same_decision(served, rng):
    grey = rng.integers(0, 256, (9, 9), dtype=np.uint8)
    out = served.predict(pd.DataFrame({"image": [grey.tolist(), _encoded(grey)]}))
    assert np.ptp(out["expected_cost"]) < 1e-6


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not base64!", "image 0: "),
        (base64.b64encode(b"text").decode(), "image 0: not an image"),
        ("", "image 0: the image is empty"),
        ([[1, 2], [3]], "image 0: "),
        ([[0.5, 0.5]], "image 0: an array must hold integers"),
        ([[300, 0]], "image 0: an array must hold integers from 0 to 255"),
        ([[[1, 2]]], r"image 0: an array must be \(H, W\) or \(H, W, 3\), got shape \(1, 1, 2\)"),
        ([[1, 2, 3]] * 8, r"image 0: an array of shape \(8, 3\) may be a row of pixels, not an image; send a list"),
        ([], "image 0: an array must be"),
        (7, "image 0: an array must be"),
        (_encoded(np.zeros((1, 400_000), np.uint8)), "image 0: 400000 x 1 pixels is too elongated"),
    ],
)
def test_value_that_is_not_an_image_raises(served, value, message):
    with pytest.raises(UdcError, match=message):
        served.predict(pd.DataFrame({"image": pd.Series([value], dtype=object)}))


@pytest.fixture(scope="module")
def requested(served, tmp_path_factory):
    """What MLflow's scoring server answers to a request: status and text."""
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model
    from mlflow.pyfunc.scoring_server import invocations

    folder = tmp_path_factory.mktemp("served")
    package = Path(udc_model.__file__).parent
    save_model(folder / "mlflow", Model(), _bundle(folder, served, served.policy), package, [], serving.__name__)
    model = mlflow.pyfunc.load_model(str(folder / "mlflow"))

    def answer(content):
        text = content if isinstance(content, str) else json.dumps(content)
        try:
            response = invocations(text, "application/json", model, model.metadata.get_input_schema())
        except MlflowException as error:
            return error.get_http_status_code(), error.serialize_as_json()
        return response.status, response.response

    return answer


def test_a_request_that_is_no_image_is_answered_with_a_sentence(requested, rng):
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    status, text = requested({"inputs": [pixels.tolist()]})
    assert status == 200
    assert json.loads(text)["predictions"][0]["class"] in CLASSES
    large = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + b"\x08\x02\0\0\0").decode()
    bad = [
        "",
        "not base64!",
        base64.b64encode(b"text").decode(),
        _encoded(pixels)[:80],
        large,
        7,
        None,
        True,
        [],
        {},
        {"a": 1},
        [[1, 2], [3]],
        [[0.5, 0.5]],
        [[300, 0]],
        [[-1, 0]],
        [[[1, 2]]],
        [["x"]],
        "data:image/png;base64,",
    ]
    requests = [{"dataframe_records": [{"image": value}]} for value in bad]
    requests += [
        {"inputs": pixels.tolist()},
        {"inputs": "x"},
        {"dataframe_records": [{"picture": "x"}]},
        {"dataframe_split": {"columns": ["image"], "data": []}},
        {"inputs": []},
        {},
        "[1, 2",
        "",
    ]
    for request in requests:
        status, text = requested(request)
        assert status == 400, (request, text)
        assert "stack_trace" not in text, request
        assert "Traceback" not in text, request
        assert json.loads(text)["message"], request


@pytest.mark.parametrize(("images", "message"), [
    ([], "the request has no images"),
    ([np.array([[1, 2], [3]], dtype=object)], "image 0: "),
])  # fmt: skip
def test_empty_frames_and_ragged_arrays_are_errors_of_the_client(served, images, message):
    from mlflow.exceptions import MlflowException

    frame = pd.DataFrame({"image": pd.Series(images, dtype=object)})
    with pytest.raises(MlflowException, match=message) as raised:
        serving._PyfuncModel(served).predict(frame)
    assert raised.value.get_http_status_code() == 400


def test_missing_column_raises(served):
    with pytest.raises(UdcError, match="must have a column 'image'; its columns are picture"):
        served.predict(pd.DataFrame({"picture": ["x"]}))


def test_policy_with_other_classes_raises(served, tmp_path):
    bundle = _bundle(tmp_path, served, Policy(["x", "y", "z"], (1 - np.eye(3)).tolist()))
    with pytest.raises(UdcError, match=r"policy\.json is for the classes x, y, z, but the model has .* a, b, c"):
        ServedClassifier(bundle)


def test_policy_of_another_model_raises(served, tmp_path):
    weights = sha256_of(_bundle(tmp_path, served, served.policy) / "model" / "model.safetensors")
    bundle = _bundle(tmp_path / "same", served, replace(served.policy, model_sha256=weights))
    assert ServedClassifier(bundle).policy.model_sha256 == weights
    bundle = _bundle(tmp_path / "other", served, replace(served.policy, model_sha256="0" * 64))
    with pytest.raises(UdcError, match=r"was fitted for another model \(000000000000\) than the one in .*model"):
        ServedClassifier(bundle)


def _bundle(folder, served, policy):
    """A folder as MLflow stores it."""
    bundle = folder / "bundle"
    (bundle / "model").mkdir(parents=True)
    served.classifier.model.save_pretrained(bundle / "model")
    served.classifier.preprocessing.save(bundle / "model")
    (bundle / "policy.json").write_text(policy.to_json())
    return bundle


def test_policy_with_flip_averaging_averages_the_logits(served, rng, tmp_path):
    """An image and its mirror image have the same expected cost."""
    bundle = _bundle(tmp_path, served, replace(served.policy, flip_averaging=True))
    averaging, pixels = ServedClassifier(bundle), rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    both = pd.DataFrame({"image": [pixels, pixels[:, ::-1]]})
    assert np.ptp(averaging.predict(both)["expected_cost"]) < 1e-6
    assert np.ptp(served.predict(both)["expected_cost"]) > 1e-6
    images = [Image.fromarray(image) for image in both["image"]]
    mean = served.classifier.outputs(images).logits.mean(axis=0)
    np.testing.assert_allclose(averaging.classifier.outputs(images).logits, [mean, mean], rtol=1e-4, atol=1e-5)
