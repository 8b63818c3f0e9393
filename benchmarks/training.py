"""Compares training epochs on a JPEG folder with Hugging Face's Trainer, timm's loader and a plain loop.

    make bench                                          all cases (about half an hour on two cores)
    python benchmarks/training.py --only small

All use the same architecture, batch size, augmentation (random resized crop and flip), optimiser and precision. Each
runs in its own process, and the processes take turns epoch by epoch, so that other load on the machine affects all of
them. Speeds are medians over the rounds; "ours/it" is the median of the ratios of each round, with the lowest and the
highest. "ours" reads the prepared data of the folder; the time of `prepare` is reported. "ours, synthetic" runs our
training step on batches in memory, the upper limit for any loader. "ours default" is `udc train`'s default.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 3
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SMALL = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "layer_type": "basic"}


@dataclass(frozen=True)
class Case:
    """A data set of ``images`` JPEGs of ``side`` pixels, resized to ``size`` pixels.

    ``model`` is small or a preset.
    """

    name: str
    model: str
    images: int
    side: int
    size: int
    batch: int
    contenders: tuple[str, ...]


FP32 = (
    "ours, synthetic",
    "ours fp32",
    "ours default",
    "Trainer",
    "Trainer, 2 workers",
    "loop",
    "loop, 2 workers",
    "timm",
)
LARGE = ("ours default", "Trainer", "Trainer bf16 channels_last", "timm bf16 channels_last")
CASES = (
    Case("small", "small", 2100, 200, 64, 32, FP32),
    Case("resnet-50", "resnet-50", 96, 256, 224, 16, LARGE),
    Case("convnext-tiny", "convnext-tiny", 96, 256, 224, 16, LARGE),
)


def make_images(root: Path, n: int, side: int) -> None:
    """Write n JPEGs in a folder per class, a fifth more in ``val``: noise with a grating, whose angle is the class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    for i in range(n + n // 5):
        label = i % CLASSES
        angle = np.pi * label / CLASSES + rng.normal(0, 0.15)
        wave = np.sin(2 * np.pi * (rng.uniform(5, 9) * (x * np.cos(angle) + y * np.sin(angle)) + rng.random()))
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side))
        pixels = 0.7 * np.asarray(coarse) + 30 * wave[:, :, None] + rng.normal(0, 25, (side, side, 3)) + 38
        folder = root / ("train" if i < n else "val") / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


def params_of(case: Case, precision: str) -> dict[str, Any]:
    """The parameters of our training run."""
    kind = "convnext" if case.model.startswith("convnext") else "resnet"
    size: dict[str, Any] = {"resnet": SMALL} if case.model == "small" else {"preset": case.model}
    return {
        "model": {"model_type": kind} | size,
        "train": {"epochs": 1000, "batch_size": case.batch, "augment": "standard", "horizontal_flip": True,
                  "precision": precision, "learning_rate": 1e-3, "schedule": "constant", "warmup_ratio": 0.0},
    }  # fmt: skip


@dataclass
class Contender:
    """Functions that run one training epoch and one pass of the loader alone (None if impossible), and the model."""

    epoch: Callable[[], None]
    load: Callable[[], None] | None
    model: Any


def session_of(case: Case, folder: Path, precision: str, **train: Any) -> Any:
    """Our training session on the prepared folder, with other parameters of the section ``train``; not started."""
    import torch

    from udc_model.config import validate_params
    from udc_model.data.packed import PackedDataset
    from udc_model.models import build_model
    from udc_model.training.hardware import pick_hardware
    from udc_model.training.session import TrainingSession
    from udc_model.training.training_loss import TrainingLoss

    raw = params_of(case, precision)
    params = validate_params(raw | {"train": raw["train"] | train}, "benchmark")
    dataset = PackedDataset.open(folder / "data/prepared")
    loss = TrainingLoss(params.loss, torch.ones(CLASSES, CLASSES) - torch.eye(CLASSES), dataset.training_counts)
    model = build_model(params.model, dataset.classes, 1)
    splits = dataset.split("train"), dataset.split("validation")
    return TrainingSession(model, loss, *splits, dataset.preprocessing, params, pick_hardware(params.train))


def ours(name: str, case: Case, folder: Path) -> Contender:
    """Our training loop on the prepared folder."""
    from udc_model.native.memory import keep_freed_memory
    from udc_model.training.loop import train_epoch
    from udc_model.training.optimisation import train_mode

    keep_freed_memory()
    session = session_of(case, folder, "auto" if "default" in name else "fp32")
    session.start()
    model, hardware = session.model, session.hardware
    batches, progress = session.batches, session.progress
    if "synthetic" in name:
        loaded = list(batches.load(0, 0, hardware.device))
        batches.load = lambda epoch, step, device: iter(loaded)  # type: ignore[method-assign]

    def epoch() -> None:
        train_mode(model, session.frozen)
        session.loss_fn.start_epoch(progress.epoch, 1000)
        train_epoch(session)
        progress.epoch, progress.step = progress.epoch + 1, 0

    def load() -> None:
        for _ in batches.load(progress.epoch, 0, hardware.device):
            pass

    return Contender(epoch, load, model)


