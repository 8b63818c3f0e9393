"""Inference of ConvNeXt-T and ResNet-50 beside other libraries, each at its defaults and at its best.

    python benchmarks/inference.py [--only resnet-50/16] [--rounds 9] [--compiled]
    python benchmarks/inference.py --files 2000 [--rounds 3]

The second form decides JPEGs of 500 x 400 with a ResNet-50 as `udc predict` does, and prepared images as stage evaluate
does, beside the bare network in bf16 on tensors, in turn; start-up is not counted.


One process runs a batch in each way in turn, so that machine noise affects all of them alike; all use random weights
and the same images of 224 px. "defaults" is the model as the library makes it, in fp32. "best" is bf16 autocast and
channels last; with --compiled also torch.compile with frozen weights, which takes a minute to start. Ratios are those
of the median speeds. Rows are appended to benchmarks/inference.csv.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from results_table import ResultsTable

from models import SIDE, build
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import POLICY_FILE, Policy
from udc_model.files import Workspace
from udc_model.inference.engine import build_forward
from udc_model.inference.exports.decision_graph import Network
from udc_model.inference.exports.onnx_file import network_onnx, save_onnx
from udc_model.inference.inputs import list_inputs
from udc_model.inference.prediction import predict
from udc_model.inference.stored_model import StoredModel, open_stored
from udc_model.native.memory import keep_freed_memory

COLUMNS = (
    "model",
    "batch",
    "way",
    "images_per_second",
    "smallest",
    "largest",
    "rounds",
    "threads",
    "processor",
    "torch",
)
MODELS, BATCHES = ("convnext-tiny", "resnet-50"), (1, 16, 64)
CPU = torch.device("cpu")
_BATCH = 64
Step = Callable[[], object]


def ways(model: str, batch: int, has_compiled: bool) -> dict[str, Step]:
    """A function for each way, which runs one batch."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, SIDE, SIDE)
    steps: dict[str, Step] = {}
    for precision in ("fp32", "fp32_fused", "bf16"):
        forward = build_forward(build("ours", model).eval(), CPU, precision)
        steps[f"ours {precision}"] = lambda forward=forward: forward(images)  # type: ignore[misc]
    for library in ("transformers", "timm", "torchvision"):
        steps[f"{library} defaults"] = _eager(build(library, model).eval(), images)
        best = build(library, model).eval().to(memory_format=torch.channels_last)
        steps[f"{library} best"] = _eager(best, images.contiguous(memory_format=torch.channels_last), is_bf16=True)
    if has_compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        compiled = torch.compile(build("timm", model).eval().to(memory_format=torch.channels_last))
        steps["timm compiled"] = _eager(compiled, images.contiguous(memory_format=torch.channels_last), is_bf16=True)
    steps |= _runtimes(model, images.numpy())
    return steps


def _eager(model: Callable[[torch.Tensor], object], images: torch.Tensor, is_bf16: bool = False) -> Step:
    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            model(images)

    return step


