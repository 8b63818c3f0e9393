"""What all tests share: nothing is sent home, no test sees the machine's own MLflow or DVC settings."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["DVC_NO_ANALYTICS"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
# Jobs of language models: seven processes beside each server, which so takes 27 CPU-seconds to start in place of 6.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
# Tests run beside each other: with more threads than cores, each barrier waits for a time slice, twenty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no worker is left alone with one at the end."""
    longest = ("experiments", "starts", "pipeline/test_training", "records", "default_run", "decisions", "pipeline",
               "test_checkpoint.py", "tracking", "training", "models")  # fmt: skip
    root = Path(__file__).parents[1]
    names = {item: item.path.relative_to(root).as_posix() for item in items}
    items.sort(key=lambda item: next(k for k, name in enumerate((*longest, "")) if name in names[item]))


@pytest.fixture(autouse=True)
def _settings_of_no_other_run(monkeypatch):
    """mlflow.set_tracking_uri() leaves its address in the environment for the tests that come after."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def shapes_folder(tmp_path, rng) -> Iterator:
    """A folder source: three classes of 20 noisy pictures with a bright square, disc-less but separable."""
    root = tmp_path / "shapes"
    for k, label in enumerate(("bar", "dot", "stripe")):
        (root / label).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
            pixels[4 + 5 * k : 9 + 5 * k, 4:20] += 150
            Image.fromarray(pixels).save(root / label / f"g{i % 10}_{i:02d}.png")
    return root
