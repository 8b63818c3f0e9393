"""params.yaml: every mistake stops at once, with the parameter's full name and what is allowed."""

from pathlib import Path

import pytest

from udc_model.config import full_name, load_params
from udc_model.errors import UdcError

ROOT = Path(__file__).parents[2]


def _load(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_params(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lerning_rate: 0.1}", r"train\.lerning_rate: no such parameter; did you mean train\.learning_rate"),
        ("trian: {}", r"trian: no such parameter; did you mean train"),
        ("train: {epochs: ten}", r"train\.epochs: .*integer.* got 'ten'"),
        ("train: {epochs: true}", r"train\.epochs: .*integer"),
        ("train: {epochs: 0}", r"train\.epochs: .*greater than 0"),
        ("train: {learning_rate: .nan}", r"train\.learning_rate: .*finite"),
        ("model: {model_type: vit}", r"model\.model_type: .*'resnet' or 'convnext', got 'vit'"),
        (
            "model: {resnet: {depths: [1, 1]}}",
            r"model\.resnet: .*same number of stages, got depths: 2, hidden_sizes: 4",
        ),
        ("model: {convnext: {num_stages: 3}}", r"model\.convnext: .*num_stages: 3, depths: 4"),
        ("data: {splits: {train: 0.9}}", r"data\.splits: the shares add up to 1\.3; they must add up to 1"),
        ("data: {splits: {calibration: 0.0, train: 0.7}}", r"evaluate\.calibration: temperature needs images"),
        ("loss: {reads: loss}", r"loss\.reads: is no longer needed: .*remove the line"),
        ("train: {reads: train, policy: none}", r"train\.policy: is called train\.auto_augment since version 0\.2\.0"),
        ("costs: {prior: {a: 0.5, b: 0.4}}", r"costs\.prior: the shares add up to 0\.9; they must add up to 1"),
        ("evaluate: {decision: recall_floor}", r"evaluate: decision: recall_floor needs the class and its floor"),
        ("evaluate: {recall_floor: {class: a, floor: 1.0}}", r"evaluate\.recall_floor\.floor: .*less than 1"),
        (
            "data: {splits: {calibration: 0.0, train: 0.7}}\n"
            "evaluate: {calibration: none, decision: recall_floor, recall_floor: {class: a}}",
            r"recall_floor needs images to prove the recall on",
        ),
        ("loss: {name: seesaw, label_smoothing: 0.1}", r"loss: label_smoothing and class_weights belong to"),
        ("costs: {entries: [{true: a, predicted: b, cost: 1.0}]}", r"the key true is not read as a string"),
        ("costs: {matrix: {1: {1: 0.0}}}", r"the key 1 is not read as a string; put it in quotes: '1'"),
        ("costs: {entries: [{'true': a, predicted: b}]}", r"costs\.entries\.0\.cost: Field required"),
        ("seed: 1\nseed: 2", r"the key 'seed' is given twice"),
        ("seed: [1", r"not valid YAML"),
        ("- 1", r"parameters: "),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UdcError, match=message):
        _load(tmp_path, text)


def test_one_message_names_all_mistakes(tmp_path):
    with pytest.raises(UdcError) as error:
        _load(tmp_path, "seed: -1\ntrain: {epochs: 0, momentum: 2.0}")
    assert all(name in str(error.value) for name in ("seed", "train.epochs", "train.momentum"))


@pytest.mark.parametrize(("text", "value"), [("1e-05", 1e-5), ("1E3", 1000.0), ("2", 2.0), (".5e-1", 0.05)])
def test_numbers_are_read_as_dvc_writes_them(tmp_path, text, value):
    assert _load(tmp_path, f"train: {{learning_rate: {text}}}").train.learning_rate == value


def test_missing_file():
    with pytest.raises(UdcError, match="no such file"):
        load_params("nowhere/params.yaml")


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("model_type", "model.model_type"),
        ("epochs", "train.epochs"),
        ("train.epochs", "train.epochs"),
        ("seed", "seed"),
    ],
)
def test_short_names(short, full):
    assert full_name(short) == full


@pytest.mark.parametrize(
    ("name", "message"),
    [("depths", "could be any of"), ("epoch", "did you mean epochs"), ("batch_size", "could be any of")],
)
def test_short_names_that_do_not_do(name, message):
    with pytest.raises(UdcError, match=message):
        full_name(name)
