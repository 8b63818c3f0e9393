"""Training, inference and loading on a GPU beside transformers, timm and torchvision.

    make bench-gpu
    python benchmarks/gpu.py --only train/resnet-50 --compiled

One process runs each library in turn, on the same images of 224 px, with random weights. Training is a step of AdamW;
inference is in eval mode without gradients. "defaults" is the model as the library makes it, in fp32; all others use
bf16, with channels last. "deterministic" is our default, ``train.deterministic``. ``--compiled`` adds torch.compile,
which takes a minute for each model. An epoch reads JPEGs of 256 px: ours from the prepared store, timm's loader with
its prefetcher and a process for each core, and torchvision with its decoder on the GPU, where there is one;
"in memory" is our step on batches that are on the GPU already, the limit for any loader.

Each value is the median over the rounds; peak memory is that of the library alone. Rows are appended to
benchmarks/gpu.csv.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from results_table import ResultsTable
from torch import Tensor, nn

from models import CLASSES, LIBRARIES, SIDE, build
from training import Case as EpochCase
from training import make_images, prepare, session_of, transform
from udc_model.inference.engine import build_forward
from udc_model.training.loop import train_epoch
from udc_model.training.optimisation import train_mode

COLUMNS = ("case", "way", "images_per_second", "smallest", "largest", "peak_mb", "rounds", "device", "torch")
MODELS = ("convnext-tiny", "resnet-50")
GPU = torch.device("cuda")
TRAIN_BATCH, EPOCH_BATCH, EPOCH_IMAGES = 128, 128, 1280
Step = Callable[[], object]
Ways = Iterator[tuple[str, int, Callable[[], Step]]]  # names, images in each call, and functions that build them


def training_steps(model: str, has_compiled: bool) -> Ways:
    """The ways to train; each is built when it is called."""
    for library in LIBRARIES:
        yield f"{library} defaults", TRAIN_BATCH, lambda library=library: _training_step(build(library, model), False)
        yield library, TRAIN_BATCH, lambda library=library: _training_step(build(library, model), True)
    yield "ours deterministic", TRAIN_BATCH, lambda: _training_step(build("ours", model), True, is_deterministic=True)
    for library in ("ours", "timm") if has_compiled else ():
        compiled = lambda library=library: _compiled(build(library, model))  # noqa: E731
        yield f"{library} compiled", TRAIN_BATCH, lambda compiled=compiled: _training_step(compiled(), True)


def _compiled(network: nn.Module, mode: str | None = None) -> nn.Module:
    network.compile(mode=mode)
    return network


def _training_step(network: nn.Module, is_bf16: bool, is_deterministic: bool = False) -> Step:
    layout = torch.channels_last if is_bf16 else torch.contiguous_format
    network = network.to(GPU).to(memory_format=layout).train()
    images = torch.randn(TRAIN_BATCH, 3, SIDE, SIDE, device=GPU).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (TRAIN_BATCH,), device=GPU)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        torch.use_deterministic_algorithms(is_deterministic)
        torch.backends.cudnn.benchmark = not is_deterministic
        with torch.autocast("cuda", torch.bfloat16, enabled=is_bf16):
            logits = network(images)
        logits = getattr(logits, "logits", logits)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_steps(model: str, batch: int, has_compiled: bool) -> Ways:
    """The ways to infer; each is built when it is called."""
    images = torch.randn(batch, 3, SIDE, SIDE, device=GPU)
    for precision in ("fp32", "fp32_fused", "bf16"):
        yield f"ours {precision}", batch, lambda precision=precision: _ours(model, precision, images)
    for library in LIBRARIES[1:]:
        yield (
            f"{library} defaults",
            batch,
            lambda library=library: _inference_step(build(library, model), images, False),
        )
        yield library, batch, lambda library=library: _inference_step(build(library, model), images, True)
    if has_compiled:
        yield (
            "timm compiled",
            batch,
            lambda: _inference_step(_compiled(build("timm", model), "reduce-overhead"), images, True),
        )


def _ours(model: str, precision: str, images: Tensor) -> Step:
    forward = build_forward(build("ours", model).eval().to(GPU), GPU, precision)
    return lambda: forward(images)


def _inference_step(network: nn.Module, images: Tensor, is_bf16: bool) -> Step:
    layout = torch.channels_last if is_bf16 else torch.contiguous_format
    network, images = network.eval().to(GPU).to(memory_format=layout), images.contiguous(memory_format=layout)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=is_bf16):
            network(images)

    return step


def epoch_steps(model: str, folder: Path) -> Ways:
    """The ways to run an epoch on a folder of JPEGs; each is built when it is called."""
    case = EpochCase("gpu", model, EPOCH_IMAGES, 256, SIDE, EPOCH_BATCH, ())
    make_images(folder, case.images, case.side)
    _, prepared = prepare(case, folder)
    yield "in memory", prepared, lambda: _our_epoch(case, folder, is_loaded=True)
    yield "ours", prepared, lambda: _our_epoch(case, folder)
    yield "timm loader", EPOCH_IMAGES, lambda: _peer_epoch(model, _timm_loader(folder))
    yield "torchvision on the GPU", EPOCH_IMAGES, lambda: _peer_epoch(model, _gpu_decoder(folder))


def _our_epoch(case: EpochCase, folder: Path, is_loaded: bool = False) -> Step:
    session = session_of(case, folder, "bf16", deterministic=False)
    session.start()
    batches, progress = session.batches, session.progress
    if is_loaded:
        loaded = list(batches.load(0, 0, session.hardware.device))
        batches.load = lambda epoch, step, device: iter(loaded)  # type: ignore[method-assign]

    def epoch() -> None:
        train_mode(session.trained, session.frozen)
        train_epoch(session)
        progress.epoch, progress.step = progress.epoch + 1, 0

    return epoch


def _peer_epoch(model: str, loader: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> Step:
    network = build("timm", model).to(GPU).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def epoch() -> None:
        for images, labels in loader():
            with torch.autocast("cuda", torch.bfloat16):
                logits = network(images.contiguous(memory_format=torch.channels_last))
            nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def _timm_loader(folder: Path) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    import timm.data

    loader = timm.data.create_loader(
        timm.data.ImageDataset(str(folder / "train")), (3, SIDE, SIDE), EPOCH_BATCH, is_training=True,
        scale=(0.35, 1), num_workers=os.cpu_count() or 1, color_jitter=0.0, interpolation="bilinear", device=GPU,
    )  # fmt: skip
    return lambda: iter(loader)


def _gpu_decoder(folder: Path) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    files = sorted((folder / "train").rglob("*.jpg"))
    names = sorted({path.parent.name for path in files})
    labels = torch.tensor([names.index(path.parent.name) for path in files])
    augment = v2.Compose([*transform(SIDE).transforms[:2], v2.ToDtype(torch.float32, scale=True),
                          v2.Normalize((0.5,) * 3, (0.25,) * 3)])  # fmt: skip
    if not files:
        raise SystemExit(f"{folder}: no images")

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(files))
        for start in range(0, len(files), EPOCH_BATCH):
            part = order[start : start + EPOCH_BATCH]
            decoded = decode_jpeg([read_file(str(files[i])) for i in part.tolist()], device=GPU)
            yield torch.stack([augment(image) for image in decoded]), labels[part].to(GPU)

    return batches


def measure(case: str, ways: Ways, rounds: int, table: ResultsTable) -> None:
    """Time all ways of a case in turn, and append a row for each."""
    steps: dict[str, tuple[Step, int]] = {}
    peaks: dict[str, float] = {}
    for name, images, make in ways:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = make()
            for _ in range(3):
                step()
        except (RuntimeError, ImportError) as error:
            print(f"{case} {name}: not measured ({' '.join(str(error).split())[:200]})", flush=True)  # noqa: T201
            continue
        steps[name], peaks[name] = (step, images), (torch.cuda.max_memory_allocated() - before) / 2**20
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (step, images) in steps.items():
            rates[name].append(images / _time(step))
    for name, values in rates.items():
        rate, slow, fast, peak = statistics.median(values), min(values), max(values), peaks[name]
        print(f"{case:24} {name:24} {rate:9.0f} images/s ({slow:.0f} to {fast:.0f}) {peak:7.0f} MB", flush=True)  # noqa: T201
        table.append(case, name, rate, slow, fast, peak, rounds, torch.cuda.get_device_name(), torch.__version__)
    torch.cuda.empty_cache()


def _time(step: Step, at_least: float = 0.1) -> float:
    """Seconds of one call, from as many calls as take ``at_least`` seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    calls = 1
    while True:
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            step()
        end.record()
        torch.cuda.synchronize()
        seconds = start.elapsed_time(end) / 1000
        if seconds >= at_least:
            return seconds / calls
        calls = max(2 * calls, int(1.2 * calls * at_least / max(seconds, 1e-4)))


def main() -> None:
    """Measure all cases, or those whose name contains ``--only``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a case's name, e.g. infer/resnet-50")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile")
    parser.add_argument("--table", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: this machine has no CUDA GPU")
    table = ResultsTable(options.table, COLUMNS)
    for model in MODELS:
        if options.only in (case := f"train/{model}/{TRAIN_BATCH}"):
            measure(case, training_steps(model, options.compiled), options.rounds, table)
        for batch in (1, 64, 256):
            if options.only in (case := f"infer/{model}/{batch}"):
                with torch.inference_mode():
                    measure(case, inference_steps(model, batch, options.compiled), options.rounds, table)
        if options.only in (case := f"epoch/{model}/{EPOCH_BATCH}"):
            with tempfile.TemporaryDirectory() as scratch:
                measure(case, epoch_steps(model, Path(scratch)), options.rounds, table)


if __name__ == "__main__":
    main()