def _runtimes(model: str, images: np.ndarray) -> dict[str, Step]:
    """Sessions of onnxruntime and, if it is installed, OpenVINO, which chooses bf16 where the processor has it."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(network_onnx(Network(build("ours", model)), torch.zeros(2, 3, SIDE, SIDE)), path, {})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        steps: dict[str, Step] = {"onnxruntime": lambda: session.run(None, {"pixel_values": images})}
        try:
            import openvino
        except ImportError:
            return steps
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(openvino.convert_model(path), "CPU", settings)
    return steps | {"openvino": lambda: compiled(images)}


def measure(model: str, batch: int, rounds: int, has_compiled: bool, table: ResultsTable) -> None:
    """Time all ways in turn; print ratios and append a row for each way."""
    with torch.inference_mode():
        steps = ways(model, batch, has_compiled)
        for step in steps.values():
            step()
            step()
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    rates = {name: batch / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        print(f"{model} {batch:3} {name:24} {rate:8.1f} images/s")  # noqa: T201
        values = seconds[name]
        table.append(model, batch, name, rate, batch / max(values), batch / min(values), rounds,
                     torch.get_num_threads(), _processor(), torch.__version__)  # fmt: skip
    ours, peers = rates["ours bf16"], {name: rate for name, rate in rates.items() if not name.startswith("ours")}
    fastest = max(peers, key=lambda name: peers[name])
    ratios = ours / peers["transformers defaults"], ours / peers[fastest], rates["ours fp32_fused"] / rates["ours fp32"]
    print("{} {:3} ours bf16: {:.2f} of transformers' defaults, {:.2f} of {}; fp32_fused {:.2f} of fp32".format(  # noqa: T201
        model, batch, *ratios[:2], fastest, ratios[2]))  # fmt: skip


def measure_files(count: int, rounds: int) -> None:
    """Print the rates of udc predict and of stage evaluate as shares of the bare network's."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stored, preprocessing = _stored_model(folder), Preprocessing(SIDE, crop_pct=0.875)
        paths, pixels = [], np.random.default_rng(0)
        for number in range(count):
            small = pixels.integers(0, 256, (10, 13, 3), dtype=np.uint8)
            paths.append(str(folder / f"{number}.jpg"))
            Image.fromarray(small).resize((500, 400), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
        classifier = stored.load()
        forward = build_forward(build("ours", "resnet-50").eval(), CPU, "bf16")
        side = preprocessing.stored_size
        packed = pixels.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        images = torch.randn(_BATCH, 3, SIDE, SIDE)
        rates: dict[str, list[float]] = {"bare network": [], "udc predict": [], "stage evaluate": []}
        for _ in range(rounds + 1):  # the first one warms up
            start = time.perf_counter()
            with torch.inference_mode():
                for _ in range(count // _BATCH):
                    forward(images)
            rates["bare network"].append(count // _BATCH * _BATCH / (time.perf_counter() - start))
            batches = predict(list_inputs(paths), stored, print)  # type: ignore[arg-type]
            next(batches)  # loads the model
            start = time.perf_counter()
            rows = sum(len(batch) for batch in batches)
            rates["udc predict"].append(rows / (time.perf_counter() - start))
            start = time.perf_counter()
            classifier.logits_of_stored(packed)
            rates["stage evaluate"].append(count / (time.perf_counter() - start))
    for name, values in rates.items():
        shares = [value / bare for value, bare in zip(values[1:], rates["bare network"][1:], strict=True)]
        print(f"{name:16} {statistics.median(values[1:]):6.1f} images/s, {statistics.median(shares):.3f} "  # noqa: T201
              f"({min(shares):.3f} to {max(shares):.3f}) of the bare network")  # fmt: skip


def _stored_model(folder: Path) -> StoredModel:
    """A ResNet-50 with random weights and its policy."""
    workspace = Workspace(folder)
    workspace.model.mkdir()
    workspace.evaluation.mkdir()
    model = build("ours", "resnet-50")
    model.save_pretrained(workspace.model)
    Preprocessing(SIDE, crop_pct=0.875).save(workspace.model)
    classes = list(model.config.id2label.values())
    policy = Policy(classes, (1 - np.eye(len(classes))).tolist(), precision="bf16")
    (workspace.evaluation / POLICY_FILE).write_text(policy.to_json())
    return open_stored(workspace)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Run all cases, or those that ``--only`` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name, as resnet-50/16, contains this")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--files", type=int, default=0, metavar="N")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    keep_freed_memory()
    if options.files:
        measure_files(options.files, options.rounds)
        return
    table = ResultsTable(options.output, COLUMNS)
    for model in MODELS:
        for batch in BATCHES:
            if options.only in f"{model}/{batch}":
                measure(model, batch, options.rounds, options.compiled, table)


if __name__ == "__main__":
    main()
