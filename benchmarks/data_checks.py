"""What the checks of the data find: near-duplicates, groups and shortcuts, planted and real.

    python benchmarks/data_checks.py recall TRASHNET
    python benchmarks/data_checks.py clusters digits TRASHNET CELLS
    python benchmarks/data_checks.py speed 20000 100000 1000000
    python benchmarks/data_checks.py shots TRASHNET --weights efficientnet_lite0.safetensors
    python benchmarks/data_checks.py shortcuts TRASHNET
    python benchmarks/data_checks.py inspect 10000

`recall` makes versions of 1,000 photographs and counts which are found beside their originals, and false pairs.
`clusters` counts the clusters in real data; those of digits are false, and others are to be looked at in the report.
`speed` measures the index on synthetic fingerprints, of which 1 in 100 has a near-duplicate. `shots` makes 5 shots of
240 photographs and trains recipe frozen-features with a random split, with the proposed group, and with clusters as
groups. `shortcuts` plants JPEG quality, a border and a camera. `inspect` measures the time beyond decoding.
Results are rows of benchmarks/data_checks.csv; a row that exists is not measured again.
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageEnhance, ImageOps
from prepare import make_images
from results_table import ResultsTable

from udc_model.config import DataParams
from udc_model.data.audit import check_images
from udc_model.data.quality.examination import Examination
from udc_model.data.quality.fingerprints import find_candidates
from udc_model.data.scratch import PixelScratch
from udc_model.data.sources import open_source
from udc_model.data.transforms import Preprocessing

COLUMNS = ("check", "data", "setting", "measure", "value")
SIDE = 96  # pixels of the prepared images, as in udc inspect


def examined(folder: Path | None) -> tuple[Examination, float, float]:
    """Examine the images of a folder, or the digits; also CPU seconds to decode them, and to find near-duplicates."""
    params = DataParams(source="auto", path=str(folder)) if folder else DataParams(source="digits")
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(params, Path(scratch) / "unpacked")
        first = _cpu()
        audit = check_images(source, Preprocessing(SIDE, "squash"), params, PixelScratch(Path(scratch) / "images"))
        second = _cpu()
        examination = Examination.of(audit)
    return examination, second - first, _cpu() - second  # the traits remain readable: the mapped file is open


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _photographs(folder: Path, n: int) -> list[Path]:
    paths = sorted(folder.rglob("*.jpg"))
    return [paths[i] for i in sorted(np.random.default_rng(0).permutation(len(paths))[:n])]


def _reencoded(image: Image.Image, quality: int = 50) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _cropped(image: Image.Image, rng: np.random.Generator, share: float = 0.95) -> Image.Image:
    """A part of the image with this share of both sides, at a random position."""
    width, height = int(image.width * share), int(image.height * share)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((int(left), int(top), int(left) + width, int(top) + height))


VERSIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "re-encoded, quality 50": lambda image, rng: _reencoded(image),
    "half the size": lambda image, rng: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "5 % cropped": lambda image, rng: _cropped(image, rng),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "quarter turn": lambda image, rng: image.transpose(Image.Transpose.ROTATE_90),
    "30 % brighter": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.3),
}


def recall(folder: Path, table: ResultsTable) -> None:
    """The share of versions that are in the cluster of their original, and of pairs that are false."""
    for name, version in VERSIONS.items():
        if table.has(check="recall", data=folder.name, setting=name):
            continue
        rng = np.random.default_rng(1)
        with tempfile.TemporaryDirectory() as scratch:
            for i, path in enumerate(_photographs(folder, 1000)):
                target = Path(scratch) / path.parent.name
                target.mkdir(exist_ok=True)
                with Image.open(path) as image:
                    original = image.convert("RGB")
                original.save(target / f"{i:04d}-a.png")
                version(original, rng).save(target / f"{i:04d}-b.png")
            found = examined(Path(scratch))[0]
        paths = [image.record.path for image in found.usable]
        pairs = [pair for images in found.near.clusters for pair in combinations(images, 2)]
        n_true = sum(paths[a][: -len("-a.png")] == paths[b][: -len("-a.png")] for a, b in pairs)
        n_false = len(pairs) - n_true
        table.append("recall", folder.name, name, "found", n_true / 1000)
        table.append("recall", folder.name, name, "pairs of different photographs", n_false)


def clusters(names: list[str], table: ResultsTable) -> None:
    """The clusters in real data."""
    for name in names:
        if not table.has(check="clusters", data=Path(name).name):
            found = examined(None if name == "digits" else Path(name))[0]
            table.append("clusters", Path(name).name, "", "images", len(found.usable))
            table.append("clusters", Path(name).name, "", "clusters", len(found.near.clusters))
            for images in found.near.clusters:
                print(" = ".join(found.usable[i].record.path for i in images))  # noqa: T201


def speed(sizes: list[int], table: ResultsTable) -> None:
    """CPU seconds and memory of the index on synthetic fingerprints; run each size in a process of its own."""
    for n in sizes:
        if table.has(check="speed", data=f"{n} fingerprints"):
            continue
        rng = np.random.default_rng(0)
        spectrum = 1 / np.maximum(np.hypot(*np.mgrid[:6, :6]), 1)
        prints = (rng.normal(size=(n, 6, 6)) * spectrum).astype(np.float32)
        copies = n // 100
        prints[-copies:] = prints[:copies] + 0.05 * rng.normal(size=(copies, 6, 6)) * spectrum
        prints[:, 0, 0] = 0
        prints /= np.linalg.norm(prints, axis=(1, 2), keepdims=True)
        started, cpu = time.perf_counter(), time.process_time()
        candidates = find_candidates(prints, 0.4 * min(1.0, 2000 / n) ** (1 / 6))
        values = {
            "CPU seconds": time.process_time() - cpu,
            "seconds": time.perf_counter() - started,
            "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "planted pairs found": float(((candidates.second - candidates.first) == n - copies).mean(dtype=float)
                                         * len(candidates.first) / copies),
            "candidates to verify": len(candidates.first),
        }  # fmt: skip
        for measure, value in values.items():
            table.append("speed", f"{n} fingerprints", "", measure, value)


def shots(folder: Path, weights: Path, table: ResultsTable) -> None:
    """Accuracy on 5 shots of 240 photographs, by how the splits are drawn."""
    from photographs import accuracy_of

    with tempfile.TemporaryDirectory() as scratch:
        root, rng = Path(scratch) / "shots", np.random.default_rng(2)
        for label in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            (root / label).mkdir(parents=True)
            for k, path in enumerate(_photographs(folder / label, 40)):
                with Image.open(path) as image:
                    photograph = image.convert("RGB")
                for shot in range(5):
                    share = float(rng.uniform(0.85, 0.98))
                    version = ImageEnhance.Brightness(_cropped(photograph, rng, share)).enhance(rng.uniform(0.85, 1.15))
                    version.save(root / label / f"{label}{k:03d}_{shot}.jpg", quality=int(rng.integers(70, 95)))
        found = examined(root)[0]
        print("\n".join(found.review(None, DataParams()).sentences(len(found.usable), 0)))  # noqa: T201
        proposal = found.review(None, DataParams()).proposal
        assert proposal is not None
        if not table.has(check="shots", data=folder.name, measure="clusters"):
            table.append("shots", folder.name, proposal.pattern, "proposed groups", proposal.groups)
            table.append("shots", folder.name, "", "clusters", len(found.near.clusters))
        for name, settings in (
            ("random split", []),
            ("data.group as proposed", [f"data.group='{proposal.pattern}'"]),
            ("data.near_duplicates: group", ["data.near_duplicates=group"]),
        ):
            for seed in range(3):
                if table.has(check="shots", data=folder.name, setting=f"{name}, split seed {seed}"):
                    continue
                accuracy = accuracy_of(root, "frozen-features", weights, [*settings, f"data.split_seed={seed}"])
                table.append("shots", folder.name, f"{name}, split seed {seed}", "accuracy", accuracy)


def _framed(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image.crop((3, 3, image.width - 3, image.height - 3)), 3, "steelblue")


def shortcuts(folder: Path, table: ResultsTable) -> None:
    """Which trait and class are named, without and with planted shortcuts."""
    camera = Image.Exif()
    camera[ExifTags.Base.Make], camera[ExifTags.Base.Model] = "Acme", "Zoom 5"
    other = Image.Exif()
    other[ExifTags.Base.Make], other[ExifTags.Base.Model] = "Bolt", "One"
    planted: dict[str, Callable[[Image.Image, bool, Path], None]] = {
        "none, as published": lambda image, is_chosen, path: None,
        "none, re-encoded": lambda image, is_chosen, path: image.save(path, quality=90),
        "JPEG quality 60": lambda image, is_chosen, path: image.save(path, quality=60 if is_chosen else 90),
        "coloured border": lambda image, is_chosen, path: (
            ImageOps.expand(image.crop((3, 3, image.width - 3, image.height - 3)), 3, "steelblue")
            if is_chosen
            else image
        ).save(path, quality=90),
        "EXIF camera": lambda image, is_chosen, path: image.save(path, quality=90, exif=other if is_chosen else camera),
    }
    for name, save in planted.items():
        if table.has(check="shortcuts", data=folder.name, setting=name):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            for path in sorted(folder.rglob("*.jpg")):
                target = Path(scratch) / path.parent.name / path.name
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes())
                with Image.open(path) as image:
                    save(image.convert("RGB"), path.parent.name == "glass", target)
            found = examined(Path(scratch))[0].review(None, DataParams()).shortcuts
        named = "; ".join(f"{each.label} from the {each.trait}" for each in found) or "nothing"
        table.append("shortcuts", folder.name, name, "named", named)


def inspect_time(n: int, table: ResultsTable) -> None:
    """CPU seconds of everything beyond decoding on n images."""
    if table.has(check="inspect", data=f"{n} images"):
        return
    with tempfile.TemporaryDirectory() as scratch:
        make_images(Path(scratch), n, 200)
        found, decoding, clusters_cpu = examined(Path(scratch))
        started = _cpu()
        found.review(None, DataParams())
        table.append("inspect", f"{n} images", "", "CPU seconds to decode and measure", decoding)
        table.append("inspect", f"{n} images", "", "CPU seconds beyond", clusters_cpu + _cpu() - started)


def main() -> None:
    """Run one check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("recall", "clusters", "speed", "shots", "shortcuts", "inspect"))
    parser.add_argument("data", nargs="+")
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0, see benchmarks/photographs.py")
    parser.add_argument("--table", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    table = ResultsTable(options.table, COLUMNS)
    match options.check:
        case "recall":
            recall(Path(options.data[0]), table)
        case "clusters":
            clusters(options.data, table)
        case "speed":
            speed(list(map(int, options.data)), table)
        case "shots":
            shots(Path(options.data[0]), options.weights, table)
        case "shortcuts":
            shortcuts(Path(options.data[0]), table)
        case _:
            inspect_time(int(options.data[0]), table)


if __name__ == "__main__":
    sys.exit(main())