def peer_model(case: Case) -> Any:
    """The same architecture from transformers, with random weights."""
    import transformers

    if case.model == "convnext-tiny":
        return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(num_labels=CLASSES))
    sizes = SMALL if case.model == "small" else {}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=CLASSES, **sizes))


def transform(size: int) -> Any:
    """The transforms of the other contenders, with the crops of our ``augment: standard``."""
    from torchvision import transforms

    return transforms.Compose([transforms.RandomResizedCrop(size, scale=(0.35, 1)), transforms.RandomHorizontalFlip(),
                               transforms.ToTensor(), transforms.Normalize(MEAN, STD)])  # fmt: skip


def trainer(name: str, case: Case, folder: Path) -> Contender:
    """Hugging Face's Trainer on torchvision's ImageFolder."""
    import torch
    from torchvision.datasets import ImageFolder
    from transformers import Trainer, TrainingArguments

    bf16 = "bf16" in name
    data = ImageFolder(str(folder / "train"), transform(case.size))
    layout = torch.channels_last if bf16 else torch.contiguous_format
    model = peer_model(case).to(memory_format=layout)

    def collate(samples: list[Any]) -> dict[str, Any]:
        images = torch.stack([image for image, _ in samples]).contiguous(memory_format=layout)
        return {"pixel_values": images, "labels": torch.tensor([label for _, label in samples])}

    def epoch() -> None:
        arguments = TrainingArguments(
            output_dir=str(folder / "trainer"), num_train_epochs=1, per_device_train_batch_size=case.batch,
            learning_rate=1e-3, lr_scheduler_type="constant", weight_decay=0.05, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, bf16=bf16, logging_strategy="no",
            dataloader_num_workers=2 if "workers" in name else 0, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(model, arguments, data_collator=collate, train_dataset=data).train()

    return Contender(epoch, None, model)


def plain_loop(name: str, case: Case, folder: Path) -> Contender:
    """A training loop as in torchvision's tutorials, or with timm's loader and optimiser."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    bf16 = "bf16" in name
    layout = torch.channels_last if bf16 else torch.contiguous_format
    model = peer_model(case).to(memory_format=layout)
    if name.startswith("timm"):
        import timm.data
        import timm.optim

        loader = timm.data.create_loader(
            timm.data.ImageDataset(str(folder / "train")), (3, case.size, case.size), case.batch, is_training=True,
            use_prefetcher=False, scale=(0.35, 1), mean=MEAN, std=STD, num_workers=0, color_jitter=0.0,
            interpolation="bilinear", device=torch.device("cpu"),
        )  # fmt: skip
        optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    else:
        loader = DataLoader(ImageFolder(str(folder / "train"), transform(case.size)), case.batch, shuffle=True,
                            num_workers=2 if "workers" in name else 0)  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def epoch() -> None:
        model.train()
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(images.contiguous(memory_format=layout)).logits
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    def load() -> None:
        for _ in loader:
            pass

    return Contender(epoch, load, model)


def accuracy(model: Any, folder: Path, size: int) -> float:
    """Accuracy on the images of ``val``, resized to the input size without cropping."""
    import torch
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    data = ImageFolder(str(folder / "val"), transforms.Compose(steps))
    model.eval()
    with torch.inference_mode():
        correct = sum(int(model(image[None]).logits.argmax() == label) for image, label in data)
    return correct / len(data)


def serve(name: str, case: Case, folder: Path) -> None:
    """Run a worker: read one command per line from stdin, write one JSON answer per line to stdout."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the libraries print to stdout
    logging.disable(logging.WARNING)
    make = ours if name.startswith("ours") else trainer if name.startswith("Trainer") else plain_loop
    contender = make(name, case, folder)
    contender.epoch()  # compiles kernels, fills caches
    for line in iter(sys.stdin.readline, ""):
        verb, _, argument = line.strip().partition(" ")
        started = time.perf_counter()
        if verb == "epoch":
            contender.epoch()
        elif verb == "load" and contender.load:
            contender.load()
        elif verb == "train":  # a new model for a number of seconds, then its accuracy
            contender, started = make(name, case, folder), time.perf_counter()
            while time.perf_counter() - started < float(argument):
                contender.epoch()
        answer = {"seconds": time.perf_counter() - started}
        if verb == "train":
            answer["accuracy"] = accuracy(contender.model, folder, case.size)
        peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        answer["memory"] = sum(peaks) / 1024
        out.write(json.dumps(answer) + "\n")
        out.flush()


class Worker:
    """The process of one contender."""

    def __init__(self, name: str, case: Case, folder: Path) -> None:
        command = [sys.executable, __file__, "--worker", name, json.dumps(asdict(case)), str(folder)]
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env=env)  # fmt: skip
        self.ask("nothing")

    def ask(self, line: str) -> dict[str, float]:
        """The answer to one command."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker failed; run it alone: {self.process.args}")
        return dict(json.loads(answer))


def measure(case: Case, rounds: int, seconds: float) -> Iterator[str]:
    """Measure one case; the lines of its table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_images(folder, case.images, case.side)
        prepared, n = prepare(case, folder)
        workers = {name: Worker(name, case, folder) for name in case.contenders}
        speeds: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(rounds):
            order = list(workers)[turn % len(workers) :] + list(workers)[: turn % len(workers)]
            for name in order:
                images = n if name.startswith("ours") else case.images
                speeds[name].append(images / workers[name].ask("epoch")["seconds"])
        yield (f"{case.name}: {case.images} JPEGs of {case.side} px to {case.size} px, batch {case.batch}; prepare "
               f"{prepared:.1f} s, once")  # fmt: skip
        yield (f"  {'':30}{'images/s':>9}{'ours fp32/it':>24}{'ours default/it':>24}{'loader':>9}{'peak MB':>9}"
               f"{f'accuracy, {seconds:g} s':>18}")  # fmt: skip
        for name, worker in workers.items():
            ratios = "".join(f"{_ratio(speeds.get(ours), speeds[name]):>24}" for ours in ("ours fp32", "ours default"))
            images = n if name.startswith("ours") else case.images
            alone = worker.ask("load")
            loader = f"{images / alone['seconds']:,.0f}" if alone["seconds"] > 0.001 else "-"
            trained = worker.ask(f"train {seconds}") if "synthetic" not in name else {"memory": alone["memory"]}
            score = f"{trained['accuracy']:.3f}" if "accuracy" in trained else "-"
            yield (f"  {name:30}{statistics.median(speeds[name]):>9,.1f}{ratios}{loader:>9}"
                   f"{trained['memory']:>9,.0f}{score:>18}")  # fmt: skip
            worker.process.kill()


