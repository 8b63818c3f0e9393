"""Tests of the cache of logits: an entry is used only if nothing changed, and errors of the cache are only logged."""

from pathlib import Path

import numpy as np
import pytest

import udc_model
from udc_model.config import EvaluateParams
from udc_model.inference.stored_logits import stored_logits
from udc_model.stages.code import LOGITS, code_files

PLAIN = EvaluateParams(batch_size=4)
CODE = code_files(LOGITS)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


class Model:
    """A model that counts its runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self):
        self.runs += 1
        return {"test": np.full((2, 3), self.runs, dtype=np.float32), "empty": np.empty((0, 3), np.float32)}


def test_model_runs_once(tmp_path, model):
    compute = Model()
    for _ in range(2):
        logits = stored_logits(tmp_path / "cache", model, "digest", PLAIN, CODE, compute)
        assert logits["test"].tolist() == [[1.0] * 3] * 2
        assert logits["empty"].shape == (0, 3)
    assert compute.runs == 1


def test_model_runs_again_for_other_weights_data_settings_code_or_kernels(tmp_path, model, monkeypatch):
    monkeypatch.delenv("UDC_KERNELS", raising=False)
    compute = Model()
    for runs, change in enumerate(
        (
            lambda: ("digest", PLAIN, CODE),
            lambda: ("other digest", PLAIN, CODE),
            lambda: ("digest", EvaluateParams(batch_size=8), CODE),
            lambda: ("digest", EvaluateParams(batch_size=4, flip_averaging=True), CODE),
            lambda: ("digest", PLAIN, CODE[1:]),
            lambda: (model / "model.safetensors").write_bytes(b"new weights") and ("digest", PLAIN, CODE),
            lambda: monkeypatch.setenv("UDC_KERNELS", "off") or ("digest", PLAIN, CODE),
        ),
        start=1,
    ):
        stored_logits(tmp_path / "cache", model, *change(), compute)
        assert compute.runs == runs


def test_model_runs_again_for_another_version_of_timm(tmp_path, model, monkeypatch):
    compute = Model()
    for runs, timm in enumerate(("1.0.0", "1.0.1", None), start=1):
        monkeypatch.setattr("udc_model.inference.stored_logits._version_of_timm", lambda timm=timm: timm)
        stored_logits(tmp_path / "cache", model, "digest", PLAIN, CODE, compute)
        assert compute.runs == runs


def test_code_of_logits_exists():
    package = Path(udc_model.__file__).parent
    assert all((package / name).exists() for name in LOGITS)


def test_damaged_entry_and_unwritable_folder_only_log_a_warning(tmp_path, model, caplog):
    compute = Model()
    stored_logits(tmp_path / "cache", model, "digest", PLAIN, CODE, compute)
    (file,) = (tmp_path / "cache").iterdir()
    for number, contents in enumerate((file.read_bytes()[:100], b""), 2):
        file.write_bytes(contents)
        assert stored_logits(tmp_path / "cache", model, "digest", PLAIN, CODE, compute)["test"][0, 0] == number
    assert caplog.text.count("the model runs again") == 2
    (tmp_path / "file").write_text("")
    assert stored_logits(tmp_path / "file" / "cache", model, "digest", PLAIN, CODE, compute)["test"][0, 0] == 4
    assert "logits cannot be stored" in caplog.text


def test_cache_keeps_twenty_files(tmp_path, model):
    for i in range(23):
        stored_logits(tmp_path / "cache", model, str(i), PLAIN, CODE, Model())
    assert len(list((tmp_path / "cache").iterdir())) == 20
