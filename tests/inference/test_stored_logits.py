"""Stored logits: used again only for what they were computed from, and never missed."""

import numpy as np
import pytest

from udc_model.config import EvaluateParams
from udc_model.inference.stored_logits import stored_logits

PLAIN = EvaluateParams(batch_size=4)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


class Model:
    """Counts how often it runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self):
        self.runs += 1
        return {"test": np.full((2, 3), self.runs, dtype=np.float32), "empty": np.empty((0, 3), np.float32)}


def test_the_model_runs_once(tmp_path, model):
    compute = Model()
    for _ in range(2):
        found = stored_logits(tmp_path / "kept", model, "digest", PLAIN, compute)
        assert found["test"].tolist() == [[1.0] * 3] * 2
        assert found["empty"].shape == (0, 3)
    assert compute.runs == 1


def test_other_weights_data_batches_or_kernels_run_it_again(tmp_path, model, monkeypatch):
    compute = Model()
    for runs, change in enumerate(
        (
            lambda: ("digest", PLAIN),
            lambda: ("other", PLAIN),
            lambda: ("digest", EvaluateParams(batch_size=8)),
            lambda: ("digest", EvaluateParams(batch_size=4, flip_averaging=True)),
            lambda: (model / "model.safetensors").write_bytes(b"others") and ("digest", PLAIN),
            lambda: monkeypatch.setenv("UDC_KERNELS", "off") or ("digest", PLAIN),
        ),
        start=1,
    ):
        stored_logits(tmp_path / "kept", model, *change(), compute)
        assert compute.runs == runs


def test_a_damaged_file_and_a_place_that_cannot_be_written_do_no_harm(tmp_path, model, caplog):
    compute = Model()
    stored_logits(tmp_path / "kept", model, "digest", PLAIN, compute)
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert stored_logits(tmp_path / "kept", model, "digest", PLAIN, compute)["test"][0, 0] == 2
    assert "the model runs again" in caplog.text
    (tmp_path / "file").write_text("")
    assert stored_logits(tmp_path / "file" / "kept", model, "digest", PLAIN, compute)["test"][0, 0] == 3
    assert "logits are not kept" in caplog.text


def test_only_the_last_twenty_are_kept(tmp_path, model):
    for i in range(23):
        stored_logits(tmp_path / "kept", model, str(i), PLAIN, Model())
    assert len(list((tmp_path / "kept").iterdir())) == 20
