"""Data sets of torchvision, downloaded and decoded by its own classes; those that load pickles are refused."""

from __future__ import annotations

import inspect
import logging
import re
import socket
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from udc_model.errors import UdcError, one_line
from udc_model.fetch.image_folder import ImageFolderWriter, check_disk, description, png
from udc_model.files import atomic_folder, sha256_of, size_text

logger = logging.getLogger(__name__)

_TIMEOUT = 60.0  # seconds without an answer of a server; torchvision sets none
_SOURCE_FILE = re.compile(r"\.(gz|tgz|zip|tar|bz2|mat|bin|data)$|-(ubyte|int)$")
_DISK = 3  # bytes on disk for each byte downloaded: archive, extracted files, images in the project
_PAGE = "https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{}.html"
_DAMAGED = (RuntimeError, ValueError, AssertionError, OSError, EOFError, LookupError, TypeError, AttributeError,
            tarfile.TarError)  # fmt: skip


@dataclass(frozen=True)
class _TorchvisionSet:
    """One data set: constructor arguments by split folder (None: no splits), and its approximate download size.

    Attributes
    ----------
    samples : paths and labels of a data set whose class takes no ``loader``; None if ``dataset[i]`` is used.
    """

    megabytes: int
    splits: dict[str | None, dict[str, Any]]
    class_name: str | None = None
    samples: Callable[[Any], Iterable[tuple[Any, int]]] | None = None
    classes: list[str] = field(default_factory=list)  # if the class has none


def _named(*splits: str) -> dict[str | None, dict[str, Any]]:
    return {("validation" if name in ("val", "valid") else name): {"split": name} for name in splits}


def _emnist(split: str) -> dict[str | None, dict[str, Any]]:
    """One of its subsets. Others have classes that differ in case only, which folders cannot have everywhere."""
    return {"train": {"split": split, "train": True}, "test": {"split": split, "train": False}}


def _imagenette(size: str) -> dict[str | None, dict[str, Any]]:
    return {"train": {"split": "train", "size": size}, "validation": {"split": "val", "size": size}}


