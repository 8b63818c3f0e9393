"""Agreement, size, speed and cost of exports, appended to benchmarks/exports.csv.

    OMP_NUM_THREADS=1 python benchmarks/exports.py

Models: a small ResNet that is trained on scikit-learn's digits for a few epochs, and ResNet-50 and ConvNeXt-T at 224 px
with random weights, on noise of three brightnesses, whose last layer is scaled so that all decisions occur. Rows that
the table has are not measured again. A row has the decisions that differ from the model's on the test split, both mean
costs, size, CPU time per image in batches of 8 (of the model itself in PyTorch beside it), and whether `udc export`
refuses it.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from results_table import ResultsTable
from torch import nn

from udc_model.config import ModelParams, ResNetParams
from udc_model.data.packed import PackedDataset, write_packed
from udc_model.data.scratch import PixelScratch
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.calibration import fit_calibration
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.files import Workspace, sha256_of
from udc_model.inference.exports.export import ExportRequest, is_exact, load_export, write_export
from udc_model.inference.exports.targets import SUFFIXES, TOLERANCE
from udc_model.inference.stored_model import StoredModel, open_stored
from udc_model.models import build_model

COLUMNS = ("model", "to", "precision", "images", "different", "cost", "model_cost", "megabytes", "model_megabytes",
           "milliseconds", "model_milliseconds", "refused")  # fmt: skip
EXPORTS = (
    ("onnx", "fp32"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("torch-export", "fp32"),
    ("safetensors-hf", "fp32"),
    ("openvino", "int8"),
    ("onnx", "fp16"),
    ("torch-export", "bf16"),
    ("openvino", "fp16"),
)
MODELS = {
    "digits": (ModelParams(preset=None, resnet=ResNetParams(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1],
                                                            layer_type="basic")), 32),
    "resnet-50": (ModelParams(preset="resnet-50"), 224),
    "convnext-tiny": (ModelParams(model_type="convnext", preset="convnext-tiny"), 224),
}  # fmt: skip
BATCH = 8


def main() -> None:
    """Measure the missing rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=8, help="per split, of the models with random weights")
    parser.add_argument("--exports", type=int, default=len(EXPORTS), help="how many of the exports, from the first")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    table = ResultsTable(options.output, COLUMNS)
    for name in options.models:
        missing = [each for each in EXPORTS[: options.exports]
                   if not table.has(model=name, to=each[0], precision=each[1])]  # fmt: skip
        if missing:
            with TemporaryDirectory() as folder:
                workspace = make_workspace(Path(folder), name, options.images)
                for to, precision in missing:
                    try:
                        table.append(name, *measure(workspace, to, precision))
                    except UdcError as error:  # refused, as its decisions are not those of the model
                        print(error, flush=True)  # noqa: T201


