"""Compares our models with those of transformers, torchvision and timm: training step, inference, peak memory.

    make bench                                  all cases (half an hour on two cores)
    python benchmarks/models.py --only convnext-tiny/train

One process runs a step of each library in turn, so that machine noise affects all of them alike. "ours/best" is the
ratio of our speed to that of the library with the highest median speed: median over the rounds, minimum and maximum.
Peak memory is measured in a separate process that runs two steps. "defaults" means the defaults of each library, in
separate processes: ours as `udc train` runs it, transformers in fp32. In all other cases precision, memory format and
allocator settings are the same for all libraries.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LIBRARIES = ("ours", "transformers", "torchvision", "timm")
CLASSES, SIDE = 1000, 224


@dataclass(frozen=True)
class Case:
    """One measurement; ``mode`` is train or infer, precision ``auto`` means the defaults of each library."""

    model: str
    mode: str
    precision: str
    channels_last: bool
    batch: int
    libraries: tuple[str, ...] = LIBRARIES

    @property
    def name(self) -> str:
        """The name in the table, which ``--only`` filters."""
        if self.precision == "auto":
            return f"{self.model}/{self.mode}/defaults"
        return f"{self.model}/{self.mode}/{self.precision}{'+channels_last' if self.channels_last else ''}/{self.batch}"


def cases(batch: int, bf16_batch: int) -> list[Case]:
    """Return all cases; ``bf16_batch`` is the batch size of training in bf16, which some processors emulate."""
    all_cases = []
    for model in ("convnext-tiny", "resnet-50"):
        all_cases += [
            Case(model, "train", "bf16", True, bf16_batch),
            Case(model, "train", "fp32", False, batch),
            Case(model, "train", "fp32", True, batch),
            Case(model, "train", "auto", False, batch, ("ours", "transformers")),
            Case(model, "infer", "fp32", False, 1),
            Case(model, "infer", "fp32", False, 32),
            Case(model, "infer", "fp32", True, 32),
        ]
    return all_cases


def build(library: str, model: str):  # returns a module of any library
    """Build a model with random weights and without drop path."""
    if library == "ours":
        from udc_model.config import ModelParams
        from udc_model.models import build_model

        params = ModelParams(model_type=model.split("-")[0], preset=model)
        return build_model(params, [str(i) for i in range(CLASSES)], seed=1)
    if library == "transformers":
        import transformers

        kind = "ConvNext" if model.startswith("convnext") else "ResNet"
        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES)
        return getattr(transformers, f"{kind}ForImageClassification")(config)
    name = {"convnext-tiny": "convnext_tiny", "resnet-50": "resnet50"}[model]
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=CLASSES)
    import torchvision

    return getattr(torchvision.models, name)(**({"stochastic_depth_prob": 0.0} if model == "convnext-tiny" else {}))


def prepare_step(library: str, case: Case) -> Callable[[], None]:
    """Return a function that runs one step of a library on fixed random images."""
    import torch

    from udc_model.config import TrainParams
    from udc_model.native.memory import keep_freed_memory
    from udc_model.training.hardware import pick_hardware

    torch.manual_seed(0)
    precision, channels_last = case.precision, case.channels_last
    if precision == "auto":
        hardware = pick_hardware(TrainParams(device="cpu"))
        precision = hardware.precision if library == "ours" else "fp32"
        channels_last = library == "ours" and hardware.memory_format == torch.channels_last
    if case.precision != "auto" or library == "ours":
        keep_freed_memory()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build(library, case.model).to(memory_format=layout)
    images = torch.randn(case.batch, 3, SIDE, SIDE).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (case.batch,))

    def logits():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model(images)
        return getattr(output, "logits", output)

    if case.mode == "infer":
        model.eval()

        def infer() -> None:
            with torch.inference_mode():
                logits()

        return infer
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train() -> None:
        loss = torch.nn.functional.cross_entropy(logits().float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def serve(libraries: list[str], case: Case, steps: int) -> None:
    """Run a worker: for each library name on stdin, print the seconds per step; at the end, print the peak MB."""
    functions = {library: prepare_step(library, case) for library in libraries}
    for step in functions.values():
        step()
        step()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(steps):
            functions[line.strip()]()
        sys.stdout.write(f"{(time.perf_counter() - started) / steps}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}\n")


class Worker:
    """A process that measures some libraries for one case."""

    def __init__(self, libraries: Sequence[str], case: Case) -> None:
        steps = 1 if case.mode == "train" else max(1, 32 // case.batch)
        command = [sys.executable, __file__, "--worker", ",".join(libraries), json.dumps(asdict(case)), str(steps)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        if self._read_line() != "ready":
            raise SystemExit(f"a worker failed; run it alone: {' '.join(command)}")

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self, library: str) -> float:
        """Measure the seconds of one step of a library."""
        assert self.process.stdin is not None
        self.process.stdin.write(library + "\n")
        self.process.stdin.flush()
        return float(self._read_line())

    def end(self) -> float:
        """End the process and return its peak memory in MB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        memory = float(self._read_line())
        self.process.wait()
        return memory


def measure(case: Case, rounds: int) -> None:
    """Measure one case and print its lines of the table."""
    libraries = list(case.libraries)
    groups = [[library] for library in libraries] if case.precision == "auto" else [libraries]
    workers = {library: worker for group in groups for worker in [Worker(group, case)] for library in group}
    speeds: dict[str, list[float]] = {library: [] for library in libraries}
    for turn in range(rounds):
        start = turn % len(libraries)
        for library in libraries[start:] + libraries[:start]:
            speeds[library].append(case.batch / workers[library].seconds(library))
    for worker in set(workers.values()):
        worker.end()
    medians = {library: statistics.median(values) for library, values in speeds.items()}
    best = max((library for library in libraries if library != "ours"), key=medians.__getitem__)
    for library in libraries:
        line = f"{case.name:42}{library:14}{medians[library]:9.2f}{Worker([library], case).end():9.0f}"
        if library == "ours":
            ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds[best], strict=True)]
            line += f"{statistics.median(ratios):9.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure all cases, or those whose name contains ``--only``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="images per training step")
    parser.add_argument("--only", default="", help="part of a case's name, e.g. convnext-tiny/train")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        libraries, case, steps = options.worker
        serve(libraries.split(","), Case(**json.loads(case)), int(steps))
        return
    import torch

    from udc_model.config import TrainParams
    from udc_model.native.library import load_library
    from udc_model.training.hardware import pick_hardware

    fast_bf16 = pick_hardware(TrainParams(device="cpu")).precision == "bf16"
    kernels = "native kernels" if load_library() else "no native kernels"
    processor = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), platform.processor())  # fmt: skip
    bf16 = "in hardware" if fast_bf16 else "emulated"
    sys.stdout.write(f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}, {kernels}, "
                     f"bf16 {bf16}; {SIDE} px, {options.rounds} rounds\n\n")  # fmt: skip
    sys.stdout.write(f"{'case':42}{'library':14}{'images/s':>9}{'peak MB':>9}{'ours/best':>12}\n")
    for case in cases(options.batch, options.batch if fast_bf16 else 1):
        if options.only in case.name:
            measure(case, options.rounds)


if __name__ == "__main__":
    main()
