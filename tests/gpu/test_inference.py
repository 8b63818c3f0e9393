"""Inference on a GPU: each precision decides as the CPU does, and exports of a model trained there are the same."""

import copy
import io
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from udc_model.cli import main
from udc_model.config import ModelParams
from udc_model.data.transforms import Preprocessing
from udc_model.evaluation.tables import read_predictions
from udc_model.inference import cuda_graphs
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.engine import build_forward
from udc_model.inference.feature_statistics import FeatureStatistics
from udc_model.inference.saliency import saliency
from udc_model.models import build_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TOLERANCES = {"fp32": 1e-4, "fp32_fused": 1e-4, "bf16": 5e-2}  # of logits, relative to their spread


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("preset", ["resnet-50", "convnext-tiny"])
def test_each_precision_computes_the_logits_of_the_cpu(preset, precision):
    model = build_model(
        ModelParams(model_type=preset.split("-")[0], preset=preset), [str(k) for k in range(10)], 0
    ).eval()
    images = torch.randn(5, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = build_forward(copy.deepcopy(model), CPU)(images)
        logits = build_forward(model.to(GPU), GPU, precision)(images).cpu()
    assert logits.dtype == torch.float32
    assert float((logits - expected).abs().max()) < TOLERANCES[precision] * float(expected.std())


@pytest.mark.parametrize("precision", TOLERANCES)
def test_distances_are_those_of_the_cpu_also_in_replayed_batches(precision):
    model = build_model(ModelParams(preset="resnet-18"), ["a", "b", "c"], 0).eval()
    images = np.random.default_rng(0).integers(0, 256, (120, 64, 64, 3), dtype=np.uint8)
    on_cpu = TrainedClassifier(copy.deepcopy(model), Preprocessing(64), CPU)
    on_cpu.use_statistics(FeatureStatistics.fit(on_cpu.features_of_stored(images[:60])))
    expected = on_cpu.outputs_of_stored(images).distances
    on_gpu = TrainedClassifier(model.to(GPU), Preprocessing(64), GPU, False, precision, on_cpu.statistics)
    outputs = on_gpu.outputs_of_stored(images, 24)  # five batches of one shape
    assert np.array_equal(outputs.logits, on_gpu.logits_of_stored(images, 24))
    assert np.abs(outputs.distances / expected - 1).max() < TOLERANCES[precision] * 10


@pytest.mark.parametrize("preset", ["resnet-18", "convnext-mini"])
def test_replayed_batches_have_the_bits_of_the_first(preset):
    """A shape is computed directly, then recorded and replayed; in any order of shapes, from several threads."""
    model = build_model(ModelParams(model_type=preset.split("-")[0], preset=preset), ["a", "b", "c"], 0).eval().to(GPU)
    images = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batches = [images[start : start + size] for size in (1, 8, 20, 7) for start in (0, 3, 19)] * 3

    @torch.inference_mode()
    def logits(batch):
        return forward(batch).cpu()

    forward = build_forward(copy.deepcopy(model), GPU, "bf16")
    with torch.inference_mode():
        expected = [build_forward(copy.deepcopy(model), GPU, "bf16")(batch).cpu() for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(logits, batches))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_network_that_cannot_be_recorded_is_computed_directly(caplog):
    forward = cuda_graphs.GraphedForward(lambda images: images.mean((2, 3)) * float(images.sum()))
    images = torch.ones(2, 3, 4, 4, device=GPU)
    caplog.set_level("INFO")
    for _ in range(3):
        assert torch.equal(forward(images), torch.full((2, 3), 96.0, device=GPU))
    assert sum("cannot be recorded" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("preset", ["resnet-18", "convnext-mini"])
def test_saliency_maps_are_those_of_the_cpu_and_have_the_same_bits_again(preset):
    model = build_model(ModelParams(model_type=preset.split("-")[0], preset=preset), ["a", "b", "c"], 0).eval()
    rng = np.random.default_rng(0)
    images, classes = rng.integers(0, 256, (20, 128, 128, 3), dtype=np.uint8), rng.integers(0, 3, (20, 2))
    expected = saliency(TrainedClassifier(copy.deepcopy(model), Preprocessing(128), CPU), images, classes)
    classifier = TrainedClassifier(model.to(GPU), Preprocessing(128), GPU)
    maps = saliency(classifier, images, classes)
    assert np.abs(maps - expected).max() < 0.01
    assert np.array_equal(maps, saliency(classifier, images, classes))


@pytest.fixture
def evaluated(run):
    return run("evaluated", "train.epochs=6", "train.learning_rate=0.003", is_evaluated=True)


def test_an_evaluation_again_writes_the_same_bytes(run, tmp_path):
    tables, arrays = [], []
    for name in ("one", "two"):
        folder = run(name, is_evaluated=True).evaluation / "test"
        tables.append([(folder / table).read_bytes() for table in ("predictions.csv", "metrics.csv")])
        arrays.append({path.name: dict(np.load(path)) for path in (tmp_path / ".udc/explanations").glob("*.npz")})
        shutil.rmtree(tmp_path / ".udc")  # what the first one stored would be used by the second
    assert tables[0] == tables[1]
    assert arrays[0].keys() == arrays[1].keys() != set()
    for name, first in arrays[0].items():
        assert all(np.array_equal(first[key], arrays[1][name][key]) for key in first)


def test_evaluate_predict_and_score_decide_alike(evaluated, images, tmp_path, capsys):
    decided = read_predictions(evaluated.evaluation / "test/predictions.csv").set_index("path")["predicted"]
    paths = [str(images / path) for path in decided.index]
    capsys.readouterr()
    assert main(["predict", *paths, "--csv", "--root", str(evaluated.root)]) == 0
    predicted = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert predicted["class"].tolist() == decided.tolist()
    assert main(["score", str(images), "--out", str(tmp_path / "scored"), "--root", str(evaluated.root)]) == 0
    scored = pd.concat(map(pd.read_parquet, sorted((tmp_path / "scored").glob("*.parquet")))).set_index("path")
    assert len(scored) == 60
    assert scored.loc[paths, "class"].tolist() == decided.tolist()


@pytest.mark.parametrize("target", ["onnx", "torch-export"])
def test_export_decides_as_the_model_does(evaluated, tmp_path, target):
    path = tmp_path / {"onnx": "model.onnx", "torch-export": "model.pt2"}[target]
    assert main(["export", str(path), "--to", target, "--root", str(evaluated.root)]) == 0
    assert path.is_file()


def test_logits_have_no_tf32_rounding():
    """Whatever torch's defaults are; stage evaluate and stage train then agree in float32."""
    convolution = torch.nn.Conv2d(64, 64, 3)
    images = torch.randn(2, 64, 32, 32)
    expected = convolution.double()(images.double()).detach()
    model = build_model(ModelParams(preset="resnet-18"), ["a", "b"], 0).eval().to(GPU)
    build_forward(model, GPU, "fp32")
    found = convolution.float().to(GPU)(images.to(GPU)).detach().cpu().double()
    assert float((found - expected).abs().max()) < 1e-5