def make_workspace(root: Path, name: str, images: int) -> Workspace:
    """Write model, policy and prepared data of one of `MODELS`."""
    workspace, (params, size) = Workspace(root), MODELS[name]
    for folder in (workspace.model, workspace.evaluation, workspace.prepared):
        folder.mkdir(parents=True)
    pixels, labels = digits() if name == "digits" else noise(size, images)
    classes = [str(k) for k in range(labels.max() + 1)]
    dataset = write_data(root, pixels, labels, classes, size)
    model = build_model(params, classes, 0)
    values = {split: dataset.preprocessing.to_input(torch.tensor(np.array(dataset.split(split).images)))
              for split in ("train", "calibration")}  # fmt: skip
    if name == "digits":
        train(model, values["train"], torch.from_numpy(dataset.split("train").labels))
    else:
        scale_head(model, values["calibration"])
    model.eval().save_pretrained(workspace.model)
    dataset.preprocessing.save(workspace.model)
    with torch.no_grad():
        logits = model(values["calibration"]).logits.double().numpy()
    calibration = fit_calibration("temperature", logits, dataset.split("calibration").labels)
    distance = np.abs(np.subtract.outer(np.arange(len(classes)), np.arange(len(classes)))).astype(float)
    policy = Policy(classes, distance.tolist(), refer=0.5, calibration=calibration,
                    model_sha256=sha256_of(workspace.model / "model.safetensors"))  # fmt: skip
    (workspace.evaluation / "policy.json").write_text(policy.to_json())
    return workspace


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """1,797 grey digits, enlarged to 32 px and copied to three channels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.repeat(np.repeat(data.images * 15.9, 4, axis=1), 4, axis=2).astype(np.uint8)
    return np.repeat(images[..., None], 3, axis=3), data.target.astype(np.int64)


def noise(size: int, images: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of three brightnesses, three splits of them, with smooth noise."""
    rng, labels = np.random.default_rng(0), np.arange(3 * images) % 3
    coarse = rng.normal(70 + 50 * labels[:, None, None, None], 60, (3 * images, size // 8, size // 8, 3))
    return np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2).clip(0, 255).astype(np.uint8), labels


def write_data(
    root: Path, pixels: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str], size: int
) -> PackedDataset:
    """Write prepared data with a third of the images in each of train, calibration and test."""
    (root / "scratch").write_bytes(pixels.tobytes())
    names, third = ("train", "calibration", "test"), len(labels) // 3
    rows = [
        {"split": names[min(row // third, 2)], "path": f"{row}.png", "label": classes[label], "scratch_row": row,
         "group": "", "width": size, "height": size, "sha256": "0" * 64}
        for row, label in enumerate(labels)
    ]  # fmt: skip
    folder = Workspace(root).prepared
    write_packed(folder, PixelScratch(root / "scratch"), rows, Preprocessing(size), {"classes": classes})
    return PackedDataset.open(folder)


def train(model: nn.Module, values: torch.Tensor, labels: torch.Tensor, epochs: int = 6) -> None:
    """Train with AdamW."""
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(model(values[batch]).logits, labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def scale_head(model: nn.Module, values: torch.Tensor) -> None:
    """Give the logits of random weights the mean 0 and the standard deviation 3 on some images."""
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        logits = model.eval()(values).logits
        head.weight.mul_(3 / logits.std(dim=0)[:, None])
        head.bias.sub_(logits.mean(dim=0)).mul_(3 / logits.std(dim=0))


def measure(workspace: Workspace, to: str, precision: str) -> tuple[object, ...]:
    """The columns of an export, without the model's name."""
    stored, data = open_stored(workspace), PackedDataset.open(workspace.prepared)
    request, target = ExportRequest(to, precision), workspace.root / f"{to}-{precision}{SUFFIXES.get(to, '')}"
    agreement, _ = write_export(request, stored, "", target, data, tolerance=float("inf"))
    assert agreement is not None
    run, images = load_export(request, target)[0], np.array(data.split("test").images[:BATCH])
    takes_images = to not in ("safetensors-hf", "openvino")
    values = images if takes_images else stored.preprocessing.to_input(torch.from_numpy(images)).numpy()
    problem = agreement.problem(TOLERANCE, is_exact(request, stored))
    size = sum(path.stat().st_size for path in ([target] if target.is_file() else target.iterdir()))
    print(to, precision, agreement.to_text(), problem or "accepted", sep="; ", flush=True)  # noqa: T201
    return (to, precision, agreement.images, agreement.different, agreement.cost, agreement.model_cost, size / 1e6,
            len(stored.model.weights) / 1e6, milliseconds(lambda: run(values), len(images)), model_time(stored, images),
            "no" if problem is None else "yes")  # fmt: skip


def model_time(stored: StoredModel, images: NDArray[np.uint8]) -> float:
    """Milliseconds per image of the model in PyTorch on prepared images."""
    classifier = stored.load()
    return milliseconds(lambda: classifier.logits_of_stored(images), len(images))


def milliseconds(function: Callable[[], object], images: int) -> float:
    """CPU milliseconds per image of the fastest of three calls; others on this machine do not change it much."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1000 * min(times) / images


if __name__ == "__main__":
    main()
