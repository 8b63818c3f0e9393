"""The older one-file configuration maps onto the typed parameters, key by key."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from udc_model.config.json_config import load_json_config
from udc_model.errors import UdcError

ROOT = Path(__file__).parents[2]
OLD = {
    "dataset": "local_black_widows", "dataset_host": "local_folder", "local_folder_path": "data/widows",
    "local_dataset_format": "folder", "model": "microsoft/resnet-50", "weights": "weights/pytorch_model.bin",
    "learning_rate": 0.0003, "num_train_epochs": 30, "early_stopping_patience": 5, "batch_size": 32,
    "weight_decay": 0.01, "warmup_ratio": 0.09, "lr_scheduler_type": "linear", "num_frozen_stages": 3, "num_labels": 2,
    "wandb": "False", "push_to_hub": "False", "output_dir": "resnet_run", "loss_function": "logit_adjustment",
    "cost_matrix": [[0, 1], [10, 0]], "seed": 7,
}  # fmt: skip


def _load(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return load_json_config(path)


def test_every_key_arrives(tmp_path):
    loaded = _load(tmp_path, OLD)
    params = loaded.params
    assert loaded.output_dir == Path("resnet_run")
    assert (params.data.source, params.data.path, params.data.image_size) == ("folder", "data/widows", 224)
    assert params.data.crop_pct == 0.875
    assert params.model.model_type == "resnet"
    assert params.model.resnet.depths == [3, 4, 6, 3]
    assert (params.model.weights, params.model.num_labels) == ("weights/pytorch_model.bin", 2)
    train = params.train
    assert (train.learning_rate, train.epochs, train.batch_size) == (0.0003, 30, 32)
    assert (train.weight_decay, train.warmup_ratio, train.schedule) == (0.01, 0.09, "linear")
    assert (train.num_frozen_stages, train.early_stopping_patience, params.seed) == (3, 5, 7)
    assert params.loss.name == "legacy_logit_adjustment"
    assert params.costs.matrix == [[0.0, 1.0], [10.0, 0.0]]
    assert params.evaluate.decision == "argmax"


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_the_shipped_examples(name):
    loaded = load_json_config(ROOT / "config" / f"{name}_example.json")
    assert loaded.params.model.model_type == name


def test_model_name_sets_the_size(tmp_path):
    config = {"model_type": "convnext", "model": "facebook/convnext-base-384-22k-1k", "dataset_host": "digits"}
    params = _load(tmp_path, config).params
    assert params.model.architecture.hidden_sizes == [128, 256, 512, 1024]
    assert params.data.image_size == 384


def test_csv_files_of_the_older_repository(tmp_path):
    (tmp_path / "train_dataset.csv").write_text("image_path,binary_label\na.jpg,0\n")
    (tmp_path / "test_dataset.csv").write_text("image_path,binary_label\nb.jpg,1\n")
    config = {"local_folder_path": str(tmp_path), "local_dataset_format": "csv"}
    data = _load(tmp_path, config).params.data
    assert data.csv_files[0] == "train_dataset.csv"
    assert (data.csv_files[1].file, data.csv_files[1].split) == ("test_dataset.csv", "test")
    assert data.label_column == "binary_label"
    (tmp_path / "train_dataset.csv").write_bytes("image_path,größe\n".encode("latin-1"))
    with pytest.raises(UdcError, match=r"train_dataset\.csv: is not UTF-8 text"):
        _load(tmp_path, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rte": 1}, r"unknown key\(s\) learning_rte; known are .*learning_rate"),
        ({"wandb": "True"}, r"wandb: is not part of this project"),
        ({"model": "facebook/convnext-tiny-224"}, r"is a convnext, but model_type is resnet"),
        ({"model": "google/vit-base"}, r"no architecture is called"),
        ({"dataset_host": "kaggle"}, r"dataset_host: 'kaggle'"),
        ({"lr_scheduler_type": "polynomial"}, r"lr_scheduler_type: must be one of"),
        ({"loss_function": "test"}, r"loss_function: must be one of"),
        ({"cost_matrix": [[0, 0], [0, 0]]}, r"cost_matrix: the loss logit_adjustment needs costs that are not all 0"),
        ({"cost_matrix": 3}, r"cost_matrix: must be a list of rows"),
        ({"num_train_epochs": 2.5}, r"train\.epochs"),
        ({"num_labels": "2"}, r"model\.num_labels"),
        ({"output_dir": ""}, r"output_dir: must be a non-empty string"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(UdcError, match=message):
        _load(tmp_path, OLD | change)


def test_booleans_may_be_texts(tmp_path):
    _load(tmp_path, OLD | {"wandb": "False", "push_to_hub": False})


def test_results_do_not_replace_folders_of_the_user(tmp_path):
    path = tmp_path / "out/model/my_thesis_model.py"
    path.parent.mkdir(parents=True)
    path.write_text("mine\n")
    (tmp_path / "config.json").write_text(json.dumps({"dataset_host": "digits", "num_labels": 2, "output_dir": "out"}))
    done = subprocess.run([sys.executable, ROOT / "train.py", "--config", "config.json"], cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert "out/model: exists and was not written by a stage, which would replace it" in done.stderr
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [path]
