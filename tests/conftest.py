"""Fixtures of all tests. Telemetry is off, and the MLflow and DVC settings of the machine are hidden."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["DVC_NO_ANALYTICS"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_WORKERS"] = "1"  # of a server; each takes 3 CPU-seconds to start, and the default is 4
# MLflow's job execution starts seven processes beside each server and raises its start from 6 to 27 CPU-seconds.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
# Tests run in parallel. With more threads than cores, barriers wait for time slices and are twenty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# prometheus_client decides at its import whether processes count together; a folder for each process of the tests.
_COUNTS = tempfile.TemporaryDirectory(prefix="udc-test-counts-")
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _COUNTS.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that no worker is alone with one of them at the end."""
    longest = ("pipeline/test_training", "pipeline/test_records", "pipeline/test_docs", "pipeline/test_experiments",
               "pipeline/test_starts", "pipeline/test_readme", "pipeline/test_version", "pipeline", "test_outage",
               "training/test_checkpoints", "tracking", "models", "training")  # fmt: skip
    root = Path(__file__).parents[1]
    names = {item: item.path.relative_to(root).as_posix() for item in items}
    items.sort(key=lambda item: next(k for k, name in enumerate((*longest, "")) if name in names[item]))


@pytest.fixture(autouse=True)
def _isolate_settings(monkeypatch):
    """Remove tracking settings, because mlflow.set_tracking_uri() sets an environment variable."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def shapes_folder(tmp_path, shapes_at) -> Path:
    """A folder source: three classes of 20 noisy images, each class with a bright bar at another height."""
    return shapes_at(tmp_path / "shapes")


@pytest.fixture(scope="session")
def shapes_at() -> Callable[[Path], Path]:
    """A function that writes the images of `shapes_folder` to a folder and returns it."""
    return _write_shapes


def _write_shapes(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for k, label in enumerate(("bar", "dot", "stripe")):
        (root / label).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
            pixels[4 + 5 * k : 9 + 5 * k, 4:20] += 150
            Image.fromarray(pixels).save(root / label / f"g{i % 10}_{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A new MLflow store in SQLite, to be copied: MLflow needs a second to create one."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