def _ratio(numerators: list[float] | None, denominators: list[float]) -> str:
    if numerators is None or numerators is denominators:
        return "-"
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def prepare(case: Case, folder: Path) -> tuple[float, int]:
    """Run our stage ``prepare`` on the folder; returns its seconds and the number of training images."""
    import yaml

    raw = params_of(case, "auto") | {
        "data": {"source": "folder", "path": str(folder / "train"), "image_size": case.size, "crop_pct": 0.875,
                 "splits": {"train": 0.97, "validation": 0.01, "calibration": 0.01, "test": 0.01}},
        "costs": {"preset": "uniform"},
    }  # fmt: skip
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    started = time.perf_counter()
    udc("prepare", cwd=folder)
    seconds = time.perf_counter() - started
    info = json.loads((folder / "data/prepared/dataset.json").read_text())
    return seconds, sum(info["counts"]["train"].values())


def udc(*arguments: str, cwd: Path) -> None:
    """Run a command of this project."""
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-m", "udc_model.cli", *arguments], cwd=cwd, env=env, check=True,
                   stderr=subprocess.DEVNULL)  # fmt: skip


FIRST_STEP = """
import os, sys
from udc_model.training import loop
from udc_model import cli
step = loop.train_step
def first(*arguments, **named):
    step(*arguments, **named)
    os._exit(0)
loop.train_step = first
sys.argv[1:] = ["train"]
cli.main()
"""
IMPORTS = "import torch, torchvision"


