"""A record of a training run that was changed by hand is refused with the field; other fields are kept."""

import copy
import json

import pytest

from udc_model.config import Params
from udc_model.errors import UdcError
from udc_model.evaluation.training_record import read_training_record
from udc_model.files import Workspace
from udc_model.stages.train import training_params

RECORD = {
    "params": training_params(Params()),
    "data": {"name": "digits", "digest": "0" * 64, "source": {"source": "digits", "path": "data/raw/digits"}},
    "hardware": {"device": "cpu", "precision": "bf16"},
    "best_epoch": 2,
    "final_metrics": {"best_epoch": 2, "epochs": 3, "train_loss": 0.5},
}


def _read(tmp_path, record):
    workspace = Workspace(tmp_path)
    workspace.training.mkdir(exist_ok=True)
    (workspace.training / "record.json").write_text(json.dumps(record))
    return read_training_record(workspace)


def test_a_record_is_read_as_it_was_written(tmp_path):
    for further in ({"another": 1}, {"members": [{"best_epoch": 1, "epochs": 3, "temperature": 0.5}] * 2}):
        assert _read(tmp_path, RECORD | further) == RECORD | further


@pytest.mark.parametrize(("name", "value"), [
    ("params.model.model_type", True), ("params.model.resnet", None), ("params.train.monitor", -1),
    ("params.seed", "x"), ("params.train", []), ("data", 1e300), ("data.digest", -0.5), ("data.source", "x"),
    ("hardware", 1e-300), ("hardware.device", 1), ("best_epoch", 0), ("best_epoch", 10**40),
    ("final_metrics", {"bar": {"dot": -5}}), ("final_metrics.epochs", None), ("final_metrics.train_loss", "x"),
    ("members", None), ("members", []), ("members", [5, 5]),
    ("members", [{"best_epoch": 1, "epochs": 3, "temperature": 0}] * 2),
    ("members", [{"best_epoch": 1, "epochs": 3, "temperature": 1}] * 21),
])  # fmt: skip
def test_a_changed_value_is_named(tmp_path, name, value):
    record = copy.deepcopy(RECORD)
    *parents, key = name.split(".")
    section = record
    for parent in parents:
        section = section[parent]
    section[key] = value
    with pytest.raises(UdcError, match=rf"training/record\.json: .*{key}.*`dvc checkout training`") as error:
        _read(tmp_path, record)
    assert "\n" not in str(error.value)