_TRAIN_FLAG: dict[str | None, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_DIGITS = [str(digit) for digit in range(10)]
SETS = {
    "Caltech256": _TorchvisionSet(1200, {None: {}},
                                  samples=lambda d: ((_caltech256_path(d, i), d.y[i]) for i in range(len(d)))),
    "Country211": _TorchvisionSet(11_500, _named("train", "valid", "test")),
    "DTD": _TorchvisionSet(625, _named("train", "val", "test")),
    "EMNISTDigits": _TorchvisionSet(562, _emnist("digits"), "EMNIST"),
    "EMNISTLetters": _TorchvisionSet(562, _emnist("letters"), "EMNIST"),
    "EuroSAT": _TorchvisionSet(95, {None: {}}),
    "FashionMNIST": _TorchvisionSet(31, _TRAIN_FLAG),
    "FGVCAircraft": _TorchvisionSet(2800, _named("train", "val", "test")),
    "Flowers102": _TorchvisionSet(345, _named("train", "val", "test")),
    "Food101": _TorchvisionSet(5000, _named("train", "test")),
    "GTSRB": _TorchvisionSet(280, _named("train", "test"), samples=lambda d: d._samples,
                             classes=[f"{number:05d}" for number in range(43)]),
    "Imagenette": _TorchvisionSet(1600, _imagenette("full"), "Imagenette"),
    "Imagenette160": _TorchvisionSet(100, _imagenette("160px"), "Imagenette"),
    "Imagenette320": _TorchvisionSet(345, _imagenette("320px"), "Imagenette"),
    "KMNIST": _TorchvisionSet(21, _TRAIN_FLAG),
    "MNIST": _TorchvisionSet(12, _TRAIN_FLAG),
    "OxfordIIITPet": _TorchvisionSet(812, {"train": {"split": "trainval"}, "test": {"split": "test"}},
                                     samples=lambda d: zip(d._images, d._labels, strict=True)),
    "QMNIST": _TorchvisionSet(22, _TRAIN_FLAG),
    "RenderedSST2": _TorchvisionSet(135, _named("train", "val", "test")),
    "SEMEION": _TorchvisionSet(3, {None: {}}, classes=_DIGITS),
    "STL10": _TorchvisionSet(2650, _named("train", "test")),
    "SUN397": _TorchvisionSet(39_000, {None: {}}),
    "SVHN": _TorchvisionSet(250, _named("train", "test"), classes=_DIGITS),
    "USPS": _TorchvisionSet(9, _TRAIN_FLAG, classes=_DIGITS),
}  # fmt: skip
# torchvision loads files of these with pickle. The value is the same data set in Parquet on the Hugging Face hub.
PICKLED = {"CIFAR10": "huggingface:uoft-cs/cifar10", "CIFAR100": "huggingface:uoft-cs/cifar100",
           "ImageNet": "huggingface:ILSVRC/imagenet-1k", "LSUN": None, "LSUNClass": None}  # fmt: skip


def fetch_torchvision(name: str, folder: Path) -> dict[str, Any]:
    """Write a data set of torchvision as image files: arrays as PNG, image files as they are.

    Parameters
    ----------
    name : of the class, as ``FashionMNIST``.
    folder : existing folder to write into.

    Returns
    -------
    The record of what was written.

    Raises
    ------
    UdcError
        The data set is not supported, cannot be downloaded, or is damaged.
    """
    _check_name(name)
    entry = SETS[name]
    root = _download(name, entry)
    writer = ImageFolderWriter(folder)
    try:
        for split, arguments in entry.splits.items():
            dataset = _open(name, root, arguments)
            _check_arrays(dataset)
            classes = _class_names(name, dataset)
            samples = tqdm(_samples(entry, dataset), f"{name} {split or ''}".strip(), len(dataset), unit="img",
                           disable=None, leave=False)  # fmt: skip
            for number, (image, label) in enumerate(samples):
                if not 0 <= label < len(classes):
                    raise ValueError(f"image {number} has the label {label}, but there are {len(classes)} classes")
                if isinstance(image, str | Path):
                    path = Path(image)
                    path.resolve().relative_to(root.resolve())  # ValueError for a path that leads out of the cache
                    writer.add(split, classes[label], path.name, path.read_bytes())
                else:
                    writer.add(split, classes[label], f"{number:05d}.png", png(image))
    except _DAMAGED as error:
        raise UdcError(f"torchvision:{name}: the files in {root} are damaged or incomplete "
                       f"({one_line(error)}); remove this folder and fetch again") from None  # fmt: skip
    page = _PAGE.format(entry.class_name or name)
    revision = f"torchvision {version('torchvision').split('+')[0]}"
    return description(f"torchvision:{name}", revision, page, None, writer, _source_files(root))


def _check_name(name: str) -> None:
    if name in PICKLED:
        instead = f"use {PICKLED[name]}" if PICKLED[name] else "there is no other form of it here"
        raise UdcError(f"torchvision:{name}: torchvision loads it with pickle, which can run any code; {instead}")
    if name not in SETS:
        raise UdcError(f"torchvision:{name}: not supported; the supported data sets are {', '.join(SETS)}")


def cache_folder(name: str) -> Path:
    """Folder that is the ``root`` of a torchvision data set; TORCH_HOME moves it."""
    from torch.hub import get_dir

    return Path(str(get_dir())).parent / "datasets" / name


def _download(name: str, entry: _TorchvisionSet) -> Path:
    """The data set's folder in the cache, filled completely if it does not exist."""
    root = cache_folder(name)
    if root.is_dir():
        logger.info("torchvision:%s: using %s", name, root)
        return root
    size = entry.megabytes * 1_000_000
    check_disk(root, _DISK * size, f"torchvision:{name}")
    logger.info("torchvision:%s: downloading about %s to %s", name, size_text(size), root)
    with atomic_folder(root) as scratch:
        try:
            with _safe_downloads():
                for arguments in entry.splits.values():
                    _open(name, scratch, arguments, download=True)
        except _DAMAGED as error:
            raise UdcError(
                f"torchvision:{name}: not in {root}, and cannot be downloaded ({one_line(error)}); run `udc fetch "
                f"torchvision:{name}` on a machine with network access and copy that folder from there"
            ) from None
    return root


@contextmanager
def _safe_downloads() -> Iterator[None]:
    """Let servers time out, show progress on terminals only, and let no member of a tar archive leave its folder.

    Raises
    ------
    UdcError
        Python's ``tarfile`` is too old to keep members in a folder.
    """
    from torchvision.datasets import utils

    if not hasattr(tarfile, "data_filter"):
        raise UdcError("udc fetch torchvision: a download needs Python 3.11.4 or newer; earlier versions may extract "
                       "an archive's files to any place")  # fmt: skip

    timeout, progress = socket.getdefaulttimeout(), utils.tqdm
    utils.tqdm = partial(progress, disable=None)
    socket.setdefaulttimeout(_TIMEOUT)
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        utils.tqdm = progress
        with suppress(AttributeError):
            del tarfile.TarFile.extraction_filter


def _open(name: str, root: Path, arguments: dict[str, Any], *, download: bool = False) -> Any:
    """One split of a data set; the images of classes that take a ``loader`` are their paths."""
    from torchvision import datasets

    constructor = getattr(datasets, SETS[name].class_name or name)
    if hasattr(constructor, "_check_legacy_exist"):
        # its older cache is a file of torch.save, which is a pickle
        constructor = type(constructor.__name__, (constructor,), {"_check_legacy_exist": lambda self: False})
    takes_loader = "loader" in inspect.signature(constructor).parameters
    extra = {"loader": lambda path: path} if takes_loader else {}
    if name == "SEMEION" or download:  # SEMEION downloads by default
        extra["download"] = download  # type: ignore[assignment]
    return constructor(str(root), **arguments, **extra)


def _check_arrays(dataset: Any) -> None:
    """Check what the classes of the MNIST family do not: the archives' MD5, and one label for each image."""
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import check_md5

    if not isinstance(dataset, MNIST):
        return
    resources = dataset.resources
    for name, md5 in resources[dataset.what] if isinstance(resources, dict) else resources:
        archive = Path(dataset.raw_folder) / Path(name).name
        if archive.is_file() and not check_md5(archive, md5):
            raise ValueError(f"{archive.name} does not have the published MD5 {md5}")
    if len(dataset.targets) != len(dataset):
        raise ValueError(f"{len(dataset)} images, but {len(dataset.targets)} labels")


def _samples(entry: _TorchvisionSet, dataset: Any) -> Iterable[tuple[Any, int]]:
    if entry.samples is not None:
        return entry.samples(dataset)
    return (dataset[index] for index in range(len(dataset)))


def _caltech256_path(dataset: Any, index: int) -> Path:
    label = dataset.y[index]
    file = f"{label + 1:03d}_{dataset.index[index]:04d}.jpg"
    return Path(dataset.root, "256_ObjectCategories", dataset.categories[label], file)


def _class_names(name: str, dataset: Any) -> list[str]:
    """Class names by label. Imagenette has several for each class, of which the first is used."""
    names = SETS[name].classes or getattr(dataset, "classes", None) or dataset.categories
    return [each if isinstance(each, str) else each[0] for each in names]


def _source_files(root: Path) -> dict[str, str]:
    """SHA-256 of the archives and arrays in the cache, by their path."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and _SOURCE_FILE.search(path.name))
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in files}