def start_up(rounds: int) -> Iterator[str]:
    """Compare `udc train` from its start to the end of its first step with importing torch and torchvision."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        (folder / ".dvc").mkdir()
        (folder / "data/raw").mkdir(parents=True)
        udc("prepare", cwd=folder)
        seconds: dict[str, list[float]] = {FIRST_STEP: [], IMPORTS: []}
        env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        for _ in range(rounds + 1):
            for code, taken in seconds.items():
                started = time.perf_counter()
                subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True, stderr=subprocess.DEVNULL)
                taken.append(time.perf_counter() - started)
        first, imports = (taken[1:] for taken in seconds.values())  # the first round fills the disk cache
        yield (f"start-up: `udc train` to its first step {statistics.median(first):.2f} s, importing torch and "
               f"torchvision {statistics.median(imports):.2f} s, ratio {_ratio(first, imports)}")  # fmt: skip


def checkpoint_cost(rounds: int) -> Iterator[str]:
    """Measure how long a checkpoint of ConvNeXt-tiny with averaged weights delays the training run."""
    import torch

    from udc_model.config import ModelParams, Params, TrainParams
    from udc_model.data.packed import PackedSplit
    from udc_model.data.transforms import Preprocessing
    from udc_model.models import build_model
    from udc_model.training.checkpoints import open_checkpoints
    from udc_model.training.hardware import Hardware
    from udc_model.training.session import TrainingSession
    from udc_model.training.training_loss import TrainingLoss

    params = Params(model=ModelParams(model_type="convnext", preset="convnext-tiny"), train=TrainParams(ema_decay=0.99))
    model = build_model(params.model, ["a", "b", "c"], 1)
    loss = TrainingLoss(params.loss, torch.ones(3, 3), [1, 1, 1])
    split = PackedSplit(np.zeros((1, 64, 64, 3), np.uint8), np.zeros(1, np.int64), ["a.png"], [""], [""])
    session = TrainingSession(
        model, loss, split, split, Preprocessing(64), params, Hardware(torch.device("cpu"), "fp32")
    )
    session.start()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    session.optimizer.step()
    session.end_epoch({}, 1.0, 1.0)
    taken = []
    with tempfile.TemporaryDirectory() as scratch, open_checkpoints(Path(scratch), {}, 1) as checkpoints:
        assert checkpoints is not None
        session.checkpoints = checkpoints
        for _ in range(rounds):
            started = time.perf_counter()
            session.save()
            taken.append(time.perf_counter() - started)
        size = checkpoints.last.stat().st_size / 2**20 if checkpoints.last else 0
    median = statistics.median(taken)
    yield (f"checkpoint: ConvNeXt-tiny with averaged weights, {size:,.0f} MB: {median:.2f} s "
           f"({min(taken):.2f} to {max(taken):.2f}), at one a minute {median / 60:.1%} of the time")  # fmt: skip


def frozen_epochs(rounds: int, images: int = 2000, size: int = 224) -> Iterator[str]:
    """Measure an epoch of a frozen ResNet-18 on images and on stored features, each with a fifth of validation images.

    The epoch on images is measured on a tenth of them.
    """
    import torch

    from udc_model.config import ModelParams, Params, TrainParams
    from udc_model.data.packed import PackedSplit
    from udc_model.data.transforms import Preprocessing
    from udc_model.models import build_model
    from udc_model.training.hardware import pick_hardware
    from udc_model.training.loop import train_model
    from udc_model.training.session import TrainingSession
    from udc_model.training.training_loss import TrainingLoss

    def split(n: int) -> PackedSplit:
        rng = np.random.default_rng(n)
        pixels = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
        return PackedSplit(pixels, np.arange(n) % CLASSES, [""] * n, [""] * n, [""] * n)

    def seconds_of_epochs(n: int, **options: Any) -> list[float]:
        """The seconds from the start of training to the end of each epoch."""
        params = Params(model=ModelParams(preset="resnet-18"), train=TrainParams(num_frozen_stages="all", **options))
        loss = TrainingLoss(params.loss, torch.ones(CLASSES, CLASSES) - torch.eye(CLASSES), [1] * CLASSES)
        model, hardware = build_model(params.model, list("abc"), 1), pick_hardware(params.train)
        session = TrainingSession(model, loss, split(n), split(n // 5), Preprocessing(size), params, hardware)
        ends: list[float] = []
        started = time.perf_counter()
        train_model(session, lambda record: bool(ends.append(time.perf_counter() - started)))
        return ends

    (on_images,) = seconds_of_epochs(images // 10, epochs=1, horizontal_flip=True)
    ends = seconds_of_epochs(images, epochs=rounds + 1)
    taken = [end - start for start, end in itertools.pairwise(ends)]
    median, low, high = (1000 * value for value in (statistics.median(taken), min(taken), max(taken)))
    yield (f"frozen: ResNet-18, {images:,} images of {size} px: an epoch on images {10 * on_images:.1f} s; on features "
           f"the first {ends[0]:.1f} s, each further one {median:.0f} ms ({low:.0f} to {high:.0f})")  # fmt: skip


def main() -> None:
    """Measure all cases, or the one that ``--only`` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="of training before the accuracy is measured")
    parser.add_argument("--only", default="", help="a case, start-up, checkpoint or frozen")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, case, folder = options.worker
        fields = json.loads(case)
        serve(name, Case(**fields | {"contenders": tuple(fields["contenders"])}), Path(folder))
        return
    for case in CASES:
        if options.only in ("", case.name):
            _print(measure(case, options.rounds, options.seconds))
    if options.only in ("", "start-up"):
        _print(start_up(options.rounds))
    if options.only in ("", "checkpoint"):
        _print(checkpoint_cost(options.rounds))
    if options.only in ("", "frozen"):
        _print(frozen_epochs(options.rounds))


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
